"""Writes a pickle piece by piece: protocol 4, with only the opcodes that the public viewer of snapshots knows.

    writer = PickleWriter(file)
    writer.raw(b"}(" + writer.value("device_traces") + b"](")
    ...
    writer.raw(b"eu.")

The module pickle needs the whole object in memory, and its memo remembers every dictionary in it. Here the memo has
only texts, and lists that the caller shares.
"""

from typing import Any, BinaryIO

_PROTOCOL_4 = b"\x80\x04"
_MEMOIZE = b"\x94"
_FLUSH_BYTES = 2**20


class PickleWriter:
    """Makes bytes of values, in the order in which they are written: the second use of a text refers to the first.

    Args:
        file: the pickle is written to it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._references: dict[Any, bytes] = {}
        self._buffer = bytearray(_PROTOCOL_4)

    def raw(self, data: bytes) -> None:
        """Write these opcodes."""
        self._buffer += data
        if len(self._buffer) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the buffered bytes to the file."""
        self._file.write(self._buffer)
        self._buffer.clear()

    def value(self, value: Any) -> bytes:
        """Opcodes of a text, number, truth value, None, or a list, pair or dictionary of these."""
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            return integer(value)
        if isinstance(value, dict):
            items = b"".join(self.value(key) + self.value(item) for key, item in value.items())
            return b"}(" + items + b"u"
        if isinstance(value, tuple) and len(value) == 2:
            return self.value(value[0]) + self.value(value[1]) + b"\x86"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.value, value)) + b"e"
        raise TypeError(f"a snapshot has no {type(value).__name__}")

    def text(self, text: str) -> bytes:
        """Opcodes of a text."""
        if text in self._references:
            return self._references[text]
        data = text.encode("utf-8", "replace")
        head = b"\x8c" + bytes([len(data)]) if len(data) < 256 else b"X" + len(data).to_bytes(4, "little")
        return head + data + self._remember(text)

    def shared(self, key: tuple[str, Any], value: list[Any]) -> bytes:
        """Opcodes of a list that is the same whenever `key` is."""
        if key in self._references:
            return self._references[key]
        # The list is remembered before it is filled, as pickle does, so its members are numbered after it.
        opening = b"]" + self._remember(key)
        return opening + (b"(" + b"".join(map(self.value, value)) + b"e" if value else b"")

    def _remember(self, key: Any) -> bytes:
        index = len(self._references)
        self._references[key] = b"h" + bytes([index]) if index < 256 else b"j" + index.to_bytes(4, "little")
        return _MEMOIZE


def integer(value: int) -> bytes:
    """Opcodes of a number, as short as those that pickle writes."""
    if 0 <= value < 2**8:
        return b"K" + bytes([value])
    if 0 <= value < 2**16:
        return b"M" + value.to_bytes(2, "little")
    if -(2**31) <= value < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    length = (value if value >= 0 else ~value).bit_length() // 8 + 1  # -128 takes one byte, 128 two
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
