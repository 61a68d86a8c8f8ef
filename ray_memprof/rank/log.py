"""Standard output of a rank, which goes into its log: a disk that is full there is no error of the program.

    sys.stdout = log_writer(sys.stdout)

Anybody's print() would raise OSError otherwise, only because its output is kept.
"""

import errno
import io
from typing import TextIO

_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Forgiving(io.FileIO):
    """A file that drops what there is no room for."""

    def __init__(self, under: TextIO) -> None:
        super().__init__(under.fileno(), "wb", closefd=False)
        self._under = under  # collected, it would close the file

    def write(self, data: bytes, /) -> int:  # type: ignore[override] # of any kind of bytes, as io has it
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return memoryview(data).nbytes


def log_writer(stream: TextIO | None) -> TextIO | None:
    """A stream to the same file that loses what finds no room there; `stream` itself where it is no open file."""
    if stream is None:
        return None
    try:
        raw = _Forgiving(stream)
    except (OSError, ValueError, AttributeError):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),  # type: ignore[type-var] # its write() takes what any file's does
        encoding=stream.encoding or "utf-8",
        errors=stream.errors or "backslashreplace",
        line_buffering=True,
    )
