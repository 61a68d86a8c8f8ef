"""The bytes of a pickle, a window at a time, so that a file of any size takes the same memory.

class Reader(Window): ...          # reads self._data at self._at, up to self._limit; then calls _refill()
"""

from typing import BinaryIO, NoReturn

from ray_memprof.errors import EXIT_CONFIG, RunError

WINDOW_BYTES = 2**20
"""How many bytes of the file are read at once."""
LOOK_BYTES = 2**16
"""How many bytes are read before the memory taken is checked again."""
MAX_TEXT_BYTES = 2**24
MARGIN = 272
"""Bytes for the longest short opcode, a text of 255 bytes with its head, and some to spare."""
DONT_TRUST = (
    "import only what torch.cuda.memory._dump_snapshot or `ray-memprof export --format snapshot` wrote"
)
CALLS = {
    0x52: "REDUCE", 0x62: "BUILD", 0x6F: "OBJ", 0x81: "NEWOBJ", 0x92: "NEWOBJ_EX", 0x82: "EXT1", 0x83: "EXT2",
    0x84: "EXT4", 0x50: "PERSID", 0x51: "BINPERSID", 0x97: "NEXT_BUFFER",
}  # fmt: skip
_MAGIC = {
    b"\x1f\x8b": "it is compressed (gzip), decompress it first",
    b"\x28\xb5\x2f\xfd": "it is compressed (zstd), decompress it first",
    b"PK": "it is a zip archive, as torch.save makes",
    b"{": "it is text, JSON perhaps",
    b"(d": "it is one of protocol 0 or 1, pickle it anew with protocol 4",
}
_FRAME = 0x95
_from_bytes = int.from_bytes


class NotASnapshot(RunError):
    """A file is no memory snapshot, or it asks for more than a snapshot needs (exit 2)."""

    exit_code = EXIT_CONFIG


class Window:
    """A file that is read once, from its beginning to its end.

    Args:
        file: the pickle.
        name: the file's name, for messages.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._data, self._at, self._limit, self._end = b"", 0, -1, -1
        self._num_read = 0
        self._is_at_end = False
        self._frame_at = 2
        """Where in the data the next FRAME opcode is, if there is one; the first follows the protocol number."""

    def _check_memory(self) -> None:
        """Refuse a file that takes too much memory; called every LOOK_BYTES."""

    def _refill(self) -> None:
        """Check the memory taken, and read the next window; zeros, which are no opcode, follow the last one."""
        self._check_memory()
        if self._at <= self._end:
            self._limit = min(self._end, self._at + LOOK_BYTES)
            return
        if self._is_at_end:
            self._cut_off()
        try:
            more = self._file.read(WINDOW_BYTES)
        except OSError as error:
            raise NotASnapshot(f"{self._name} cannot be read: {error.strerror}") from error
        self._num_read += len(more)
        self._data = self._data[self._at :] + more
        self._frame_at -= self._at
        self._at = 0
        if len(more) < WINDOW_BYTES:
            self._is_at_end = True
            self._data += bytes(2 * MARGIN)
        self._leave_frames_out()

    def _leave_frames_out(self) -> None:
        """Remove the FRAME opcodes from the data ahead: they cut events in two, and only say how much to read."""
        data, at, begin = self._data, self._frame_at, 0
        end = len(data) - (2 * MARGIN if self._is_at_end else 0)
        parts = []
        while begin <= at <= end - 9 and data[at] == _FRAME:
            parts.append(data[begin:at])
            begin = at + 9
            at = begin + _from_bytes(data[at + 1 : begin], "little")
        if parts:
            self._data = b"".join((*parts, data[begin:]))
        self._frame_at = at - 9 * len(parts)
        self._end = len(self._data) - MARGIN
        self._limit = min(self._end, self._at + LOOK_BYTES)

    def _frame(self) -> None:
        """Read a FRAME opcode that follows something outside of all frames, such as a long text."""
        self._frame_at = self._number(8) + self._at
        self._leave_frames_out()

    def _is_past_end(self) -> bool:
        return self._is_at_end and self._at > len(self._data) - 2 * MARGIN

    def _take(self, length: int) -> bytes:
        """The next `length` bytes, up to MAX_TEXT_BYTES."""
        if length > MAX_TEXT_BYTES:
            self._refuse(f"has a text or number of {length:,} bytes")
        while self._at + length > self._end and not self._is_at_end:
            self._refill()
        start, self._at = self._at, self._at + length
        if self._is_past_end():
            self._cut_off()
        return self._data[start : self._at]

    def _number(self, length: int) -> int:
        return _from_bytes(self._take(length), "little")

    def _offset(self) -> int:
        padding = 2 * MARGIN if self._is_at_end else 0
        return self._num_read - (len(self._data) - padding) + self._at - 1

    def _cut_off(self) -> NoReturn:
        self._refuse(f"is cut off after {self._num_read:,} bytes", hint="copy or dump it again")

    def _refuse(self, what: str, *, hint: str = DONT_TRUST) -> NoReturn:
        raise NotASnapshot(f"{self._name} {what}", hint=hint)

    def _named(self) -> None:
        """Refuse GLOBAL and INST; the names that they ask for follow them in two lines."""
        end = self._data.find(b"\n", self._data.find(b"\n", self._at) + 1)
        names = self._data[self._at : min(max(end, self._at), self._at + 200)].decode("utf-8", "replace")
        self._refuse_call(".".join(names.splitlines()))

    def _call(self) -> None:
        self._refuse_call(f"an object (opcode {CALLS[self._data[self._at - 1]]})")

    def _refuse_call(self, what: str) -> NoReturn:
        raise NotASnapshot(
            f"{self._name} asks for {what[:60]!a}: a snapshot holds data only; nothing of it was run",
            hint=DONT_TRUST,
        )

    def _unknown(self) -> None:
        code = self._data[self._at - 1]
        if self._is_past_end() or (code == 0 and self._at > len(self._data) - 2 * MARGIN):
            self._cut_off()
        self._refuse(f"has opcode 0x{code:02x} at byte {self._offset():,}, which no snapshot has")

    def _refuse_kind(self) -> NoReturn:
        kind = next((f": {kind}" for magic, kind in _MAGIC.items() if self._data.startswith(magic)), "")
        self._refuse(f"is no pickle of protocol 2 or later{kind}")
