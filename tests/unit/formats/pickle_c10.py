"""Pickles as torch's C++ writes them (torch/csrc/jit/serialization/pickler.cpp); for tests.

Protocol 2. Texts are in the memo by number and referred to; a list or dictionary is written whole, in one piece, and
gets its number before its members. A number is one byte, four, or eight.
"""

from typing import Any


class _Writer:
    def __init__(self) -> None:
        self._data = bytearray(b"\x80\x02")
        self._num_put = 0
        self._texts: dict[str, int] = {}

    def write(self, value: Any) -> None:
        if isinstance(value, bool):
            self._data += b"\x88" if value else b"\x89"
        elif isinstance(value, int):
            self._whole(value)
        elif isinstance(value, float):
            import struct

            self._data += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            self._text(value)
        elif value is None:
            self._data += b"N"
        elif isinstance(value, dict):
            self._data += b"}"
            self._put()
            self._data += b"("
            for key, item in value.items():
                self.write(key)
                self.write(item)
            self._data += b"u"
        elif isinstance(value, list):
            self._data += b"]"
            self._put()
            self._data += b"("
            for item in value:
                self.write(item)
            self._data += b"e"
        else:
            self._tuple(value)

    def _tuple(self, value: Any) -> None:
        for item in value:
            self.write(item)
        self._data += (b")", b"\x85", b"\x86", b"\x87")[len(value)]

    def _whole(self, value: int) -> None:
        if 0 <= value < 2**8:
            self._data += b"K" + bytes([value])
        elif -(2**31) <= value < 2**31:
            self._data += b"J" + value.to_bytes(4, "little", signed=True)
        else:
            value = value - 2**64 if value >= 2**63 else value
            self._data += b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    def _text(self, value: str) -> None:
        if value in self._texts:
            number = self._texts[value]
            self._data += b"h" + bytes([number]) if number < 256 else b"j" + number.to_bytes(4, "little")
            return
        data = value.encode("utf-8", "replace")
        self._data += b"X" + len(data).to_bytes(4, "little") + data
        self._texts[value] = self._num_put
        self._put()

    def _put(self) -> None:
        number = self._num_put
        self._data += b"q" + bytes([number]) if number < 256 else b"r" + number.to_bytes(4, "little")
        self._num_put += 1

    def done(self) -> bytes:
        return bytes(self._data) + b"."


def dumps(value: Any) -> bytes:
    """The pickle of `value`."""
    writer = _Writer()
    writer.write(value)
    return writer.done()
