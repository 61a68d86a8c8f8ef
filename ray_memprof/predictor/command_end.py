"""How predict and plan end: an error of the user, a full disk, Ctrl-C and SIGTERM are each a line and an exit code.

    with ends_as_codes():
        ...                          # an error here ends in "error: ...", "hint: ..." and its exit code

SIGTERM ends a command as Ctrl-C does: processes that predict are ended, temporary files go, and a run that was begun is
marked as interrupted.
"""

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import typer

from ray_memprof.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, RunError, Terminated
from ray_memprof.store.whole_file import disk_error, is_full
from ray_memprof.wording import visible


@contextmanager
def ends_as_codes() -> Iterator[None]:
    """Print an error as lines, and raise typer.Exit with its code; nobody reads the lines: the code is the same."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in _ENDS}
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        # What runs in a library of C may turn it into an error of its own: DuckDB says "Query interrupted".
        if came or isinstance(error, KeyboardInterrupt):
            _end(*_ENDS[signal.Signals(came[0] if came else signal.SIGINT)])
        if isinstance(error, RunError):
            _end(error.lines(), error.exit_code)
        if isinstance(error, OSError) and is_full(error):
            full = disk_error("this command", Path(error.filename or tempfile.gettempdir()), error)
            _end(full.lines(), full.exit_code)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_ENDS = {
    signal.SIGINT: ("interrupted\n", EXIT_INTERRUPTED),
    signal.SIGTERM: ("terminated\n", EXIT_TERMINATED),
}


def _end(text: str, code: int) -> None:
    with suppress(BrokenPipeError):
        sys.stderr.write(visible(text))
    raise typer.Exit(code) from None
