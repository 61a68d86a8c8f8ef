"""Profiles of GPU models."""

import pytest

from ray_memprof.errors import ConfigError
from ray_memprof.predictor.gpu_profile import gpu_profile, profile_names


def test_a_name_is_found_however_it_is_written() -> None:
    wanted = gpu_profile("rtx_4090")
    assert [gpu_profile(name) for name in ("RTX 4090", "rtx-4090", " Rtx_4090 ")] == [wanted] * 3


def test_an_unknown_one_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="--gpu RTX 3090: there is no profile of it") as caught:
        gpu_profile("RTX 3090")
    assert caught.value.hint == "there are: a100, b200, h100, h200, l40s, rtx_4090, rtx_5090"


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_says_where_it_comes_from_and_has_room(name: str) -> None:
    found = gpu_profile(name)
    assert found.source.startswith(("measured on", "data sheet"))
    outside = found.context_bytes + found.kernels_bytes + found.libraries_bytes
    assert 0 < outside < found.total_bytes / 10
    assert (
        found.product_flops["float8_e4m3fn"]
        > found.product_flops["bfloat16"]
        > found.product_flops["float32"]
    )
    # A link is slower than the device's own memory.
    assert found.pageable_bytes_per_s < found.link_bytes_per_s < found.memory_bytes_per_s
