"""The log of a rank: all that its process writes, C code and crashes included, and what a reader has not seen of it.

    path = open_log(plan)                         # standard output and error go there from now on
    offset, text = lines_since(path, offset)      # the driver, again and again

A disk that is full there is no error of the program: anybody's print() would raise OSError otherwise, only because its
output is kept.
"""

import errno
import faulthandler
import io
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ray_memprof.rank.messages import RankPlan

CLOSED = (ValueError, AttributeError)
"""What a stream raises that the program has closed, or put something else in the place of."""
_MAX_SAID_BYTES = 64 * 1024
"""Most of a log that one answer carries."""

_MAX_BEHIND_BYTES = 16 * _MAX_SAID_BYTES
"""How far the answers may lag behind a log: some seconds. Older lines are left out, or nobody would see new ones."""

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


def lines_since(log: Path, offset: int, until: int | None = None, *, whole: bool = True) -> tuple[int, str]:
    """The whole lines of `log` from byte `offset` on, and where they end; a line of more than one answer in pieces.

    Args:
        log: of a rank.
        offset: where the lines before these ended.
        until: byte at which to stop; None: the end.
        whole: False: with the line that has no end yet; nothing will follow it.
    """
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END) if until is None else until
        if end - offset > _MAX_BEHIND_BYTES:
            skipped, offset = end - _MAX_SAID_BYTES - offset, end - _MAX_SAID_BYTES
            return offset, f"... {skipped:,} bytes left out here, they are in {log.parent.name}/{log.name}"
        file.seek(offset)
        read = file.read(max(0, min(_MAX_SAID_BYTES, end - offset)))
    text, newline, _ = read.rpartition(b"\n")
    # A bar that is drawn over and over ends no line for hours.
    if (not newline and len(read) == _MAX_SAID_BYTES) or (not whole and len(read) < _MAX_SAID_BYTES):
        text, newline = read, b""
    return offset + len(text) + len(newline), text.decode(errors="replace")


def open_log(plan: RankPlan) -> Path:
    """Send stdout and stderr of this process, C code and crashes included, to a file of this rank."""
    path = plan.run_dir / "logs" / f"rank{plan.rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    # At the level of the kernel: NCCL and the CUDA runtime write to descriptors 1 and 2. A pipe in between would lose
    # the last lines of a process that dies, which are the ones that matter.
    os.dup2(log, sys.__stdout__.fileno() if sys.__stdout__ else 1)
    os.dup2(log, sys.__stderr__.fileno() if sys.__stderr__ else 2)
    os.close(log)
    sys.stdout, sys.stderr = log_writer(sys.stdout), log_writer(sys.stderr)
    faulthandler.enable(all_threads=True)
    return path


def dump_flight_record(plan: RankPlan) -> None:
    """What NCCL was at, as torch's flight recorder kept it: the watchdog writes it after process_group_s only."""
    dump = getattr(sys.modules.get("torch._C._distributed_c10d"), "_dump_nccl_trace", None)
    if dump is None or not plan.visible_devices:
        return
    path = plan.run_dir / "logs" / f"nccl_trace_rank{plan.rank}"
    with suppress(OSError, RuntimeError, *CLOSED):
        path.write_bytes(dump())
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} flight record of NCCL: {path}\n")
