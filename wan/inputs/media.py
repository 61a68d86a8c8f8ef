"""Reading images, videos and masks into tensors, and writing what was made.

    image = read_image(Path("cat.jpg"))                      # [3, H, W] fp32 in [-1, 1]
    video = read_video(Path("dance.mp4"), frame_num=81)      # [3, F, H, W], spread over the clip
    save_video(frames, Path("out.mp4"), fps=16)              # H.264, plays everywhere

All tensors are on the host and upright, and a path means a file, whatever its name looks like. A file appears under its
name only when it is complete. Pixels are turned into bytes and back frame by frame, so that there is no second whole
video of floats. pillow and PyAV are imported where they are used, so ranks that do not read or write files need
neither.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wan.errors import InputError, MediaError
from wan.inputs import video_file
from wan.inputs.files import IMAGE_SUFFIXES, SAVE_VIDEO_SUFFIX, what_is_at
from wan.inputs.video_file import VIDEO_SUFFIXES, Pixels, check_source, import_av

if TYPE_CHECKING:
    from PIL.Image import Image

FPS = 16

# Visually lossless for H.264, where 23 is the usual value and each 6 less doubles the bitrate.
CRF = "17"
_IMAGE_OPTIONS: dict[str, dict[str, Any]] = {".png": {}, ".webp": {"quality": 95}}
_JPEG_OPTIONS: dict[str, Any] = {"quality": 95, "subsampling": 0}


def read_image(path: Path) -> Tensor:
    """An image as [3, H, W] fp32 in [-1, 1], turned upright where EXIF says so; alpha is dropped.

    Grey in 16 bits is rounded to 8, and white is 1 in a picture of floats.

    Raises MediaError when it is missing, empty or no image.
    """
    pixels = torch.from_numpy(np.array(open_image(path)))
    return pixels.permute(2, 0, 1).float().div_(255).sub_(0.5).div_(0.5)


def open_image(path: Path) -> "Image":
    """An image as an upright RGB pillow image; raises the same errors as read_image()."""
    from PIL import Image, ImageOps

    check_source(path)
    with _as_media_error(path), Image.open(path) as image:
        return _as_rgb(ImageOps.exif_transpose(image))


def _read_still(path: Path) -> Tensor:
    """A mask that holds for all frames; MediaError for an animated picture, of which only one frame would be used."""
    from PIL import Image

    check_source(path)
    with _as_media_error(path), Image.open(path) as image:
        num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1:
        raise MediaError(
            f"mask {path} is an animated picture of {num_frames} frames",
            hint=f"make a video of it: {', '.join(VIDEO_SUFFIXES)}",
        )
    return read_image(path)


@contextmanager
def _as_media_error(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # the class of the error depends on the decoder and the damage
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MediaError(f"cannot read image {path}: {reason}", hint=_readable(IMAGE_SUFFIXES)) from error


def read_video(path: Path, *, frame_num: int, min_frames: int = 1) -> Tensor:
    """A video as [3, F, H, W] fp32 in [-1, 1]: at most `frame_num` frames, evenly over all of its time.

    Its frame rate does not matter, and frames are not blended. Raises MediaError when the file is missing, empty,
    damaged, no video, or shorter than `min_frames`.
    """
    found = video_file.look(path)
    if found.num_frames < min_frames:
        raise MediaError(
            f"video {path} has {found.num_frames} frames, {min_frames} are needed",
            hint="use a longer video or a smaller frame_num",
        )
    return video_file.read(found, video_file.spread(found, min(found.num_frames, frame_num)))


def is_still(path: Path) -> bool:
    """Whether the mask at `path` is an image, one for all frames. Raises InputError for an unknown suffix."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        raise InputError(
            f"mask {path}: suffix {suffix!r} is not known", hint=_readable(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        )
    return suffix in IMAGE_SUFFIXES


def read_mask(path: Path, *, frame_num: int) -> Tensor:
    """A mask as [1, F, H, W] fp32 in [0, 1], white = 1; an image is one frame. Of a colour only red counts.

    Raises InputError for a suffix that is neither image nor video; else as read_image and read_video.
    """
    return as_mask(_read_still(path)[:, None] if is_still(path) else read_video(path, frame_num=frame_num))


def as_mask(colours: Tensor) -> Tensor:
    """[3, F, H, W] in [-1, 1] as a mask [1, F, H, W] in [0, 1], from its red channel."""
    return colours[:1].add(1).div_(2)


def check_output(path: Path, *, num_frames: int) -> None:
    """Refuses a file that could not be written at the end; to be called before the work begins.

    Raises InputError for a suffix that does not fit `num_frames`, MediaError for a folder in the place of the file, a
    name that is too long, or a folder that is missing or not writable (a file is made there and removed).
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
    if what_is_at(path.parent) != "folder":
        raise MediaError(
            f"cannot write {path}: there is no folder {path.parent}", hint="make the folder first"
        )
    # This raises if the name is too long; touch() below does not, because the name of the unfinished file is short.
    found = what_is_at(path)
    if found == "folder":
        raise MediaError(f"cannot write {path}: it is a folder", hint="choose another name")
    if found == "other":
        raise MediaError(f"cannot write {path}: it is a pipe, socket or device", hint="choose another name")
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
    """`image` in 8-bit RGB; convert() alone would cut wider greys at 255, which is nearly black in 16 bits."""
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    white = 1.0 if image.mode == "F" else 65535.0
    grey = np.asarray(image, dtype=np.float64) * (255 / white)
    return Image.fromarray(np.nan_to_num(grey).round().clip(0, 255).astype(np.uint8)).convert("RGB")


def _readable(suffixes: tuple[str, ...]) -> str:
    return f"readable are {', '.join(suffixes)}"


def _frames_as_bytes(pieces: Iterable[Tensor]) -> Iterator[Pixels]:
    for piece in pieces:
        for index in range(piece.shape[1]):
            yield _as_bytes(piece[:, index])


def _as_bytes(image: Tensor) -> Pixels:
    """[3, H, W] in [-1, 1] to [H, W, 3] bytes, rounded to the nearest; NaN is black."""
    scaled = image.float().mul(127.5).add_(127.5).round_().clamp_(0, 255).nan_to_num_(0.0)
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
    # Always short, because the name of `path` may be as long as the file system allows.
    return path.with_name(f".{os.getpid()}.unfinished{path.suffix}")


def _encode_h264(frames: Iterable[Pixels], path: Path, width: int, height: int, fps: int) -> None:
    av = import_av()
    try:
        # An absolute path, because FFmpeg would take `run` in a folder `run:2` for a protocol.
        with av.open(
            str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"}
        ) as container:
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
    """Marks the colours as BT.709: without the mark, players guess from the size of the picture, and colours shift."""
    # FFmpeg numbers BT.709 as 1 in all three; range 1 is the limited one (16 to 235) of video.
    codec.colorspace = codec.color_primaries = codec.color_trc = codec.color_range = 1
