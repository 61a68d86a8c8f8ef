"""The control video of vace and its mask, from files: frames of the same number belong together.

    control = read_control(Path("dance.mp4"), Path("dancer.mp4"), frame_num=81)
    control.video.shape, control.mask.shape       # [3, 81, H, W], [1, 81, H, W]

As in the release, frame rates do not matter: the same frames are taken of both files, evenly over the time of the
video. The release takes as many as its sequence length allows; here `frame_num` is the maximum.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from wan.inputs import media, video_file
from wan.inputs.conditioning import vace_frame_num


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """The inputs that control vace."""

    video: Tensor
    """[3, F, H, W] fp32 in [-1, 1], F = 4n+1."""
    mask: Tensor | None
    """[1, F, H, W] fp32 in [0, 1], or [1, 1, H, W]: one mask for all frames."""
    lines: tuple[str, ...]
    """A line for each thing that differs from what was asked for, in terms of the flags."""


def read_control(video: Path, mask: Path | None, *, frame_num: int) -> Control:
    """Read `video` and `mask`: 4n+1 frames, at most `frame_num`, and no more than either file has.

    A mask of one frame, image or video, holds for all. Raises MediaError for a file that cannot be read, InputError
    for a mask whose suffix is neither image nor video.
    """
    shown = whole = video_file.look(video)
    moving = None if mask is None or media.is_still(mask) else video_file.look(mask)
    lines = []
    if moving is not None and moving.num_frames not in (1, whole.num_frames):
        shown = whole.first(moving.num_frames)
        lines.append(
            f"warning: --src_video {video} has {whole.num_frames} frames, --src_mask {mask} {moving.num_frames}: "
            f"the first {shown.num_frames} of both are used"
        )
    num_made = vace_frame_num(shown.num_frames, frame_num)
    numbers = video_file.spread(shown, num_made)
    lines += _length_lines(video, shown.num_frames, num_made, frame_num)
    if mask is not None and moving is None:
        masks = media.read_mask(mask, frame_num=1)
    elif moving is not None:
        masks = media.as_mask(video_file.read(moving, numbers if moving.num_frames > 1 else [0]))
    else:
        masks = None
    return Control(video=video_file.read(whole, numbers), mask=masks, lines=tuple(lines))


def _length_lines(video: Path, num_shown: int, num_made: int, frame_num: int) -> list[str]:
    if num_made < frame_num:
        return [f"warning: --src_video {video} has {num_shown} frames: {num_made} are made, not {frame_num}"]
    if num_made < num_shown:
        return [f"  src_video: {num_made} of its {num_shown} frames are used, evenly over the clip"]
    return []
