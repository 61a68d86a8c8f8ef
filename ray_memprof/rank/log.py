"""The log of a rank: all that its process writes, C code and crashes included; and how the driver reads it in pieces.

    path = open_log(run_dir, rank=0)              # standard output and error go there from now on
    offset, text = lines_since(path, offset)      # called by the driver again and again

If the disk of the log is full, output is dropped: otherwise any print() of the program would raise OSError, only
because its output is kept in a file.
"""

import faulthandler
import io
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ray_memprof.store.run_files import flight_record_name, log_name
from ray_memprof.store.whole_file import is_full

CLOSED = (ValueError, AttributeError)
"""What sys.stdout or sys.stderr may raise if the program has closed it or replaced it by another object."""
NOT_FOR_CONSOLE = "-- in the log only --"
"""The line before the traceback of the error that ended a rank. The console gets one line on that error instead."""
_LOG_ONLY = re.compile(f"Fatal Python error: |^{re.escape(NOT_FOR_CONSOLE)}$", re.MULTILINE)
"""Where the part of a log begins that is not for the console: what faulthandler writes of a crash, or a traceback."""
_MAX_SAID_BYTES = 64 * 1024
"""How much of a log one answer holds at most."""

_MAX_BEHIND_BYTES = 16 * _MAX_SAID_BYTES
"""How far the answers may lag behind the log, which is some seconds of output. Older lines are skipped, so that the
newest can be seen."""


class _Forgiving(io.FileIO):
    """A file that drops what does not fit on the disk."""

    def __init__(self, under: TextIO) -> None:
        super().__init__(under.fileno(), "wb", closefd=False)
        self._under = under  # kept alive: if it were garbage-collected, it would close the file

    def write(self, data: bytes, /) -> int:  # type: ignore[override] # of any kind of bytes, as io has it
        try:
            return super().write(data)
        except OSError as error:
            if not is_full(error):
                raise
            return memoryview(data).nbytes


def log_writer(stream: TextIO | None) -> TextIO | None:
    """A stream to the same file that drops what does not fit on the disk; `stream` itself if it is no open file."""
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


def for_console(text: str) -> tuple[str, bool]:
    """The part of a log's text that is for the console, and whether what follows it is for the log only."""
    end = _LOG_ONLY.search(text)
    return (text[: end.start()], True) if end else (text, False)


def lines_since(log: Path, offset: int, *, whole: bool = True) -> tuple[int, str]:
    """Where the next call goes on, and the complete lines of `log` from byte `offset` on.

    A line that is longer than one answer comes in pieces.

    Args:
        log: the log file of a rank.
        offset: where the last answer ended.
        whole: False: also the last line if it has no line end yet, since nothing will follow it.
    """
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        if end - offset > _MAX_BEHIND_BYTES:
            skipped, offset = end - _MAX_SAID_BYTES - offset, end - _MAX_SAID_BYTES
            return offset, f"... {skipped:,} bytes left out here, they are in {log.parent.name}/{log.name}"
        file.seek(offset)
        read = file.read(max(0, min(_MAX_SAID_BYTES, end - offset)))
    text, newline, _ = read.rpartition(b"\n")
    # A long line is not held back: a progress bar that is redrawn again and again may write no line end for hours.
    if (not newline and len(read) == _MAX_SAID_BYTES) or (not whole and len(read) < _MAX_SAID_BYTES):
        text, newline = read, b""
    return offset + len(text) + len(newline), text.decode(errors="replace")


def open_log(run_dir: Path, rank: int) -> Path:
    """Send stdout and stderr of this process, C code and crashes included, to a file of this rank."""
    path = run_dir / log_name(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    # File descriptors 1 and 2 are redirected, since NCCL and the CUDA runtime write to them directly. A pipe instead of
    # a file would lose the last lines of a process that dies, which are the most important ones.
    os.dup2(log, sys.__stdout__.fileno() if sys.__stdout__ else 1)
    os.dup2(log, sys.__stderr__.fileno() if sys.__stderr__ else 2)
    os.close(log)
    sys.stdout, sys.stderr = log_writer(sys.stdout), log_writer(sys.stderr)
    faulthandler.enable(all_threads=True)
    return path


def dump_flight_record(run_dir: Path, rank: int) -> None:
    """Write what the flight recorder holds of NCCL: torch itself does so only after process_group_s."""
    dump = getattr(sys.modules.get("torch._C._distributed_c10d"), "_dump_nccl_trace", None)
    if dump is None:
        return
    path = run_dir / flight_record_name(rank)
    with suppress(OSError, RuntimeError, *CLOSED):
        path.write_bytes(dump())
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} flight record of NCCL: {path}\n")
