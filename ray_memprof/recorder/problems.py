"""What went wrong with the recording itself: kept for the end of the run, and never raised into the program.

    problems = Problems()
    with problems.noting("the allocator's counters cannot be read"):
        ...                                              # an Exception ends the block, and becomes a line
    problems.texts                                       # with the rank's end into run.json

Each line is also written to the standard error once, that is into the log of the rank: a rank that is killed tells
nothing at its end.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray_memprof.recorder.forks import silent_in_children

MOST_PROBLEMS = 100
"""Lines kept; what comes after them is counted."""


class Problems:
    """Lines, each once; from any thread."""

    def __init__(self) -> None:
        # The handler of a signal may have a problem too, on the thread that is adding one.
        self._lock = threading.RLock()
        self._texts: dict[str, None] = {}
        self._num_more = 0
        silent_in_children(self)

    def forked(self) -> None:
        """In a child the thread that was adding a line is not there to give the lock back."""
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
        with suppress(
            Exception
        ):  # a program may have closed its standard error, or put anything in its place
            sys.stderr.write(f"warning: recording: {text}\n")

    def note(self, what: str, error: Exception) -> None:
        """Keep what failed and why, in one line."""
        why = " ".join(str(error).strip().partition("\n")[0].split())
        self.add(f"{what}: {type(error).__name__}{': ' + why if why else ''}")

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """An Exception inside the block ends it and is noted; a signal's (KeyboardInterrupt) passes through."""
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
