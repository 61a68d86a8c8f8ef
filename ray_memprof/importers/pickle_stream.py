"""Reads the pickle of a memory snapshot event by event, and nothing that a pickle could make a program do.

    snapshot = PickleStream(file, name, on_event).read()     # on_event(device, event) for each event of device_traces

Pickles come from strangers, and Python's own readers are no help twice over: they call what a file names unless every
name is refused, and their memo keeps each object until the end, five to six times the size of the file. A snapshot is
dictionaries, lists, tuples, texts and numbers; only the opcodes that make those are known here, so there is nothing to
call. Whatever else a file asks for is refused by name. An event is handed on as soon as it is complete and its place
in the memo is given up: what stays is the memo's table (8 bytes an entry, about four entries an event), each text and
each stack once, and the segments. Protocols 2 to 5, as pickle, torch's own C++ writer and this project's export write.

The format: Lib/pickletools.py of CPython describes every opcode.
"""

import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn, TypeAlias

from ray_memprof.errors import EXIT_CONFIG, RunError

WINDOW_BYTES = 2**20
"""Read at once."""
MAX_TEXT_BYTES = 2**24
MAX_DEPTH = 64
"""Marks inside marks; a snapshot has seven."""
MAX_STACK = 2**21
"""Objects on the stack: more than the longest list that is not cut into batches."""
MAX_KEPT = 2**24
"""Members of lists and dictionaries outside the traces: segments, frames, annotations."""
BYTES_A_MEMO_ENTRY = 8
"""At least so many of the file for each entry of the memo; an event has about twenty."""

_BATCH = 1000
"""Members that pickle adds to a list at once."""
_MARGIN = 272
"""The longest short opcode: a text of 255 bytes, with its head; the rest is room."""
_DONT_TRUST = (
    "import only what torch.cuda.memory._dump_snapshot or `ray-memprof export --format snapshot` wrote"
)
_GLOBAL, _INST, _STACK_GLOBAL = 0x63, 0x69, 0x93
_CALLS = {
    0x52: "REDUCE", 0x62: "BUILD", 0x6F: "OBJ", 0x81: "NEWOBJ", 0x92: "NEWOBJ_EX", 0x82: "EXT1", 0x83: "EXT2",
    0x84: "EXT4", 0x50: "PERSID", 0x51: "BINPERSID", 0x97: "NEXT_BUFFER",
}  # fmt: skip
_MARK, _STOP = 0x28, 0x2E
_from_bytes = int.from_bytes


class NotASnapshot(RunError):
    """A file that is no memory snapshot, or one that asks for more than a snapshot needs (exit 2)."""

    exit_code = EXIT_CONFIG


Frame: TypeAlias = tuple[str, str, int]
"""Function, file, line."""


class Stack:
    """The Python stack of an event, while its frames are read; then a number, -1 without frames."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = -1


class _Event(dict[str, Any]):
    """One that is being read."""


class _Trace(list[Any]):
    """The events of a device: never filled."""

    def __init__(self, device: int) -> None:
        self.device = device


class _Gone:
    """Stands in the memo for an event that was handed on."""


_GONE = _Gone()


class PickleStream:
    """One file, read once.

    Args:
        file: the pickle.
        name: of it, for messages.
        on_event: takes the number of a device and an event: a dictionary whose "frames", if any, are a Stack.
    """

    def __init__(self, file: BinaryIO, name: str, on_event: Callable[[int, dict[str, Any]], None]) -> None:
        self._file, self._name, self._on_event = file, name, on_event
        self.stacks: dict[tuple[Frame, ...], int] = {}
        """Numbers of Python stacks; the innermost frame comes first."""
        self._seen: dict[tuple[int, ...], tuple[int, list[Any]]] = {}
        self._data, self._at, self._limit = b"", 0, -1
        self._num_read = self._num_kept = 0
        self._is_at_end = False
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: list[Any] = []
        self._texts: dict[bytes, str] = {}
        self._traces: list[Any] | None = None
        self._event_depth = -1
        """Marks around an event of the trace that is being read; -1: outside of traces."""
        self._result: Any = None
        self._ops: list[Callable[[], None]] = [self._unknown] * 256
        for code, operation in self._operations().items():
            self._ops[code] = operation

    def read(self) -> dict[str, Any]:
        """The snapshot without its events.

        Raises:
            NotASnapshot: it is none, is damaged, or asks for something.
        """
        try:
            self._refill()
            if self._num_read and self._data[0] != 0x80:
                self._refuse("is no pickle of protocol 2 or later")
            while self._result is None:
                self._ops[self._simple()]()
        except (IndexError, TypeError, ValueError, OverflowError) as error:
            # A stack that is empty, a key that has no hash, a text that is no UTF-8: all of it is the file's.
            if self._is_past_end():
                self._cut_off()
            self._refuse(f"is damaged: {error}")
        if self._is_past_end():
            self._cut_off()
        return self._snapshot()

    def _snapshot(self) -> dict[str, Any]:
        if type(self._result) is not dict or not isinstance(self._result.get("device_traces"), list):
            self._refuse("has no device_traces: it is no snapshot of torch's allocator")
        traces = self._result["device_traces"]
        if traces is not self._traces:  # the list was made elsewhere in the file: its events were kept
            for device, trace in enumerate(traces):
                for event in trace:
                    self._hand_on(device, event)
        return dict(self._result)

    # --------------------------------------------------------------------------------
    # Bytes

    def _refill(self) -> None:
        """Bring in the next window; behind the last one there are zeros, which are no opcode."""
        if len(self._marks) > MAX_DEPTH or sum(map(len, self._marks), len(self._stack)) > MAX_STACK:
            self._refuse("is nested or filled as no snapshot is")
        if len(self._memo) * BYTES_A_MEMO_ENTRY > self._num_read + WINDOW_BYTES:
            self._refuse("refers to more objects than a snapshot has")
        if self._is_at_end:
            self._cut_off()
        try:
            more = self._file.read(WINDOW_BYTES)
        except OSError as error:
            raise NotASnapshot(f"{self._name} cannot be read: {error.strerror}") from error
        self._num_read += len(more)
        self._data = self._data[self._at :] + more
        self._at = 0
        if len(more) < WINDOW_BYTES:
            self._is_at_end = True
            self._data += bytes(2 * _MARGIN)
        self._limit = len(self._data) - _MARGIN

    def _is_past_end(self) -> bool:
        return self._is_at_end and self._at > len(self._data) - 2 * _MARGIN

    def _take(self, length: int) -> bytes:
        """The next bytes, of any number."""
        if length > MAX_TEXT_BYTES:
            self._refuse(f"has a text or number of {length:,} bytes")
        while self._at + length > self._limit and not self._is_at_end:
            self._refill()
        start, self._at = self._at, self._at + length
        if self._is_past_end():
            self._cut_off()
        return self._data[start : self._at]

    def _number(self, length: int) -> int:
        return _from_bytes(self._take(length), "little")

    def _simple(self) -> int:
        """Take numbers, texts and references as they come; returns the first opcode that is none, taken too.

        This loop sees nine of ten opcodes: everything it touches is local, the likeliest come first.
        """
        data, at, limit = self._data, self._at, self._limit
        stack, memo, texts = self._stack, self._memo, self._texts
        push = stack.append
        while True:
            if at > limit:
                self._at = at
                self._refill()
                data, at, limit = self._data, self._at, self._limit
            code = data[at]
            if code == 0x68:  # BINGET
                push(memo[data[at + 1]])
                at += 2
            elif code == 0x8A:  # LONG1
                end = at + 2 + data[at + 1]
                push(_from_bytes(data[at + 2 : end], "little", signed=True))
                at = end
            elif code == 0x4B:  # BININT1
                push(data[at + 1])
                at += 2
            elif code == 0x6A:  # LONG_BINGET
                push(memo[_from_bytes(data[at + 1 : at + 5], "little")])
                at += 5
            elif code == 0x94:  # MEMOIZE
                top = stack[-1]
                memo.append(_GONE if type(top) is _Event else top)
                at += 1
            elif code == 0x4A:  # BININT
                push(_from_bytes(data[at + 1 : at + 5], "little", signed=True))
                at += 5
            elif code == 0x8C:  # SHORT_BINUNICODE
                end = at + 2 + data[at + 1]
                raw = data[at + 2 : end]
                push(texts[raw] if raw in texts else self._text(raw))
                at = end
            elif code == 0x4D:  # BININT2
                push(data[at + 1] | data[at + 2] << 8)
                at += 3
            else:
                self._at = at + 1
                return code

    def _text(self, raw: bytes) -> str:
        return self._texts.setdefault(raw, str(raw, "utf-8", "strict"))

    # --------------------------------------------------------------------------------
    # Opcodes

    def _operations(self) -> dict[int, Callable[[], None]]:
        return {
            0x80: self._protocol,
            0x95: lambda: (self._take(8), None)[1],  # FRAME: how much to read at once, for those who care
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
            0x61: self._append,
            0x65: lambda: self._extend(self._to_mark()),
            0x73: self._set_item,
            0x75: lambda: self._set_items(self._to_mark()),
            0x74: lambda: self._tuple(self._to_mark()),
            0x85: lambda: self._tuple([self._stack.pop()]),
            0x86: lambda: self._tuple([self._stack.pop(), self._stack.pop()][::-1]),
            0x87: lambda: self._tuple([self._stack.pop() for _ in range(3)][::-1]),
            _GLOBAL: self._named,
            _INST: self._named,
            _STACK_GLOBAL: self._named_on_stack,
            **dict.fromkeys(_CALLS, self._call),
        }

    def _protocol(self) -> None:
        version = self._number(1)
        if not 2 <= version <= 5:
            self._refuse(f"is a pickle of protocol {version}; 2 to 5 are known")

    def _mark(self) -> None:
        if len(self._marks) >= MAX_DEPTH:
            self._refuse(f"is nested more than {MAX_DEPTH} deep: no snapshot is")
        if self._stack and type(self._stack[-1]) is _Trace:
            self._event_depth = len(self._marks) + 1
        self._marks.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self._stack = self._stack, self._marks.pop()
        if len(self._marks) < self._event_depth:
            self._event_depth = -1
        return items

    def _stop(self) -> None:
        if self._marks:
            self._refuse("is damaged: it stops inside a list")
        self._result = self._stack[-1]
        if self._result is None:
            self._refuse("has no device_traces: it is no snapshot of torch's allocator")

    def _empty_dict(self) -> None:
        self._stack.append(_Event() if len(self._marks) == self._event_depth else {})

    def _empty_list(self) -> None:
        """A list; what comes into it is told from where it is."""
        below = self._stack[-1] if self._stack else self._marks[-1][-1] if self._marks else None
        made: Any = []
        if below == "device_traces" and self._traces is None and len(self._marks) <= 1:
            self._traces = made
        elif self._traces is not None and below is self._traces:
            made = _Trace(0)
        elif type(below) is _Trace and self._stack:
            made = _Trace(below.device + 1)
        elif below == "frames" and self._event_depth >= 0:
            made = Stack()
        self._stack.append(made)

    def _append(self) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        kind = type(target)
        if kind is Stack:
            if target.number >= 0:
                self._refuse("has a Python stack of more than 1,000 frames")
            target.number = self.stack_number(items)
        elif kind is _Trace:
            for event in items:
                self._hand_on(target.device, event)
        elif kind is list:
            self._keep(items)
            target.extend(items)
        else:
            self._refuse(f"is damaged: it adds to a {kind.__name__}")

    def stack_number(self, frames: Any) -> int:
        """Of what an event has under "frames"."""
        if type(frames) is Stack:
            return frames.number
        if not frames:
            return -1
        # Frames are written once and referred to: the same list of objects is the same stack. They are kept, so that
        # no other object gets their ids.
        key = tuple(map(id, frames))
        if key in self._seen:
            return self._seen[key][0]
        try:
            stack = tuple((frame["name"], frame["filename"], int(frame["line"])) for frame in frames)
        except (KeyError, TypeError, ValueError):
            self._refuse("has frames without name, filename and line")
        number = self.stacks.setdefault(stack, len(self.stacks))
        if number == len(self.stacks) - 1:
            self._keep(frames)
            self._seen[key] = number, frames
        return number

    def _hand_on(self, device: int, event: Any) -> None:
        if event is _GONE:
            return
        if not isinstance(event, dict):
            self._refuse(f"has a {type(event).__name__} where an event should be")
        self._on_event(device, event)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is _Event:
            target.update(zip(items[::2], items[1::2], strict=True))
            # Complete, whether its list is written in batches or in one piece: it goes before the next one comes.
            self._stack[-1] = _GONE
            if len(self._stack) > _BATCH:
                del self._stack[:-1]
            self._on_event(self._marks[-1][-1].device, target)
        elif type(target) is dict:
            self._keep(items)
            target.update(zip(items[::2], items[1::2], strict=True))
        else:
            self._refuse(f"is damaged: it sets an item of a {type(target).__name__}")

    def _tuple(self, items: list[Any]) -> None:
        self._keep(items)
        self._stack.append(tuple(items))

    def _keep(self, items: list[Any]) -> None:
        self._num_kept += len(items)
        if self._num_kept > MAX_KEPT:
            self._refuse("has more in it besides events than a snapshot has")

    def _put(self, index: int) -> None:
        """Protocols 2 and 3 number the entries of the memo; an optimizer may have left gaps."""
        memo, top = self._memo, self._stack[-1]
        if index > self._num_read // BYTES_A_MEMO_ENTRY + WINDOW_BYTES:
            self._refuse("refers to more objects than a snapshot has")
        memo.extend([_GONE] * (index + 1 - len(memo)))
        memo[index] = _GONE if type(top) is _Event else top

    # --------------------------------------------------------------------------------
    # What is refused

    def _named(self) -> None:
        """GLOBAL and INST have their names behind them, in two lines."""
        end = self._data.find(b"\n", self._data.find(b"\n", self._at) + 1)
        names = self._data[self._at : min(max(end, self._at), self._at + 200)].decode("utf-8", "replace")
        self._refuse_call(".".join(names.splitlines()))

    def _named_on_stack(self) -> None:
        self._refuse_call(".".join(map(str, self._stack[-2:]))[:200])

    def _call(self) -> None:
        self._refuse_call(f"an object (opcode {_CALLS[self._data[self._at - 1]]})")

    def _refuse_call(self, what: str) -> NoReturn:
        raise NotASnapshot(
            f"{self._name} asks for {what!a}: a snapshot holds data only; nothing of it was run",
            hint=_DONT_TRUST,
        )

    def _unknown(self) -> None:
        code = self._data[self._at - 1]
        if self._is_past_end() or (code == 0 and self._at > len(self._data) - 2 * _MARGIN):
            self._cut_off()
        self._refuse(f"has opcode 0x{code:02x} at byte {self._offset():,}, which no snapshot has")

    def _offset(self) -> int:
        padding = 2 * _MARGIN if self._is_at_end else 0
        return self._num_read - (len(self._data) - padding) + self._at - 1

    def _cut_off(self) -> NoReturn:
        self._refuse(f"is cut off after {self._num_read:,} bytes", hint="copy or dump it again")

    def _refuse(self, what: str, *, hint: str = _DONT_TRUST) -> NoReturn:
        raise NotASnapshot(f"{self._name} {what}", hint=hint)
