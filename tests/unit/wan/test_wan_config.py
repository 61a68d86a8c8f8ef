"""The tasks as data: every number that a user meets or a parallel plan depends on, as whole values."""

from dataclasses import FrozenInstanceError, replace

import pytest

from wan.config import NEGATIVE_PROMPT, TASKS, ClipConfig, DitConfig, Task, TextConfig, VaeConfig

FULL = ("t2v-1.3B", "t2v-14B", "t2i-14B", "i2v-14B", "flf2v-14B", "vace-1.3B", "vace-14B")
TINY = ("t2v-tiny", "t2i-tiny", "i2v-tiny", "flf2v-tiny", "vace-tiny")

LANDSCAPE_AND_PORTRAIT_480P = ("832*480", "480*832")
ALL_VIDEO_SIZES = ("1280*720", "720*1280", *LANDSCAPE_AND_PORTRAIT_480P)


def width_and_height(size: str) -> tuple[int, int]:
    width, height = size.split("*")
    return int(width), int(height)


def num_tokens(task: Task, size: str) -> int:
    """L: the tokens that one video of the task's default length gives the transformer."""
    _, *latent = task.latent_shape(*width_and_height(size), task.frame_num)
    patch = task.dit.patch_size
    assert all(axis % step == 0 for axis, step in zip(latent, patch, strict=True))
    frames, rows, columns = (axis // step for axis, step in zip(latent, patch, strict=True))
    return frames * rows * columns


def test_a_still_image_of_the_smallest_tiny_size_has_one_latent_frame() -> None:
    assert TASKS["t2i-tiny"].latent_shape(64, 48, 1) == (16, 1, 6, 8)


def test_there_are_seven_tasks_and_a_tiny_one_of_every_kind() -> None:
    assert tuple(TASKS) == FULL + TINY
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in FULL + TINY}
    assert tuple(name for name, task in TASKS.items() if task.is_tiny) == TINY
    kinds = {name.rsplit("-", 1)[0] for name in FULL}
    assert {f"{kind}-tiny" for kind in kinds} == set(TINY)


def test_sizes_of_every_task_the_default_first() -> None:
    assert {name: TASKS[name].sizes for name in FULL} == {
        "t2v-1.3B": LANDSCAPE_AND_PORTRAIT_480P,
        "t2v-14B": ALL_VIDEO_SIZES,
        "t2i-14B": (*ALL_VIDEO_SIZES, "1024*1024"),
        "i2v-14B": ALL_VIDEO_SIZES,
        "flf2v-14B": ALL_VIDEO_SIZES,
        "vace-1.3B": LANDSCAPE_AND_PORTRAIT_480P,
        "vace-14B": ALL_VIDEO_SIZES,
    }


@pytest.mark.parametrize(
    ("name", "size", "latent_shape", "tokens"),
    [
        ("t2v-1.3B", "832*480", (16, 21, 60, 104), 32_760),
        ("t2v-1.3B", "480*832", (16, 21, 104, 60), 32_760),
        ("t2v-14B", "1280*720", (16, 21, 90, 160), 75_600),
        ("t2v-14B", "720*1280", (16, 21, 160, 90), 75_600),
        ("t2i-14B", "1024*1024", (16, 1, 128, 128), 4_096),
        ("t2i-14B", "1280*720", (16, 1, 90, 160), 3_600),
        ("vace-14B", "1280*720", (16, 21, 90, 160), 75_600),
        ("t2v-tiny", "64*48", (16, 3, 6, 8), 36),
    ],
)
def test_latent_shape_and_sequence_length(
    name: str, size: str, latent_shape: tuple[int, int, int, int], tokens: int
) -> None:
    task = TASKS[name]
    assert task.latent_shape(*width_and_height(size), task.frame_num) == latent_shape
    assert num_tokens(task, size) == tokens


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in TASKS for size in TASKS[name].sizes])
def test_every_accepted_size_fills_whole_patches(name: str, size: str) -> None:
    assert num_tokens(TASKS[name], size) > 0


@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("t2v-14B", [1, 2, 4, 5, 8, 10, 20, 40]),
        ("t2v-1.3B", [1, 2, 3, 4, 6, 12]),
        ("t2v-tiny", [1, 2, 4]),
    ],
)
def test_degrees_of_head_parallelism(name: str, degrees: list[int]) -> None:
    heads = TASKS[name].dit.num_heads
    assert [degree for degree in range(1, heads + 1) if heads % degree == 0] == degrees


@pytest.mark.parametrize(
    ("tokens", "excluded"),
    [
        (75_600, [11, 13]),
        (32_760, [11, 16]),
    ],
)
def test_degrees_up_to_16_that_do_not_split_a_video_evenly(tokens: int, excluded: list[int]) -> None:
    assert [degree for degree in range(1, 17) if tokens % degree] == excluded


def test_default_shift_of_every_task_and_size() -> None:
    assert {(name, size): TASKS[name].default_shift(size) for name in FULL for size in TASKS[name].sizes} == {
        **{("t2v-1.3B", size): 5.0 for size in LANDSCAPE_AND_PORTRAIT_480P},
        **{("t2v-14B", size): 5.0 for size in ALL_VIDEO_SIZES},
        **{("t2i-14B", size): 5.0 for size in (*ALL_VIDEO_SIZES, "1024*1024")},
        ("i2v-14B", "1280*720"): 5.0,
        ("i2v-14B", "720*1280"): 5.0,
        ("i2v-14B", "832*480"): 3.0,
        ("i2v-14B", "480*832"): 3.0,
        **{("flf2v-14B", size): 16.0 for size in ALL_VIDEO_SIZES},
        **{("vace-1.3B", size): 16.0 for size in LANDSCAPE_AND_PORTRAIT_480P},
        **{("vace-14B", size): 16.0 for size in ALL_VIDEO_SIZES},
    }


def test_frames_steps_guidance_and_rate_of_every_task() -> None:
    def defaults(task: Task) -> tuple[int, int, float, int]:
        return task.frame_num, task.sample_steps, task.sample_guide_scale, task.fps

    assert {name: defaults(TASKS[name]) for name in FULL} == {
        "t2v-1.3B": (81, 50, 5.0, 16),
        "t2v-14B": (81, 50, 5.0, 16),
        "t2i-14B": (1, 50, 5.0, 16),
        "i2v-14B": (81, 40, 5.0, 16),
        "flf2v-14B": (81, 50, 5.0, 16),
        "vace-1.3B": (81, 50, 5.0, 16),
        "vace-14B": (81, 50, 5.0, 16),
    }
    assert {name: TASKS[name].frame_num for name in TINY} == {
        "t2v-tiny": 9,
        "t2i-tiny": 1,
        "i2v-tiny": 9,
        "flf2v-tiny": 9,
        "vace-tiny": 9,
    }


def test_transformer_of_every_task() -> None:
    small = DitConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
    large = DitConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
    every_second = (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28)
    every_fifth = (0, 5, 10, 15, 20, 25, 30, 35)
    assert {name: TASKS[name].dit for name in FULL} == {
        "t2v-1.3B": small,
        "t2v-14B": large,
        "t2i-14B": large,
        "i2v-14B": replace(large, model_type="i2v", in_dim=36, image_dim=1280, image_len=257),
        "flf2v-14B": replace(large, model_type="flf2v", in_dim=36, image_dim=1280, image_len=514),
        "vace-1.3B": replace(small, model_type="vace", vace_layers=every_second, vace_in_dim=96),
        "vace-14B": replace(large, model_type="vace", vace_layers=every_fifth, vace_in_dim=96),
    }
    assert {TASKS[name].dit.head_dim for name in FULL} == {128}


def test_full_tasks_share_one_vae_and_one_text_encoder() -> None:
    assert {name: (TASKS[name].vae, TASKS[name].text) for name in FULL} == dict.fromkeys(
        FULL, (VaeConfig(), TextConfig())
    )
    assert (len(VaeConfig().mean), len(VaeConfig().std)) == (16, 16)
    assert min(VaeConfig().std) > 0


def test_only_tasks_with_an_image_context_have_a_clip_tower() -> None:
    with_clip = {"i2v-14B", "flf2v-14B", "i2v-tiny", "flf2v-tiny"}
    assert {name for name, task in TASKS.items() if task.clip is not None} == with_clip
    assert {name for name, task in TASKS.items() if task.dit.has_image_context} == with_clip
    assert ClipConfig().num_tokens == 257


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_task_has_the_structure_of_its_kind_and_fits_together(name: str) -> None:
    task, full = TASKS[name], TASKS[name.replace("tiny", "14B")]
    assert task.dit.model_type == full.dit.model_type
    assert (task.dit.in_dim, task.dit.out_dim, task.vae.z_dim) == (full.dit.in_dim, 16, 16)
    assert bool(task.dit.vace_layers) == bool(full.dit.vace_layers)
    assert (task.dit.text_dim, task.dit.text_len) == (task.text.d_model, task.text.text_len)
    assert task.dit.dim % task.dit.num_heads == 0
    assert task.dit.head_dim % 2 == 0  # rotary embedding turns pairs
    if task.clip is not None:
        images = {"i2v": 1, "flf2v": 2}[task.dit.model_type]
        assert task.dit.image_dim == task.clip.hidden_dim
        assert task.dit.image_len == images * task.clip.num_tokens


def test_negative_prompts() -> None:
    camera_shakes, scene_cuts = "\u955c\u5934\u6643\u52a8\uff0c", "\u955c\u5934\u5207\u6362\uff0c"
    assert {name: TASKS[name].negative_prefix for name in TASKS if TASKS[name].negative_prefix} == {
        "i2v-14B": camera_shakes,
        "flf2v-14B": scene_cuts + camera_shakes,
    }
    assert NEGATIVE_PROMPT == NEGATIVE_PROMPT.strip()
    assert len(NEGATIVE_PROMPT.split("\uff0c")) > 20


def test_a_task_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        TASKS["t2v-tiny"].frame_num = 5  # type: ignore[misc]
