"""Reads events by the thousand with numpy, where their bytes have the shape of an event that was read before.

    shape = learn(raw, memo, objects, num_before)          # the bytes of an event that was read one by one
    run = shapes.take(data, at, end, memo, objects)        # events from `at` on that have a known shape

A trace repeats itself: the same keys in the same order, the same opcodes, and numbers of a few widths. Two events of
a shape differ only in their numbers, in the text that they carry, and in the place of the memo that they refer to for
their stack. All other bytes are compared; an event that differs in them is read by itself, and may give a new shape.
"""

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_memprof.formats.torch_snapshot.snapshot_parts import Stack

MOST_SHAPES = 256
MOST_EVENT_BYTES = 512
_NUMBERS = {"addr": "addr", "device_free": "addr", "size": "size", "stream": "stream", "time_us": "time_us"}
_UNSIGNED = ("addr", "stream")
_TEXT_OF_EVENT = -1
_NOTHING = -2
_GET, _LONG_GET, _MEMOIZE, _PUT, _LONG_PUT = b"hj\x94qr"
_PAIR = 0x86
_CONSTANTS = b"N\x88\x89)"

Bytes = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int64]


@dataclass(slots=True)
class Shape:
    """Where in its bytes an event of this shape has each part."""

    mask: Bytes
    """255 for each byte that all events of the shape share."""
    shared: Bytes
    action: str
    numbers: dict[str, tuple[int, int, bool]]
    """Offset, width and whether there is a sign, by column."""
    memo: list[int]
    """What an event adds to the memo, as numbers of objects; _TEXT_OF_EVENT stands for the text that it carries."""
    puts: list[tuple[int, int, int]]
    """Index into `memo`, and offset and width of the place that the event names for that object."""
    text: int = _NOTHING
    """Number of the text that all events of the shape carry."""
    text_at: tuple[int, int] | None = None
    """Offset and width of the text itself."""
    text_ref: tuple[int, int] | None = None
    """Offset and width of the reference to the text's place in the memo."""
    stack_ref: tuple[int, int] | None = None
    pool: tuple[int, int] | None = None


@dataclass(slots=True)
class Run:
    """Events in order, by column."""

    end: int
    """Where in the data the last event ends."""
    actions: list[str]
    pools: list[tuple[int, int] | None]
    """Memory pools, one for each shape, as in `actions`; None: the events do not name one."""
    action: Whole
    """Index into actions and pools."""
    texts: Whole
    """Numbers of objects; _NOTHING: no text."""
    stacks: Whole
    """Numbers of objects; _NOTHING: no stack."""
    columns: dict[str, npt.NDArray[np.uint64]]
    """addr, size, stream, time_us: 64 bits."""
    memo: bytes
    """What the events add to the memo, 4 bytes for each entry."""


class _Scan:
    """Reads the bytes of one event once more, to find where each part is."""

    def __init__(self, raw: bytes, memo: "array[int]", objects: list[Any], num_before: int) -> None:
        self._raw, self._memo, self._objects, self._before = raw, memo, objects, num_before
        self._at = 1
        self._mask = np.full(len(raw), 255, np.uint8)
        self._num_puts = 0
        self.shape = Shape(self._mask, self._mask, "", {}, memo[num_before:].tolist(), [])

    def scan(self) -> Shape | None:
        """The shape of the event; None: no shape that other events will have."""
        raw, shape = self._raw, self.shape
        self._skip_put()
        if raw[self._at] != 0x28:
            return None
        self._at += 1
        while raw[self._at] != 0x75:
            key = self._referred()
            if not isinstance(key, str) or not self._value(key):
                return None
        has_all = shape.action and shape.numbers.keys() >= {"addr", "size", "time_us"}
        if not has_all or self._at != len(raw) - 1 or self._num_puts != len(shape.memo):
            return None
        shape.shared = np.frombuffer(raw, np.uint8) & self._mask
        return shape

    def _referred(self) -> Any:
        """The object that a reference refers to; None: there is no reference here."""
        code, at = self._raw[self._at], self._at + 1
        width = {_GET: 1, _LONG_GET: 4}.get(code)
        if width is None:
            return None
        self._at = at + width
        return self._objects[self._memo[int.from_bytes(self._raw[at : self._at], "little")]]

    def _skip_put(self) -> None:
        code = self._raw[self._at]
        width = {_MEMOIZE: 0, _PUT: 1, _LONG_PUT: 4}.get(code)
        if width is None:
            return
        if width:
            self.shape.puts.append((self._num_puts, self._at + 1, width))
            self._vary(self._at + 1, width)
        self._num_puts += 1
        self._at += 1 + width

    def _vary(self, at: int, width: int) -> None:
        self._mask[at : at + width] = 0

    def _value(self, key: str) -> bool:
        """Whether the value of `key` can be part of a shape."""
        code, at = self._raw[self._at], self._at + 1
        known = True
        if key == "pool_id":
            known = self._pool()
        elif code in (_GET, _LONG_GET):
            known = self._reference(key)
        elif code in b"KMJ\x8a":
            known = self._number(key, code, at)
        elif code in b"\x8cX":
            width = 1 if code == 0x8C else 4
            self._at = at + width + int.from_bytes(self._raw[at : at + width], "little")
            known = self._text(key, at + width)
        elif code == 0x5D and key == "frames":
            self._at = at
            self._skip_put()
            if self._raw[self._at : self._at + 2] == b"(e":  # C++ writes a list without members like this
                self._at += 2
            return True
        elif code in _CONSTANTS and key not in ("action", "user_metadata") and key not in _NUMBERS:
            self._at = at
        else:
            known = False
        self._skip_put()
        return known

    def _pool(self) -> bool:
        """Read a pool: two small numbers, the same for all events of a shape."""
        numbers = []
        for _ in range(2):
            width = {0x4B: 1, 0x4D: 2, 0x4A: 4}.get(self._raw[self._at], 0)
            numbers.append(int.from_bytes(self._raw[self._at + 1 : self._at + 1 + width], "little"))
            self._at += 1 + width
        self.shape.pool = numbers[0], numbers[1]
        self._at += 1
        return self._raw[self._at - 1] == _PAIR

    def _reference(self, key: str) -> bool:
        at = self._at + 1
        value = self._referred()
        place = at, self._at - at
        if key == "frames":
            self.shape.stack_ref = place
            self._vary(*place)
            return isinstance(value, Stack)
        if not isinstance(value, str) or key in _NUMBERS:
            return False
        if key == "user_metadata":
            self.shape.text_ref = place
            self._vary(*place)
        elif key == "action":
            self.shape.action = value
        return True

    def _number(self, key: str, code: int, at: int) -> bool:
        widths = {0x4B: 1, 0x4D: 2, 0x4A: 4}
        start, width = (at + 1, self._raw[at]) if code == 0x8A else (at, widths[code])
        self._at = start + width
        column = _NUMBERS.get(key)
        if width == 9 and column in _UNSIGNED and self._raw[start + 8] == 0:
            width = 8  # a number from 2^63 on has a ninth byte, a zero
            self.shape.numbers[column] = start, width, False
        elif not 1 <= width <= 8 or key in ("action", "user_metadata", "frames"):
            return False
        elif column is not None:
            self.shape.numbers[column] = start, width, code in (0x4A, 0x8A)
        self._vary(start, width)
        return True

    def _text(self, key: str, start: int) -> bool:
        if key in _NUMBERS or key == "frames":
            return False
        value = str(self._raw[start : self._at], "utf-8", "replace")
        if key == "action":
            self.shape.action = value
        elif key == "user_metadata":
            self.shape.text_at = start, self._at - start
            self._vary(start, self._at - start)
            if self._raw[self._at] in (_MEMOIZE, _PUT, _LONG_PUT):
                self.shape.memo[self._num_puts] = _TEXT_OF_EVENT
        return True


def learn(raw: bytes, memo: "array[int]", objects: list[Any], num_before: int) -> Shape | None:
    """The shape of an event.

    Args:
        raw: its bytes, from EMPTY_DICT to SETITEMS.
        memo: numbers of objects, after the event was read.
        objects: the objects, by number.
        num_before: entries of the memo before the event.
    """
    try:
        return _Scan(raw, memo, objects, num_before).scan()
    except IndexError:  # another order of opcodes
        return None


def starts_of(data: bytes, end: int) -> Whole:
    """Where dictionaries may begin, before `end`; bytes inside a number that look the same are among these places."""
    codes = np.frombuffer(data, np.uint8)
    found: Whole = np.flatnonzero(codes[: max(0, min(end, len(codes) - 8))] == 0x7D)
    after = codes[found + 1]
    is_start = (after == 0x28) | ((after == _MEMOIZE) & (codes[found + 2] == 0x28))
    is_start |= (after == _PUT) & (codes[found + 3] == 0x28)
    is_start |= (after == _LONG_PUT) & (codes[found + 6] == 0x28)
    starts: Whole = found[is_start]
    return starts


@dataclass(slots=True)
class Shapes:
    """All shapes that are known, and which events of one window of the file have them."""

    text_number: Any
    """Gives the number of a text."""
    known: list[Shape] = field(default_factory=list)
    _data: bytes = b""
    _starts: Whole = field(default_factory=lambda: np.zeros(0, np.int64))
    _lengths: Whole = field(default_factory=lambda: np.zeros(0, np.int64))
    _which: Whole = field(default_factory=lambda: np.zeros(0, np.int64))
    _eights: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """The eight bytes from each place on, as a number."""
    _num_met: int = 0
    _num_learned: int = 0

    def wants(self) -> bool:
        """Whether it pays to learn one more shape; it does not if every event has a shape of its own."""
        return self._num_learned < MOST_SHAPES + self._num_met // 16

    def add(self, shape: Shape | None) -> None:
        """Add a shape; if there are too many, forget the others first."""
        self._num_learned += 1
        if shape is None:
            return
        if len(self.known) == MOST_SHAPES:
            self.known.clear()
            self._which[:] = -1
        self.known.append(shape)
        self._match(len(self.known) - 1)

    def forget(self) -> None:
        """Forget all shapes, because places of the memo now hold other objects."""
        self.known.clear()
        self._which[:] = -1

    def _look(self, data: bytes, end: int) -> None:
        """Find the events of a window."""
        self._data, self._starts = data, starts_of(data, end)
        self._eights = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
        codes = np.frombuffer(data, np.uint8)
        ends = self._starts[1:].copy()
        # Lists are written a thousand members at a time: between two events there may be APPENDS and MARK.
        ends[(codes[ends - 2] == 0x65) & (codes[ends - 1] == 0x28)] -= 2
        self._lengths = np.append(ends - self._starts[:-1], 0) if len(self._starts) else self._starts
        self._which = np.full(len(self._starts), -1, np.int64)
        for number in range(len(self.known)):
            self._match(number)

    def _match(self, number: int) -> None:
        shape = self.known[number]
        at = np.flatnonzero((self._lengths == len(shape.mask)) & (self._which < 0))
        if not len(at):
            return
        codes = _windows(self._data, len(shape.mask))[self._starts[at]]
        codes &= shape.mask
        self._which[at[(codes == shape.shared).all(axis=1)]] = number

    def take(self, data: bytes, at: int, end: int, memo: "array[int]") -> Run | None:
        """The events from `at` on, as far as their shapes are known; None: not even the first one's is."""
        if data is not self._data:
            self._look(data, end)
        first = int(np.searchsorted(self._starts, at))
        if first == len(self._starts) or self._starts[first] != at or self._which[first] < 0:
            return None
        rest = self._which[first:]
        unknown = np.flatnonzero(rest < 0)
        # Between two events that follow one another there is nothing else.
        num = int(unknown[0]) if len(unknown) else len(rest)
        which, starts = rest[:num], self._starts[first : first + num]
        num = min([num, *(self._fit(which, starts, memo))])
        if not num:
            return None
        self._num_met += num
        return self._run(which[:num], starts[:num], memo)

    def _fit(self, which: Whole, starts: Whole, memo: "array[int]") -> list[int]:
        """Indices of events before which a run must end: they name other places of the memo than they should."""
        kinds = [self.known[number] for number in range(len(self.known))]
        sizes = np.array([len(shape.memo) for shape in kinds])[which]
        before = len(memo) + np.cumsum(sizes) - sizes
        misfits = []
        for number in np.unique(which):
            shape = kinds[number]
            places = np.flatnonzero(which == number)
            wrong = np.zeros(len(places), bool)
            for index, offset, width in shape.puts:
                named = self._field(starts[places] + offset, width)
                # One byte names only the first 256 places; no file begins again at 0 after them.
                wrong |= named != (before[places] + index).astype(np.uint64)
            for place in (shape.text_ref, shape.stack_ref):
                if place is not None:
                    wrong |= self._field(starts[places] + place[0], place[1]) >= np.uint64(len(memo))
            if wrong.any():
                misfits.append(int(places[np.argmax(wrong)]))
        return misfits

    def _field(self, at: Whole, width: int) -> npt.NDArray[np.uint64]:
        """The numbers of `width` bytes at these places, without a sign."""
        numbers = self._eights[at]
        return numbers if width == 8 else numbers & np.uint64((1 << 8 * width) - 1)

    def _run(self, which: Whole, starts: Whole, memo: "array[int]") -> Run:
        num = len(which)
        used, local = np.unique(which, return_inverse=True)
        shapes = [self.known[number] for number in used]
        columns = {name: np.zeros(num, np.uint64) for name in ("addr", "size", "stream", "time_us")}
        texts, stacks = np.full(num, _NOTHING, np.int64), np.full(num, _NOTHING, np.int64)
        added = np.full((num, max(len(shape.memo) for shape in shapes)), _NOTHING, np.int32)
        for number, shape in enumerate(shapes):
            places = np.flatnonzero(local == number)
            at = starts[places]
            for name, (offset, width, is_signed) in shape.numbers.items():
                columns[name][places] = _with_sign(self._field(at + offset, width), width, is_signed)
            texts[places] = self._texts(shape, at, memo)
            if shape.stack_ref is not None:
                stacks[places] = self._referred(at, shape.stack_ref, memo)
            if shape.memo:
                added[places, : len(shape.memo)] = shape.memo
                if _TEXT_OF_EVENT in shape.memo:
                    added[places, shape.memo.index(_TEXT_OF_EVENT)] = texts[places]
        last = starts[-1] + len(self.known[which[-1]].mask)
        actions = [shape.action for shape in shapes]
        pools = [shape.pool for shape in shapes]
        return Run(
            int(last), actions, pools, local, texts, stacks, columns, added[added != _NOTHING].tobytes()
        )

    def _referred(self, at: Whole, place: tuple[int, int], memo: "array[int]") -> Whole:
        indices = self._field(at + place[0], place[1]).astype(np.int64)
        objects: Whole = np.frombuffer(memo, np.int32)[indices].astype(np.int64)
        return objects

    def _texts(self, shape: Shape, at: Whole, memo: "array[int]") -> Any:
        """Numbers of the texts that events of a shape carry."""
        if shape.text_ref is not None:
            return self._referred(at, shape.text_ref, memo)
        if shape.text_at is None:
            return shape.text
        offset, width = shape.text_at
        if width == 0:
            return self.text_number(b"")
        codes = _windows(self._data, width)[at + offset]
        changes = np.flatnonzero((codes[1:] != codes[:-1]).any(axis=1)) + 1
        begins = np.concatenate(([0], changes))
        numbers = [self.text_number(codes[begin].tobytes()) for begin in begins]
        return np.repeat(numbers, np.diff(np.append(begins, len(at))))


def _windows(data: bytes, width: int) -> Bytes:
    """For each place of `data`, the `width` bytes from there on."""
    return np.ndarray((len(data) - width + 1, width), np.uint8, data, strides=(1, 1))


def _with_sign(numbers: npt.NDArray[np.uint64], width: int, is_signed: bool) -> npt.NDArray[np.uint64]:
    """The same numbers in 64 bits, with the sign that they have in `width` bytes."""
    if not is_signed or width == 8:
        return numbers
    sign = np.uint64(1 << (8 * width - 1))
    return (numbers ^ sign) - sign
