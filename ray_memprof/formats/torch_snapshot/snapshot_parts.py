"""Types for the parts of a memory snapshot while its pickle is read: they keep no more than an import needs.

A snapshot as Python objects takes ten times the size of its file. Here frames and stacks are numbers, and blocks are
columns. What no import asks for (annotations, the history of blocks, keys of future versions) is dropped on reading.
"""

from array import array
from collections.abc import Iterator
from typing import Any, TypeAlias

from ray_memprof.wording import frame_name, shortened

FrameLine: TypeAlias = tuple[str, str, int]
"""Function, file, line."""
TOP_KEYS = ("segments", "device_traces", "allocator_settings", "ray_memprof")
SEGMENT_KEYS = (
    "address", "blocks", "device", "is_expandable", "requested_size", "segment_pool_id", "segment_type", "stream",
    "total_size",
)  # fmt: skip
MOST_KEYS = 32
"""The most keys of an event; no version of torch writes more."""
SETTINGS_KEYS = ("allocator_settings", "ray_memprof")
_STATES = ("inactive", "active_allocated", "active_pending_free")
_NO_PLACE = 2**64 - 1
_MOST_NAME_LETTERS = 1000
"""The most letters of a frame's function and node together: a small file could name a long text in many frames."""
ENTRY_BYTES = 100
"""Memory of a dictionary's entry, about."""


class Gone:
    """Stands for an event or block that was complete and has been handed on."""


class Unasked:
    """Stands for a part that no import asks for."""


GONE, UNASKED = Gone(), Unasked()


class Event(dict[str, Any]):
    """An event that is being read."""


class Segment(dict[str, Any]):
    """A segment that is being read, or has been read."""


class Segments(list[Segment]):
    """The segments of the snapshot."""


class Settings(dict[str, Any]):
    """The settings of the allocator, or what an export of this project says of itself."""


class Block(dict[str, Any]):
    """A block that is being read; when it is complete it becomes a row of Blocks."""


class Trace(list[Any]):
    """Stands for the list of a device's events; it stays empty, since each event is handed on."""

    def __init__(self, device: int) -> None:
        self.device = device


class Frame:
    """A line of a Python stack; `number` is -1 while the line is being read."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = -1


class Stack:
    """The Python stack of an event: first its frames, the innermost first; later its number, -1 if it has no frames."""

    __slots__ = ("frames", "number")

    def __init__(self) -> None:
        self.frames: array[int] | None = array("i")
        self.number = -1


class KnownStacks:
    """The Python stacks of a file, each once, by number; iterating over them gives their lines, the innermost first."""

    def __init__(self) -> None:
        self._frames: dict[FrameLine, int] = {}
        self._stacks: dict[bytes, int] = {}
        self.kept_bytes = 0
        """Memory that they take, about."""

    def frame(self, line: FrameLine, node: object = None) -> int:
        """The number of a frame; `node` is the name of the FX graph's node that its line runs, if it is a text."""
        if type(node) is str and len(node) + len(line[0]) <= _MOST_NAME_LETTERS:
            line = frame_name(line[0], node), *line[1:]
            self.kept_bytes += len(line[0])
        before = len(self._frames)
        number = self._frames.setdefault(line, before)
        if len(self._frames) > before:
            self.kept_bytes += 2 * ENTRY_BYTES
        return number

    def stack(self, frames: "array[int]") -> int:
        """The number of a stack, given the numbers of its frames."""
        before = len(self._stacks)
        number = self._stacks.setdefault(frames.tobytes(), before)
        if len(self._stacks) > before:
            self.kept_bytes += 8 * len(frames) + 2 * ENTRY_BYTES
        return number

    def __iter__(self) -> Iterator[tuple[FrameLine, ...]]:
        frames = list(self._frames)
        for numbers in self._stacks:
            yield tuple(frames[number] for number in array("i", numbers))


class Blocks:
    """The blocks of a segment, in order; iterating over them gives dictionaries."""

    __slots__ = ("_numbers", "_states")

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._states = bytearray()

    def add(self, block: dict[str, Any]) -> None:
        """Add a block.

        Raises:
            KeyError: it has no size or state.
            TypeError: a value has the wrong type.
            ValueError: a number is not possible.
        """
        # Before torch 2.0.1 a block had no address: each block begins where the one before it ends.
        address = as_address(block["address"]) if "address" in block else _NO_PLACE
        size = as_bytes(block["size"])
        requested = as_bytes(block.get("requested_size", size))
        # Older versions call active_pending_free active_awaiting_free.
        state = block["state"] if as_text(block["state"]) in _STATES else _STATES[2]
        self._numbers.extend((address, size, requested))
        self._states.append(_STATES.index(state))

    def place(self, address: int) -> None:
        """Give an address to each block without one; the segment begins at `address`."""
        numbers = self._numbers
        for at in range(0, len(numbers), 3):
            if numbers[at] == _NO_PLACE:
                numbers[at] = address
            address = (numbers[at] + numbers[at + 1]) % 2**64

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        numbers = iter(self._numbers)
        for state, address, size, requested in zip(self._states, numbers, numbers, numbers, strict=True):
            yield {"address": address, "size": size, "requested_size": requested, "state": _STATES[state]}


def as_address(value: object) -> int:
    """An address or a handle: all 64 bits count, and C++ writes numbers from 2^63 on as negative."""
    number = as_whole(value)
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"{shown(value)} is no number of 64 bits")
    return number % 2**64


MOST_BYTES = 2**57
"""The most bytes of a block or a segment; no address has more bits."""


def as_bytes(value: object) -> int:
    """A size in bytes."""
    number = as_whole(value)
    if not 0 <= number <= MOST_BYTES:
        raise ValueError(f"{shown(value)} is no number of bytes")
    return number


def as_whole(value: object) -> int:
    """A whole number; a truth value is not one."""
    if type(value) is not int:
        raise TypeError(f"{shown(value)} is no number")
    return value


def as_text(value: object) -> str:
    """A text."""
    if type(value) is not str:
        raise TypeError(f"{shown(value)} is no text")
    return value


def shown(value: object) -> str:
    """A value as a message shows it: always short."""
    if not isinstance(value, int | str):
        return f"a {type(value).__name__}" if type(value) in (float, tuple, dict, list) else "something else"
    return shortened(ascii(value), 40)
