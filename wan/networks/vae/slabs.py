"""Which part of an image a chain of convolutions must read to make one slab of its output exactly.

    chain = [Reach(before=2, after=2), Reach(before=1, after=1, zoom=2)]
    windows(chain, Window(8, 16), size=40)     # what each link reads, then the slab itself

Everything here is arithmetic on integers along one image side. A layer is run on its window as if the window
were the image, with its usual zero padding; where the window was cut out of a larger image the outermost
results are wrong, and the next window leaves exactly those out. So slabs are exact: nothing is blended.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SLAB_BYTES = 3 * 2**30
"""Working set of a slab that the automatic choice stays under."""
DECODE_FRAMES = 25
"""Working set of decode, in frames of base_dim channels at full size: 21.4 remembered, 3.5 in work.

Remembered: six convolutions of two frames at full size (12); six at half size, where twice the channels make
a frame half as large (6); six at quarter size (2.8); the two convolutions over time (0.6). In work: the last
upsampling, which reads 192 channels at full size.
"""
ENCODE_FRAMES = 17
"""The same for encode: 8 at full size, 3.5 at half, 1.8 at quarter, 0.3 over time; 3 in work."""


class Window(NamedTuple):
    """Positions start <= i < stop along one side of an image."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """How far a layer sees: output i reads positions i*stride - before .. i*stride + after of its input.

    With `zoom`, each input position stands for that many equal ones: nearest upsampling, then a convolution.
    """

    before: int = 0
    after: int = 0
    stride: int = 1
    zoom: int = 1

    def reads(self, made: Window, size: int) -> Window:
        """The input, `size` positions in all, that the outputs `made` depend on."""
        first = made.start * self.stride - self.before
        last = (made.stop - 1) * self.stride + self.after
        return Window(max(0, first // self.zoom), min(size, last // self.zoom + 1))

    def scaled(self, position: int) -> int:
        """Where input `position` lies in the output."""
        return position * self.zoom // self.stride


def windows(chain: Sequence[Reach], slab: Window, size: int) -> list[Window]:
    """What each link of `chain` must read so that the last one makes `slab`, and `slab` itself at the end.

    `size` is the length of the image side at the input of the chain.
    """
    sizes = [size]
    for reach in chain[:-1]:
        sizes.append(reach.scaled(sizes[-1]))
    needed = [slab]
    for reach, length in zip(reversed(chain), reversed(sizes), strict=True):
        needed.append(reach.reads(needed[-1], length))
    return needed[::-1]


def crops(chain: Sequence[Reach], read: Sequence[Window]) -> list[Window]:
    """What to keep of each link's output, counted from where that output starts."""
    kept = []
    for reach, before, after in zip(chain, read, read[1:], strict=False):
        start = reach.scaled(before.start)
        kept.append(Window(after.start - start, after.stop - start))
    return kept


def split(size: int, num_slabs: int) -> list[Window]:
    """`size` positions as at most `num_slabs` slabs, none empty, as equal as integers allow."""
    count = min(num_slabs, size)
    return [Window(i * size // count, (i + 1) * size // count) for i in range(count)]


def choose_slabs(frame_bytes: int, num_frames: int) -> int:
    """The smallest number of slabs that keeps `num_frames` frames of `frame_bytes` under SLAB_BYTES for each slab."""
    return max(1, -(-frame_bytes * num_frames // SLAB_BYTES))
