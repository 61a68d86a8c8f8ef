"""Settings from the text of PYTORCH_CUDA_ALLOC_CONF, as torch reads it."""

import pytest

from ray_memprof.allocator.rules import Rules
from ray_memprof.allocator.settings import given, settings_of
from ray_memprof.errors import ConfigError

MIB = 2**20


def test_no_text_is_no_setting() -> None:
    assert settings_of("") == {}
    assert Rules().under(settings_of("")) == Rules()


def test_every_setting_of_sizes_and_segments_is_read_and_others_are_left_out() -> None:
    text = (
        "expandable_segments: True , max_split_size_mb:128,garbage_collection_threshold:0.6,backend:native,"
        "large_segment_size_mb:32,max_non_split_rounding_mb:40,roundup_power2_divisions:4,pinned_num_register_threads:8"
    )
    assert Rules().under(settings_of(text)) == Rules(
        expandable_segments=True,
        max_split_bytes=128 * MIB,
        divisions=(4,) * 16,
        large_segment_bytes=32 * MIB,
        max_unsplit_rest_bytes=40 * MIB,
        garbage_collection_fraction=0.6,
    )


def test_divisions_by_size_fill_what_is_below_the_first_and_above_the_last() -> None:
    found = settings_of("roundup_power2_divisions:[4:2,8:4,64:1,>:8],expandable_segments:False")
    assert found == {
        "roundup_power2_divisions": {
            str(2**power): steps
            for power, steps in enumerate((2, 2, 2, 4, 0, 0, 1, 8, 8, 8, 8, 8, 8, 8, 8, 8))
        },
        "expandable_segments": False,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expandable_segments", "PYTORCH_ALLOC_CONF: 'expandable_segments' is no setting"),
        ("a:1,,b:2", "PYTORCH_ALLOC_CONF: ',b:2' is no setting"),
        ("expandable_segments:true", "PYTORCH_ALLOC_CONF: expandable_segments is 'true'"),
        ("max_split_size_mb:1.5", "PYTORCH_ALLOC_CONF: max_split_size_mb is '1.5'"),
        ("max_split_size_mb:19", "PYTORCH_ALLOC_CONF: max_split_size_mb is '19'"),
        ("large_segment_size_mb:40,max_split_size_mb:30", "PYTORCH_ALLOC_CONF: max_split_size_mb is '30'"),
        ("large_segment_size_mb:10", "PYTORCH_ALLOC_CONF: large_segment_size_mb is '10'"),
        ("garbage_collection_threshold:1", "PYTORCH_ALLOC_CONF: garbage_collection_threshold is '1'"),
        ("garbage_collection_threshold:x", "PYTORCH_ALLOC_CONF: garbage_collection_threshold is 'x'"),
        ("roundup_power2_divisions:3", "PYTORCH_ALLOC_CONF: roundup_power2_divisions is '3'"),
        ("roundup_power2_divisions:[3:2]", "PYTORCH_ALLOC_CONF: roundup_power2_divisions is '[3:2]'"),
        ("roundup_power2_divisions:[4:x]", "PYTORCH_ALLOC_CONF: roundup_power2_divisions is 'x'"),
    ],
)
def test_what_torch_refuses_is_an_error_that_names_the_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(text, "PYTORCH_ALLOC_CONF")
    assert str(caught.value) == message
    assert caught.value.hint


def test_of_two_variables_torch_reads_the_older() -> None:
    both = {"PYTORCH_ALLOC_CONF": "a:1", "PYTORCH_CUDA_ALLOC_CONF": "b:2"}
    assert given(both) == ("PYTORCH_CUDA_ALLOC_CONF", "b:2")
    assert given({"PYTORCH_ALLOC_CONF": "a:1"}) == ("PYTORCH_ALLOC_CONF", "a:1")
    assert given({}) == ("PYTORCH_CUDA_ALLOC_CONF", "")
