"""Reads the pickle of a memory snapshot event by event, and never runs anything that the pickle asks for.

    snapshot = PickleStream(file, name, on_event).read()     # on_event(device, event) for each event of device_traces

Pickles come from strangers, and Python's own readers do not help, for two reasons: they call what a file names unless
every name is refused, and their memo keeps each object until the end, five to six times the size of the file. A
snapshot consists of dictionaries, lists, tuples, texts and numbers. Only the opcodes that make those are known here,
so there is nothing to call; anything else that a file asks for is refused by name.

An event is handed on as soon as it is complete, and its place in the memo is given up. Of the rest only what an import
needs is kept (snapshot_parts.py): the memo's table (4 bytes for an entry, three or four entries for an event), each
text and each frame once, and the segments. What is kept is counted in bytes, and a small file that would take much
memory is refused. Protocols 2 to 5 are read, as pickle, torch's own C++ writer and this project's export write them.
Lib/pickletools.py of CPython describes every opcode of the format.
"""

import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from ray_memprof.formats.torch_snapshot.event_shapes import MOST_EVENT_BYTES, Run, Shapes, learn
from ray_memprof.formats.torch_snapshot.pickle_window import CALLS, Window
from ray_memprof.formats.torch_snapshot.snapshot_parts import (
    ENTRY_BYTES,
    GONE,
    MOST_KEYS,
    SEGMENT_KEYS,
    SETTINGS_KEYS,
    TOP_KEYS,
    UNASKED,
    Block,
    Blocks,
    Event,
    Frame,
    FrameLine,
    Gone,
    KnownStacks,
    Segment,
    Segments,
    Settings,
    Stack,
    Trace,
    Unasked,
    shown,
)

MAX_DEPTH = 64
"""The most marks inside each other; a snapshot has seven."""
FREE_BYTES = 24 * 2**20
BYTES_A_BYTE = 5
"""What may be kept: BYTES_A_BYTE bytes for each byte of the file, and FREE_BYTES more."""

_BATCH = 1000
"""Members that pickle adds to a list at once."""
_NUMBER_BYTES, _OPEN_BYTES, _FRAME_BYTES = 40, 80, 50
"""Memory of a number or reference in a list, of a list or dictionary, and of a Frame."""
_GLOBAL, _INST, _STACK_GLOBAL = 0x63, 0x69, 0x93
_MARK, _STOP = 0x28, 0x2E
_from_bytes = int.from_bytes


_FORGOTTEN = frozenset((Gone, Unasked, Event, Segment, Segments, Block, Blocks, Trace, dict, list, Settings))
_LISTS = frozenset((Trace, Stack, Blocks, Segments))
_PLAIN = frozenset((str, int, float, bool, type(None)))


def _kind(value: object) -> str:
    return "something else" if type(value) is Unasked else f"a {type(value).__name__}"


class PickleStream(Window):
    """One file, which is read once.

    Args:
        file: the pickle.
        name: the file's name, for messages.
        on_event: takes the number of a device and an event: a dictionary whose "frames", if any, are a Stack.
        on_run: takes the number of a device and many events at once; without it all events come one by one.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        on_event: Callable[[int, dict[str, Any]], None],
        on_run: Callable[[int, Run], None] | None = None,
    ) -> None:
        super().__init__(file, name)
        self._on_event, self._on_run = on_event, on_run
        self.objects: list[Any] = [UNASKED]
        """What the memo refers to, by number."""
        self._known = KnownStacks()
        self._kept_bytes = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo = array("i")
        self._texts: dict[str, tuple[str, int]] = {}
        self._shapes = Shapes(lambda raw: self._number_of(self._text(raw)))
        self._traces: list[Any] | None = None
        self._num_traces = 0
        self._trace_depth = self._settings_depth = -1
        """How many marks are around the events or settings that are being read; -1: outside of them."""
        self._event: tuple[bytes, int, int] = b"", 0, 0
        """The window, the place in it and the number of memo entries when the event began."""
        self._result: Any = None
        self._ops: list[Callable[[], None]] = [self._unknown] * 256
        for code, operation in self._operations().items():
            self._ops[code] = operation

    @property
    def stacks(self) -> Iterator[tuple[FrameLine, ...]]:
        """Python stacks of events, in the order of their numbers; in each the innermost frame comes first."""
        return iter(self._known)

    def read(self) -> dict[str, Any]:
        """The snapshot without its events.

        Raises:
            NotASnapshot: the file is no snapshot, is damaged, or asks for something.
        """
        try:
            self._refill()
            if self._num_read and self._data[0] != 0x80:
                self._refuse_kind()
            while self._result is None:
                self._ops[self._simple()]()
        except (IndexError, TypeError, ValueError, OverflowError, KeyError) as error:
            if self._is_past_end():
                self._cut_off()
            self._refuse(f"is damaged: {error}")
        if self._is_past_end():
            self._cut_off()
        return self._snapshot()

    def _snapshot(self) -> dict[str, Any]:
        if type(self._result) is not dict or not isinstance(self._result.get("device_traces"), list):
            self._refuse("has no device_traces: it is no snapshot of torch's allocator")
        if self._result["device_traces"] is not self._traces:
            self._refuse("has its device_traces in another place than a snapshot has them")
        return dict(self._result)

    # --------------------------------------------------------------------------------
    # Bytes

    def _check_memory(self) -> None:
        taken = {
            "is nested or filled as no snapshot is": sum(map(len, self._marks), len(self._stack))
            * _OPEN_BYTES,
            "refers to more objects than a snapshot has": 12 * len(self._memo) + 8 * len(self.objects),
            "has more in it than a snapshot of its size has": self._kept_bytes + self._known.kept_bytes,
        }
        if sum(taken.values()) > FREE_BYTES + BYTES_A_BYTE * self._num_read:
            most = max(taken, key=lambda what: taken[what])
            self._refuse(f"{most}: it would take too much memory")

    def _simple(self) -> int:
        """Read numbers, texts and references; returns the first opcode that is something else, after reading it.

        This loop sees nine of ten opcodes: so all that it uses is local, and the likeliest opcodes come first.
        """
        data, at, limit = self._data, self._at, self._limit
        stack, memo, objects = self._stack, self._memo, self.objects
        push = stack.append
        while True:
            if at > limit:
                self._at = at
                self._refill()
                data, at, limit = self._data, self._at, self._limit
            code = data[at]
            if code == 0x68:  # BINGET
                push(objects[memo[data[at + 1]]])
                at += 2
            elif code == 0x8A:  # LONG1
                end = at + 2 + data[at + 1]
                push(_from_bytes(data[at + 2 : end], "little", signed=True))
                at = end
            elif code == 0x4B:  # BININT1
                push(data[at + 1])
                at += 2
            elif code == 0x6A:  # LONG_BINGET
                push(objects[memo[_from_bytes(data[at + 1 : at + 5], "little")]])
                at += 5
            elif code == 0x94:  # MEMOIZE
                memo.append(self._number_of(stack[-1]))
                at += 1
            elif code == 0x4A:  # BININT
                push(_from_bytes(data[at + 1 : at + 5], "little", signed=True))
                at += 5
            elif code == 0x8C:  # SHORT_BINUNICODE
                end = at + 2 + data[at + 1]
                push(self._text(data[at + 2 : end]))
                at = end
            elif code == 0x4D:  # BININT2
                push(data[at + 1] | data[at + 2] << 8)
                at += 3
            else:
                self._at = at + 1
                return code

    def _text(self, raw: bytes) -> str:
        """A text; bytes that are not UTF-8, which C++ may write, are replaced."""
        text = str(raw, "utf-8", "replace")
        known = self._texts.get(text)
        if known is not None:
            return known[0]
        self._kept_bytes += sys.getsizeof(text) + 2 * ENTRY_BYTES
        self.objects.append(text)
        self._texts[text] = text, len(self.objects) - 1
        return text

    def _number_of(self, value: Any) -> int:
        """The number of a value among the objects; 0 for what was handed on or what no import asks for."""
        kind = type(value)
        if kind is str:
            return self._texts[value][1]
        if kind in _FORGOTTEN:
            return 0
        self.objects.append(value)
        return len(self.objects) - 1

    # --------------------------------------------------------------------------------
    # Opcodes

    def _operations(self) -> dict[int, Callable[[], None]]:
        return {
            0x80: self._protocol,
            0x95: self._frame,
            _MARK: self._mark,
            _STOP: self._stop,
            0x7D: self._empty_dict,
            0x5D: self._empty_list,
            0x29: lambda: self._stack.append(()),
            0x4E: lambda: self._stack.append(None),
            0x88: lambda: self._stack.append(True),
            0x89: lambda: self._stack.append(False),
            0x47: lambda: self._stack.append(struct.unpack(">d", self._take(8))[0]),
            0x58: lambda: self._stack.append(self._text(self._take(self._number(4)))),
            0x8D: lambda: self._stack.append(self._text(self._take(self._number(8)))),
            0x71: lambda: self._put(self._number(1)),
            0x72: lambda: self._put(self._number(4)),
            0x61: lambda: self._extend([self._stack.pop()]),
            0x65: lambda: self._extend(self._to_mark()),
            0x73: lambda: self._set_items([self._stack.pop(), self._stack.pop()][::-1]),
            0x75: lambda: self._set_items(self._to_mark()),
            0x74: lambda: self._tuple(self._to_mark()),
            0x85: lambda: self._tuple([self._stack.pop()]),
            0x86: lambda: self._tuple([self._stack.pop(), self._stack.pop()][::-1]),
            0x87: lambda: self._tuple([self._stack.pop() for _ in range(3)][::-1]),
            _GLOBAL: self._named,
            _INST: self._named,
            _STACK_GLOBAL: self._named_on_stack,
            **dict.fromkeys(CALLS, self._call),
        }

    def _protocol(self) -> None:
        version = self._number(1)
        if not 2 <= version <= 5:
            self._refuse(f"is a pickle of protocol {version}; 2 to 5 are known")

    def _mark(self) -> None:
        if len(self._marks) >= MAX_DEPTH:
            self._refuse(f"is nested more than {MAX_DEPTH} deep, which no snapshot is")
        if self._stack:
            kind = type(self._stack[-1])
            if kind is Trace:
                self._trace_depth = len(self._marks) + 1
            elif kind is Settings and self._settings_depth < 0:
                self._settings_depth = len(self._marks) + 1
        self._marks.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self._stack = self._stack, self._marks.pop()
        depth = len(self._marks)
        if depth < self._trace_depth:
            self._trace_depth = -1
        if depth < self._settings_depth:
            self._settings_depth = -1
        return items

    def _stop(self) -> None:
        if self._marks:
            self._refuse("is damaged: it stops inside a list")
        self._result = self._stack[-1]
        if self._result is None:
            self._refuse("has no device_traces: it is no snapshot of torch's allocator")

    def _around(self) -> Any:
        """The list that the next value is for: below the last mark or, for a single member, on top of the stack."""
        if self._stack and type(self._stack[-1]) in _LISTS:
            return self._stack[-1]
        return self._marks[-1][-1] if self._marks and self._marks[-1] else None

    def _empty_dict(self) -> None:
        """Make a dictionary; its place tells of which kind it is."""
        stack, depth = self._stack, len(self._marks)
        made: Any = UNASKED
        around = self._around()
        kind = type(around)
        if kind is Trace:
            if depth == self._trace_depth and self._take_run(around):
                return
            self._event = self._data, self._at - 1, len(self._memo)
            made = Event()
        elif kind is Stack:
            made = Frame()
        elif kind is Blocks:
            made = Block()
        elif kind is Segments:
            made = Segment()
        elif not stack and not depth:
            made = {}
        elif depth <= 1 and stack and stack[-1] in SETTINGS_KEYS:
            made = Settings()
        elif self._settings_depth >= 0 or (len(stack) > 1 and type(stack[-2]) is Settings):
            made = {}
        if made is not UNASKED:
            self._kept_bytes += _FRAME_BYTES if kind is Stack else _OPEN_BYTES
        stack.append(made)

    def _take_run(self, trace: Trace) -> bool:
        """Hand on many events at once, the first of which begins here; returns whether it could."""
        if self._on_run is None:
            return False
        run = self._shapes.take(self._data, self._at - 1, self._end, self._memo)
        if run is None:
            return False
        self._memo.frombytes(run.memo)
        self._at = run.end
        self._on_run(trace.device, run)
        return True

    def _empty_list(self) -> None:
        """Make a list; its place tells of which kind it is."""
        stack = self._stack
        below = stack[-1] if stack else None
        around, depth = self._around(), len(self._marks)
        made: Any = UNASKED
        if below == "frames":
            made = Stack()
        elif below == "blocks" and depth and self._marks[-1] and type(self._marks[-1][-1]) is Segment:
            made = Blocks()
        elif depth <= 1 and below == "device_traces" and self._traces is None:
            made = self._traces = []
        elif depth <= 1 and below == "segments":
            made = Segments()
        elif self._traces is not None and self._is_next_trace(around, below):
            made = Trace(self._num_traces)
            self._num_traces += 1
        elif self._settings_depth >= 0 or (len(stack) > 1 and type(stack[-2]) is Settings):
            made = []
        if made is not UNASKED:
            self._kept_bytes += _OPEN_BYTES
        self._stack.append(made)

    def _is_next_trace(self, around: Any, below: Any) -> bool:
        marked = self._marks[-1][-1] if self._marks and self._marks[-1] else None
        if below is None:
            return around is self._traces
        return below is self._traces or (marked is self._traces and type(below) is Trace)

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        kind = type(target)
        if kind is Stack:
            self._add_frames(target, items)
        elif kind is Trace or kind is Blocks:
            for item in items:
                if type(item) is not Gone:  # a complete one was handed on before
                    what = "an event" if kind is Trace else "a block"
                    self._refuse(f"has {_kind(item)} where {what} should be")
        elif kind is Segments:
            if not all(type(item) is Segment and "address" in item for item in items):
                self._refuse("has a damaged segment: one that is listed twice, has no address, or is none")
            target.extend(items)
        elif kind is list:
            self._kept_bytes += _NUMBER_BYTES * len(items)
            target.extend(items)
        elif kind is not Unasked:
            self._refuse(f"is damaged: it adds to {_kind(target)}")

    def _add_frames(self, stack: Stack, items: list[Any]) -> None:
        if stack.frames is None:
            self._refuse("is damaged: it adds to a Python stack that already belongs to an event")
        numbers = [item.number for item in items] if set(map(type, items)) <= {Frame} else [-1]
        if min(numbers, default=0) < 0:
            self._refuse("has frames without name, filename and line")
        self._kept_bytes += 6 * len(items)
        stack.frames.extend(numbers)

    def stack_number(self, stack: Any) -> int:
        """The number of what an event has under "frames"; -1: no stack."""
        if stack is None:
            return -1
        if type(stack) is not Stack:
            self._refuse(f"has {shown(stack)} where the frames of an event should be")
        if stack.frames is not None:
            if stack.frames:
                stack.number = self._known.stack(stack.frames)
            stack.frames = None
        return stack.number

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        kind = type(target)
        if kind is Unasked:
            return
        if len(items) % 2:
            self._refuse("is damaged: a key has no value")
        keys, values = items[::2], items[1::2]
        for key in keys:
            if type(key) is not str:
                why = f"{shown(key)} where a name should be" if type(key) in _PLAIN else "unhashable keys"
                self._refuse(f"is damaged: {why}")
        pairs = zip(keys, values, strict=True)
        if kind is Event:
            if len(keys) > MOST_KEYS:
                self._refuse(f"has an event of {len(keys):,} values")
            target.update(pairs)
            self._end_event(target)
        elif kind is Frame:
            self._end_frame(target, dict(pairs))
        elif kind is Block:
            self._end_block(dict(pairs))
        elif isinstance(target, dict):
            is_top = len(self._stack) == 1 and not self._marks
            wanted = SEGMENT_KEYS if kind is Segment else TOP_KEYS if is_top else keys
            kept = {key: value for key, value in pairs if key in wanted}
            self._kept_bytes += ENTRY_BYTES * len(kept)
            target.update(kept)
        else:
            self._refuse(f"is damaged: it sets an item of {_kind(target)}")

    def _drop_top(self) -> None:
        self._stack[-1] = GONE
        if len(self._stack) > _BATCH:
            del self._stack[:-1]

    def _end_event(self, event: Event) -> None:
        single = len(self._stack) > 1 and type(self._stack[-2]) is Trace
        trace = self._stack[-2] if single else self._marks[-1][-1]
        self._kept_bytes -= _OPEN_BYTES
        self._drop_top()
        self._on_event(trace.device, event)
        data, start, num_before = self._event
        if self._on_run is not None and data is self._data and self._at - start <= MOST_EVENT_BYTES:
            if self._shapes.wants():
                self._shapes.add(learn(data[start : self._at], self._memo, self.objects, num_before))

    def _end_frame(self, frame: Frame, found: dict[str, Any]) -> None:
        line = found.get("name"), found.get("filename"), found.get("line")
        if tuple(map(type, line)) != (str, str, int) or not -(2**31) <= line[2] < 2**31:  # type: ignore[operator]
            self._refuse("has frames without name, filename and line")
        # Frames of compiled code have it, in snapshots that were taken with augment_with_fx_traces.
        frame.number = self._known.frame(line, found.get("fx_node_name"))  # type: ignore[arg-type]

    def _end_block(self, found: dict[str, Any]) -> None:
        single = len(self._stack) > 1 and type(self._stack[-2]) is Blocks
        blocks: Blocks = self._stack[-2] if single else self._marks[-1][-1]
        try:
            blocks.add(found)
        except (KeyError, TypeError, ValueError) as error:
            self._refuse(f"has a damaged segment: {type(error).__name__} {error}")
        self._kept_bytes += 30 - _OPEN_BYTES
        self._drop_top()

    def _tuple(self, items: list[Any]) -> None:
        """Make a tuple of plain values; no import asks for a tuple of others."""
        if all(type(item) in _PLAIN for item in items):
            self._kept_bytes += _OPEN_BYTES + _NUMBER_BYTES * len(items)
            self._stack.append(tuple(items))
        else:
            self._stack.append(UNASKED)

    def _put(self, index: int) -> None:
        """Put a value at a place of the memo that protocols 2 and 3 name; an optimizer may have left gaps."""
        memo, number = self._memo, self._number_of(self._stack[-1])
        if index < len(memo):
            memo[index] = number
            self._shapes.forget()
            return
        if index > 4096 + 2 * len(memo) + self._num_read // 4:
            self._refuse("refers to more objects than a snapshot has")
        memo.frombytes(bytes(4 * (index - len(memo))))
        memo.append(number)

    # --------------------------------------------------------------------------------
    # What is refused

    def _named_on_stack(self) -> None:
        self._refuse_call(".".join(map(str, self._stack[-2:]))[:200])
