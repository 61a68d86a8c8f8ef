"""Videos from files: how many frames there are and when each is shown, and any of them by number, upright.

    clip = look(Path("dance.mp4"))                 # decodes it once and keeps the times alone
    numbers = spread(clip, 81)                     # 81 of its frames, evenly over the whole clip
    video = read(clip, numbers)                    # [3, 81, H, W] fp32 in [-1, 1]

Frames are as a player shows them: turned and mirrored by the display matrix, pixels made square. A path always means a
file (never an address), whatever its name looks like. What cannot be read raises MediaError. PyAV is imported where it
is used.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import atan2, degrees
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wan import host
from wan.errors import MediaError
from wan.inputs.files import trouble_with_file

Pixels = npt.NDArray[np.uint8]
"""[H, W, 3]."""

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif")
_READABLE = f"readable are {', '.join(VIDEO_SUFFIXES)}"
_GIB = 2**30
# Frames per second, where a file names no usable rate.
_USUAL_RATE = Fraction(25)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A video file that has been looked through."""

    path: Path
    starts_s: tuple[float, ...]
    """When each frame is shown, in seconds after the first; rising."""
    frame_s: float
    """How long a frame is shown, by the rate that the file names."""

    @property
    def num_frames(self) -> int:
        """Frames in the file, at least one."""
        return len(self.starts_s)

    def first(self, num_frames: int) -> "Clip":
        """The clip as if it ended after `num_frames` frames."""
        return replace(self, starts_s=self.starts_s[:num_frames])


def look(path: Path) -> Clip:
    """Look through the video at `path`. Raises MediaError when it is missing, empty, damaged or no video."""
    frame_s, times = 0.0, []
    for stream, frame in _frames(path):
        frame_s = float(1 / _rate(stream))
        times.append(frame.time)
    if not times:
        raise MediaError(f"video {path} has no frames", hint="copy or download it again")
    return Clip(path=path, starts_s=tuple(_starts(times, frame_s)), frame_s=frame_s)


def spread(clip: Clip, num_frames: int) -> list[int]:
    """Numbers of `num_frames` frames of `clip`, evenly over its time: the first one, .. and the last one.

    The release chooses them in the same way: the frames on screen at moments of equal distance, the last of which is
    the middle of the last frame's time. For a clip with a steady rate and `num_frames` frames, these are all of its
    frames.
    """
    if num_frames == 1:
        return [0]
    end_s = clip.starts_s[-1] + clip.frame_s / 2
    moments = [index * end_s / (num_frames - 1) for index in range(num_frames)]
    return [max(0, bisect_left(clip.starts_s, moment) - 1) for moment in moments]


def read(clip: Clip, numbers: Sequence[int]) -> Tensor:
    """The frames of `clip` with these numbers (rising, repeats allowed) as [3, F, H, W] fp32 in [-1, 1]."""
    video, done = torch.empty(0), 0
    upright: _Upright | None = None
    for number, (stream, frame) in enumerate(_frames(clip.path)):
        upright = upright or _Upright(clip.path, stream, frame)
        if number != numbers[done]:
            continue
        pixels = torch.from_numpy(upright.pixels(frame, number)).permute(2, 0, 1)
        if not done:
            video = _room(clip.path, len(numbers), *pixels.shape[1:])
        while done < len(numbers) and numbers[done] == number:
            video[:, done] = pixels
            done += 1
        if done == len(numbers):
            return video.div_(127.5).sub_(1)
    raise MediaError(f"video {clip.path} has changed while it was read", hint="try again")


def import_av() -> Any:
    """PyAV; MediaError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise MediaError("videos need PyAV, which is not installed", hint="pip install av") from error
    return av


def check_source(path: Path) -> None:
    """Raise MediaError if `path` is not a readable file, or is empty."""
    if trouble := trouble_with_file(path):
        raise MediaError(trouble.what, hint=trouble.hint)
    if path.stat().st_size == 0:
        raise MediaError(f"file {path} is empty", hint="copy or download it again")


def _frames(path: Path) -> Iterator[tuple[Any, Any]]:
    """The stream and every frame of the first video in the file, in the order in which they are shown."""
    av = import_av()
    check_source(path)
    try:
        # An absolute path, because FFmpeg would take `run` in `run:2/z.mp4` for a protocol. Metadata need not be UTF-8.
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            stream = _video_stream(path, container)
            stream.thread_type = "AUTO"
            for frame in _decoded(path, container, stream):
                yield stream, frame
    except (OSError, ValueError, av.FFmpegError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def _decoded(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """Every frame; MediaError where one is missing or damaged, which decoders do not report."""
    size_bytes = path.stat().st_size
    if any(entry.pos + entry.size > size_bytes for entry in stream.index_entries):
        raise _unreadable(path, "it is cut off, frames that it names lie behind its end")
    num_packets = num_frames = num_damaged = 0
    for packet in container.demux(stream):
        num_packets += packet.size > 0
        num_damaged += packet.is_corrupt
        for frame in packet.decode():
            num_frames += 1
            if frame.is_corrupt:
                raise _unreadable(path, f"frame {num_frames - 1} is damaged")
            yield frame
    # Packets are also marked as damaged where two streams were joined; then no frame is missing.
    if num_damaged and num_frames < num_packets:
        raise _unreadable(path, f"it is cut off or damaged, {num_frames} of {num_packets} frames are left")


def _unreadable(path: Path, reason: str) -> MediaError:
    return MediaError(f"cannot read video {path}: {reason}", hint=_READABLE)


def _video_stream(path: Path, container: Any) -> Any:
    from av.stream import Disposition

    # The picture on the cover of a song is a video stream too.
    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(f"{path} holds no video", hint=_READABLE)
    if streams[0].codec_context is None:
        raise _unreadable(path, "its codec is not known here")
    return streams[0]


def _rate(stream: Any) -> Fraction:
    """Frames per second, as the file says; used where frames have no times, and for the length of the last frame."""
    return Fraction(stream.average_rate or stream.guessed_rate or _USUAL_RATE)


def _starts(times_s: Sequence[float | None], frame_s: float) -> Iterator[float]:
    """Seconds after the first frame; where a time is missing, repeated or goes back, the rate is used instead."""
    start_s = 0.0
    yield start_s
    for before_s, now_s in pairwise(times_s):
        step_s = 0.0 if before_s is None or now_s is None else now_s - before_s
        start_s += step_s if step_s > 0 else frame_s
        yield start_s


class _Upright:
    """Turns frames into what a player shows, all with the size and the rotation of the first one."""

    def __init__(self, path: Path, stream: Any, first: Any) -> None:
        self._path = path
        # Width of a pixel divided by its height; 0 and None: not known.
        self._aspect = Fraction(stream.sample_aspect_ratio or 1)
        self._width, self._height = max(1, round(first.width * self._aspect)), first.height
        self._matrix = _display_matrix(path, first)
        _refuse_too_large(path, 1, self._height, self._width)

    def pixels(self, frame: Any, number: int) -> Pixels:
        """[H, W, 3] of a decoded frame; `number` is for messages."""
        width = frame.width * self._aspect * self._height / frame.height
        if abs(width - self._width) > 1:
            raise MediaError(
                f"video {self._path}: frame {number} has {frame.width}x{frame.height} pixels, another shape than "
                f"the first, of {self._width}x{self._height}",
                hint="make its frames alike first: ffmpeg -i IN -vf "
                f"scale={self._width}:{self._height},setsar=1 OUT",
            )
        try:
            stored: Pixels = frame.to_ndarray(
                format="rgb24", width=self._width, height=self._height, interpolation="BICUBIC"
            )
        except (OSError, ValueError) as error:
            raise _unreadable(
                self._path, f"frame {number} has no colours that can be read: {error}"
            ) from error
        return _turned(stored, self._matrix)


# What a display matrix does in the plane of the picture: x' = a x + c y, y' = b x + d y, each -1, 0 or 1.
_Turn = tuple[int, int, int, int]
_AS_STORED: _Turn = (1, 0, 0, 1)


def _display_matrix(path: Path, frame: Any) -> _Turn:
    held = frame.side_data.get("DISPLAYMATRIX")
    if held is None:
        return _AS_STORED
    a, b, _, c, d = struct.unpack("=5i", bytes(held)[:20])
    largest = max(map(abs, (a, b, c, d)))
    if not largest:
        return _AS_STORED  # an empty matrix says nothing
    turn = (round(a / largest), round(b / largest), round(c / largest), round(d / largest))
    # Either a and d or b and c are 1 or -1, and the other two are nearly 0: a rotation by a multiple of 90 degrees. A
    # degree is 1/57.
    small = max(abs(exact / largest - whole) for exact, whole in zip((a, b, c, d), turn, strict=True))
    if abs(turn[0] * turn[3]) + abs(turn[1] * turn[2]) != 1 or small > 0.02:
        raise MediaError(
            f"video {path} is shown turned by {round(degrees(atan2(c, a)))} degrees, which is no multiple of 90",
            hint="make it upright first: ffmpeg -i IN OUT",
        )
    return turn


def _turned(pixels: Pixels, turn: _Turn) -> Pixels:
    a, b, c, d = turn
    if a == 0:  # rows become columns: the new x comes from the old y by c, the new y from the old x by b
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    if d < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _refuse_too_large(path: Path, num_frames: int, height: int, width: int) -> int:
    """Bytes of [3, F, H, W] fp32; MediaError where this host could not hold them."""
    needed, there = 3 * num_frames * height * width * 4, host.memory_bytes()
    if needed > there:
        raise MediaError(
            f"video {path}: {num_frames} frame(s) of {width}x{height} take {needed / _GIB:,.1f} GiB in fp32, this "
            f"host has {there / _GIB:,.1f}",
            hint="make it smaller first: ffmpeg -i IN -vf scale=1280:-2 OUT",
        )
    return needed


def _room(path: Path, num_frames: int, height: int, width: int) -> Tensor:
    _refuse_too_large(path, num_frames, height, width)
    return torch.empty(3, num_frames, height, width)
