"""Small videos made for a test: any codec, container, clock and display matrix."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

av = pytest.importorskip("av")

Pixels = npt.NDArray[np.uint8]


def grey(level: int, height: int = 16, width: int = 32) -> Pixels:
    """A frame of one grey, 0 - 255."""
    return np.full((height, width, 3), level, dtype=np.uint8)


def write_frames(
    path: Path,
    frames: Iterable[Pixels],
    *,
    fps: int | Fraction = 16,
    codec: str = "libx264",
    pix_fmt: str = "yuv444p",
    times: Iterable[int] | None = None,
    time_base: Fraction | None = None,
    prepare: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Write `frames` (of one size, lossless with libx264) to `path`; `times` in `time_base`, by default 0, 1/fps, .."""
    frames = list(frames)
    with av.open(str(path.absolute()), "w") as container:
        options = {"crf": "0"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = pix_fmt
        if time_base is not None:
            stream.codec_context.time_base = time_base
        prepare(stream)
        for pixels, time in zip(frames, times or range(len(frames)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, time_base or 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def joined(path: Path, *parts: Path) -> Path:
    """The bytes of `parts` one after the other: of MPEG transport streams, a clip whose clock starts again."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path
