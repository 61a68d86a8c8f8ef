"""wan.inputs.control: the video and the mask of vace belong together by the number of their frames."""

from pathlib import Path

import numpy as np
import pytest
import torch
from clips import Pixels, grey, write_frames
from PIL import Image
from torch import Tensor

from wan.errors import InputError, MediaError
from wan.inputs.control import read_control

SIDE = 16


def box(index: int, num_frames: int, level: int = 255) -> Pixels:
    """A bright square on black that moves from left to right."""
    pixels = grey(0, height=32, width=160)
    left = (160 - SIDE) * index // max(1, num_frames - 1)
    pixels[8 : 8 + SIDE, left : left + SIDE] = level
    return pixels


def boxes(path: Path, num_frames: int, fps: int) -> Path:
    return write_frames(path, [box(index, num_frames) for index in range(num_frames)], fps=fps)


def covered(video: Tensor, mask: Tensor) -> list[bool]:
    """For each frame whether the mask is where the square is, and nowhere else."""
    return [
        torch.equal(frame.mean(0) > 0, shade[0] > 0.5)
        for frame, shade in zip(video.unbind(1), mask.unbind(1), strict=True)
    ]


def test_a_video_alone(tmp_path: Path) -> None:
    control = read_control(boxes(tmp_path / "v.mp4", 9, 16), None, frame_num=9)
    assert control.video.shape == (3, 9, 32, 160)
    assert control.mask is None
    assert control.lines == ()


@pytest.mark.parametrize(("video_fps", "mask_fps"), [(30, 16), (16, 30), (24, 24), (60, 8)])
@pytest.mark.parametrize(("num_frames", "frame_num"), [(9, 9), (9, 5), (23, 9), (30, 81)])
def test_frames_of_one_number_belong_together_whatever_the_rates(
    tmp_path: Path, video_fps: int, mask_fps: int, num_frames: int, frame_num: int
) -> None:
    video = boxes(tmp_path / "v.mp4", num_frames, video_fps)
    mask = boxes(tmp_path / "m.mp4", num_frames, mask_fps)

    control = read_control(video, mask, frame_num=frame_num)

    num_made = min((num_frames - 1) // 4 * 4 + 1, frame_num)
    assert control.mask is not None
    assert (control.video.shape, control.mask.shape) == ((3, num_made, 32, 160), (1, num_made, 32, 160))
    assert all(covered(control.video, control.mask))
    # THEN the whole clip is told: the square starts left and ends right
    first, last = (control.video[0, :, 16].argmax(1)[index].item() for index in (0, -1))
    assert (first, last) == (0, 160 - SIDE)


def test_frames_are_spread_over_the_clip_and_that_is_told(tmp_path: Path) -> None:
    control = read_control(boxes(tmp_path / "v.mp4", 40, 16), None, frame_num=9)
    assert control.lines == ("  src_video: 9 of its 40 frames are used, evenly over the clip",)


@pytest.mark.parametrize(("num_video", "num_mask"), [(9, 5), (5, 9), (6, 9)])
def test_the_shorter_of_the_two_decides_and_that_is_told(
    tmp_path: Path, num_video: int, num_mask: int
) -> None:
    video = write_frames(tmp_path / "v.mp4", [box(index, 9) for index in range(num_video)], fps=30)
    mask = write_frames(tmp_path / "m.mp4", [box(index, 9) for index in range(num_mask)])

    control = read_control(video, mask, frame_num=5)

    assert control.mask is not None
    assert control.video.shape[1] == control.mask.shape[1] == 5
    assert all(covered(control.video, control.mask))
    shorter = min(num_video, num_mask)
    warning, *rest = control.lines
    assert warning == (
        f"warning: --src_video {video} has {num_video} frames, --src_mask {mask} {num_mask}: "
        f"the first {shorter} of both are used"
    )
    assert rest == (["  src_video: 5 of its 6 frames are used, evenly over the clip"] if shorter == 6 else [])


@pytest.mark.parametrize(("given", "made"), [(1, 1), (3, 1), (6, 5), (8, 5)])
def test_fewer_frames_than_asked_for_are_told(tmp_path: Path, given: int, made: int) -> None:
    video = boxes(tmp_path / "v.mp4", given, 16)
    control = read_control(video, None, frame_num=9)
    assert control.video.shape[1] == made
    assert control.lines == (f"warning: --src_video {video} has {given} frames: {made} are made, not 9",)


def test_a_mask_of_one_frame_holds_for_all(tmp_path: Path) -> None:
    video = boxes(tmp_path / "v.mp4", 5, 16)
    Image.fromarray(box(1, 2)).save(tmp_path / "m.png")
    moving = write_frames(tmp_path / "m.mp4", [box(1, 2)], fps=30)
    for mask in (tmp_path / "m.png", moving):
        control = read_control(video, mask, frame_num=5)
        assert control.mask is not None
        assert control.mask.shape == (1, 1, 32, 160)
        assert control.mask[0, 0, 16].round().tolist() == [0.0] * 144 + [1.0] * SIDE
        assert control.lines == ()


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_mask_that_moves_in_an_image_file_is_told(tmp_path: Path, suffix: str) -> None:
    mask = tmp_path / f"m{suffix}"
    frames = [Image.fromarray(box(index, 3)) for index in range(3)]
    frames[0].save(mask, save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(MediaError) as caught:
        read_control(boxes(tmp_path / "v.mp4", 3, 16), mask, frame_num=5)
    assert str(caught.value) == f"mask {mask} is an animated picture of 3 frames"
    assert caught.value.hint == "make a video of it: .mp4, .mov, .m4v, .mkv, .webm, .avi, .gif"


def test_a_mask_that_moves_in_a_gif(tmp_path: Path) -> None:
    frames = [Image.fromarray(box(index, 5)) for index in range(5)]
    frames[0].save(tmp_path / "m.gif", save_all=True, append_images=frames[1:], duration=100)
    control = read_control(boxes(tmp_path / "v.mp4", 5, 16), tmp_path / "m.gif", frame_num=5)
    assert control.mask is not None
    assert all(covered(control.video, control.mask))


def test_a_mask_of_another_kind_is_refused_before_the_video_is_read(tmp_path: Path) -> None:
    video = boxes(tmp_path / "v.mp4", 5, 16)
    with pytest.raises(InputError, match=r"mask m.txt: suffix '.txt' is not known"):
        read_control(video, Path("m.txt"), frame_num=5)


def test_sizes_that_differ_are_left_to_vace(tmp_path: Path) -> None:
    mask = write_frames(tmp_path / "m.mp4", [grey(255, 64, 64)] * 5)
    control = read_control(boxes(tmp_path / "v.mp4", 5, 30), mask, frame_num=5)
    assert control.mask is not None
    assert control.mask.shape == (1, 5, 64, 64)
    assert np.isclose(control.mask.mean().item(), 1.0, atol=0.01)
