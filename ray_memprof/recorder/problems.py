"""What went wrong with the recording itself: kept for the end of the run, and never raised into the program.

    problems = Problems()
    with problems.noting("the allocator's counters cannot be read"):
        ...                                              # an Exception ends the block, and becomes a line
    problems.texts                                       # written into run.json when the rank ends

Each line is also written once to the standard error, which is the log of the rank: a rank that is killed can report
nothing at its end.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray_memprof.recorder.forks import silent_in_children
from ray_memprof.recorder.handler_errors import pass_on, suppressed
from ray_memprof.wording import error_line

MOST_PROBLEMS = 100
"""Lines that are kept; later ones are only counted."""


class Problems:
    """Lines, each kept once; may be used from any thread."""

    def __init__(self) -> None:
        # A signal handler may add a problem too, on a thread that is just adding one.
        self._lock = threading.RLock()
        self._texts: dict[str, None] = {}
        self._num_more = 0
        silent_in_children(self)

    def forked(self) -> None:
        """Make a new lock: in a child the thread that held the old one does not exist, and cannot release it."""
        self._lock = threading.RLock()

    def add(self, text: str) -> None:
        """Keep a line."""
        with self._lock:
            if text in self._texts:
                return
            if len(self._texts) == MOST_PROBLEMS:
                self._num_more += 1
                return
            self._texts[text] = None
        with suppressed():  # a program may have closed its standard error, or put anything in its place
            sys.stderr.write(f"warning: recording: {text}\n")

    def note(self, what: str, error: Exception) -> None:
        """Keep what failed and why, in one line.

        Raises:
            BaseException: what a signal's handler of the program has raised.
        """
        pass_on(error)
        self.add(f"{what}: {' '.join(error_line(error).split())}")

    def interrupted(self, error: BaseException) -> None:
        """Note that a signal's handler has raised in the middle of the recorder."""
        if isinstance(error, Exception):  # the others end the program
            kind = type(error).__name__
            self.add(f"a signal's handler raised {kind} inside the recorder: a peak may be missing")

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """An Exception inside the block ends it and is noted; what a signal's handler raises passes through."""
        try:
            yield
        except Exception as error:
            self.note(what, error)

    @property
    def texts(self) -> tuple[str, ...]:
        """All lines, in the order in which they came."""
        with self._lock:
            more = (f"{self._num_more:,} more problems of the recording",) if self._num_more else ()
            return (*self._texts, *more)


def unheard(text: str) -> None:
    """Ignore a problem: the default of what may be used without a recorder."""
