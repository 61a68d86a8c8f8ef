"""Reading images, videos and masks into tensors, and writing what was made.

    image = read_image(Path("cat.jpg"))                      # [3, H, W] fp32 in [-1, 1]
    video = read_video(Path("dance.mp4"), frame_num=81)      # [3, F, H, W], 16 frames a second
    save_video(frames, Path("out.mp4"), fps=16)              # H.264, plays everywhere

Everything is on the host. A file appears under its name only when it is complete. Pixels are turned into
bytes and back frame by frame, so that beside the tensor no second whole video of floats exists.
pillow and PyAV are imported where they are used: ranks that neither read nor write need neither.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wan.errors import InputError, MediaError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
"""[H, W, 3]."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif")
SAVE_VIDEO_SUFFIX = ".mp4"
FPS = 16

# Visually lossless for H.264, where 23 is the usual and each 6 less doubles the bitrate.
CRF = "17"
_IMAGE_OPTIONS: dict[str, dict[str, Any]] = {".png": {}, ".webp": {"quality": 95}}
_JPEG_OPTIONS: dict[str, Any] = {"quality": 95, "subsampling": 0}
# Containers round the time of a frame to their clock, 1 ms in the coarsest (mkv, webm).
_CLOCK_SLACK_S = 0.002


def read_image(path: Path) -> Tensor:
    """An image as [3, H, W] fp32 in [-1, 1], turned upright where EXIF says so; alpha is dropped.

    Grey in 16 bits is rounded to 8, and white is 1 in a picture of floats.

    Raises MediaError when it is missing, empty or no image.
    """
    pixels = torch.from_numpy(np.array(open_image(path)))
    return pixels.permute(2, 0, 1).float().div_(255).sub_(0.5).div_(0.5)


def open_image(path: Path) -> "Image":
    """An image as an upright RGB pillow image; errors as read_image."""
    from PIL import Image, ImageOps

    _check_source(path)
    try:
        with Image.open(path) as image:
            return _as_rgb(ImageOps.exif_transpose(image))
    except (OSError, Image.DecompressionBombError) as error:
        raise MediaError(f"cannot read image {path}: {error}", hint=_readable(IMAGE_SUFFIXES)) from error


def read_video(path: Path, *, frame_num: int, fps: int = FPS, min_frames: int = 1) -> Tensor:
    """The start of a video as [3, F, H, W] fp32 in [-1, 1] at `fps` frames a second, F <= `frame_num`.

    Each output frame is the one on screen at its time: frames are left out or repeated, never blended.
    Raises MediaError when the file is missing, empty, no video, or shorter than `min_frames`.
    """
    frames = _decode(path, frame_num, fps)
    if len(frames) < min_frames:
        raise MediaError(
            f"video {path} has {len(frames)} frames at {fps} frames a second, {min_frames} are needed",
            hint="use a longer video or a smaller frame_num",
        )
    video = torch.empty(3, len(frames), *frames[0].shape[:2])
    for index, pixels in enumerate(frames):
        video[:, index] = torch.from_numpy(pixels).permute(2, 0, 1)
    return video.div_(127.5).sub_(1)


def read_mask(path: Path, *, frame_num: int, fps: int = FPS) -> Tensor:
    """A mask as [1, F, H, W] fp32 in [0, 1], white = 1; an image is one frame. Colours count by their red.

    Raises InputError for a suffix that is neither image nor video; else as read_image and read_video.
    """
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        colours = read_image(path)[:, None]
    elif suffix in VIDEO_SUFFIXES:
        colours = read_video(path, frame_num=frame_num, fps=fps)
    else:
        raise InputError(
            f"mask {path}: suffix {suffix!r} is not known", hint=_readable(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        )
    return colours[:1].add(1).div_(2)


def check_output(path: Path, *, num_frames: int) -> None:
    """Refuses a file that could not be written at the end; to be called before the work begins.

    Raises InputError for a suffix that does not fit `num_frames`, MediaError for a folder in the place of the
    file, a name too long, or a folder that is missing or takes no file (one is made there and removed).
    """
    suffix = path.suffix.lower()
    allowed = (*IMAGE_SUFFIXES, SAVE_VIDEO_SUFFIX) if num_frames == 1 else (SAVE_VIDEO_SUFFIX,)
    if suffix not in allowed:
        raise InputError(
            f"cannot write {num_frames} frame(s) to {path}: suffix {suffix!r}",
            hint=f"use {', '.join(allowed)}",
        )
    try:
        _check_place(path)
    except OSError as error:
        reason = error.strerror or error
        raise MediaError(f"cannot write {path}: {reason}", hint="choose another folder or name") from error


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise MediaError(
            f"cannot write {path}: there is no folder {path.parent}", hint="make the folder first"
        )
    if path.is_dir():
        raise MediaError(f"cannot write {path}: it is a folder", hint="choose another name")
    # The name may be too long, which the short one of the unfinished file does not show.
    with suppress(FileNotFoundError):
        path.stat()
    unfinished = _unfinished(path)
    unfinished.touch()
    unfinished.unlink()


def save_video(frames: Tensor | Iterable[Tensor], path: Path, *, fps: int = FPS) -> None:
    """Writes an H.264 mp4 (yuv420p, BT.709, index in front), fit for browsers and players.

    Args:
        frames: [3, F, H, W] in [-1, 1] on the host, or an iterator of such pieces in order; H and W even.
        path: a .mp4 file; its folder exists.
        fps: frames per second.

    Raises:
        InputError: another suffix, or an odd width or height.
        MediaError: no frames, or the file cannot be written.
    """
    if path.suffix.lower() != SAVE_VIDEO_SUFFIX:
        raise InputError(
            f"cannot write a video to {path}: suffix {path.suffix!r}", hint=f"use {SAVE_VIDEO_SUFFIX}"
        )
    pixels = _frames_as_bytes([frames] if isinstance(frames, Tensor) else frames)
    first = next(pixels, None)
    if first is None:
        raise MediaError(f"cannot write {path}: there are no frames", hint="make at least one frame")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise InputError(
            f"cannot write {path}: {width}x{height} pixels, H.264 needs an even width and height",
            hint="sizes that the model makes are multiples of 16",
        )
    with _complete_file(path) as unfinished:
        _encode_h264(itertools.chain([first], pixels), unfinished, width, height, fps)


def save_image(image: Tensor, path: Path) -> None:
    """Writes [3, H, W] in [-1, 1] as .png (exact), .jpg or .webp.

    Raises InputError for another suffix, MediaError when the file cannot be written.
    """
    from PIL import Image

    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(
            f"cannot write an image to {path}: suffix {suffix!r}", hint=f"use {', '.join(IMAGE_SUFFIXES)}"
        )
    options = _IMAGE_OPTIONS.get(suffix, _JPEG_OPTIONS)
    with _complete_file(path) as unfinished:
        Image.fromarray(_as_bytes(image)).save(unfinished, **options)


def save(frames: Tensor, path: Path, *, fps: int = FPS) -> None:
    """Writes [3, F, H, W] in [-1, 1]: one frame to an image suffix as an image, anything else as a video."""
    if frames.shape[1] == 1 and path.suffix.lower() != SAVE_VIDEO_SUFFIX:
        save_image(frames[:, 0], path)
    else:
        save_video(frames, path, fps=fps)


def _as_rgb(image: "Image") -> "Image":
    """`image` in 8-bit RGB; convert() alone would cut wide greys at 255, which is nearly black in 16 bits."""
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    white = 1.0 if image.mode == "F" else 65535.0
    grey = np.asarray(image, dtype=np.float64) * (255 / white)
    return Image.fromarray(np.nan_to_num(grey).round().clip(0, 255).astype(np.uint8)).convert("RGB")


def _readable(suffixes: tuple[str, ...]) -> str:
    return f"readable are {', '.join(suffixes)}"


def _check_source(path: Path) -> None:
    if not path.is_file():
        raise MediaError(
            f"there is no file {path}", hint="check the path; relative ones start at the working folder"
        )
    if path.stat().st_size == 0:
        raise MediaError(f"file {path} is empty", hint="copy or download it again")


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MediaError("videos need PyAV, which is not installed", hint="pip install av") from error
    return av


def _decode(path: Path, frame_num: int, fps: int) -> list[Pixels]:
    av = _import_av()
    _check_source(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} holds no video", hint=_readable(VIDEO_SUFFIXES))
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            timed = ((frame.time, frame) for frame in container.decode(stream))
            rate = stream.average_rate or Fraction(fps)
            chosen = _on_screen(timed, fps, float(1 / rate))
            return [_to_rgb(frame) for frame in itertools.islice(chosen, frame_num)]
    except (OSError, av.FFmpegError) as error:
        raise MediaError(f"cannot read video {path}: {error}", hint=_readable(VIDEO_SUFFIXES)) from error


def _on_screen(timed: Iterable[tuple[float, Any]], fps: int, last_duration_s: float) -> Iterator[Any]:
    """The frame shown at 0, 1/fps, 2/fps, .. seconds after the first, out of (time in s, frame)."""
    start_s: float | None = None
    end_s, shown, num_out = 0.0, None, 0
    for time_s, frame in timed:
        start_s = time_s if start_s is None else start_s
        while shown is not None and num_out / fps < time_s - start_s - _CLOCK_SLACK_S:
            yield shown
            num_out += 1
        shown, end_s = frame, time_s - start_s + last_duration_s
    while shown is not None and num_out / fps < end_s - _CLOCK_SLACK_S:
        yield shown
        num_out += 1


def _to_rgb(frame: Any) -> Pixels:
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    return pixels


def _frames_as_bytes(pieces: Iterable[Tensor]) -> Iterator[Pixels]:
    for piece in pieces:
        for index in range(piece.shape[1]):
            yield _as_bytes(piece[:, index])


def _as_bytes(image: Tensor) -> Pixels:
    """[3, H, W] in [-1, 1] to [H, W, 3] bytes, rounded to the nearest."""
    scaled = image.float().mul(127.5).add_(127.5).round_().clamp_(0, 255)
    pixels: Pixels = scaled.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels


@contextmanager
def _complete_file(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; it takes the place of `path` at the end, or is removed."""
    unfinished = _unfinished(path)
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise MediaError(
            f"cannot write {path}: {error}", hint="check the folder and its free space"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    # Short whatever the name of `path`, which may be as long as the file system allows.
    return path.with_name(f".{os.getpid()}.unfinished{path.suffix}")


def _encode_h264(frames: Iterable[Pixels], path: Path, width: int, height: int, fps: int) -> None:
    av = _import_av()
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": CRF})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            _tag_bt709(stream.codec_context)
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise OSError(str(error)) from error  # _complete_file names the file


def _tag_bt709(codec: Any) -> None:
    """Says which colours these are: unmarked, players guess by the size of the picture, and tints shift."""
    # FFmpeg numbers BT.709 as 1 in all three; range 1 is the limited one (16 to 235) of video.
    codec.colorspace = codec.color_primaries = codec.color_trc = codec.color_range = 1
