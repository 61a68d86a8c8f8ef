"""Whether work is done though the stack of a rank stands still: its children's, and before it has joined, its own.

    work = Work()
    work.look(moves)               # how often work was found while this process stood still

Reads /proc.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ray_memprof.store.processes import USER, WAITED_FOR, stat_fields

LOOK_S = 1.0
"""Between two looks: at children, each reads a file for every thread of this process."""
WORKS = 0.1
"""Share of a core from which on it counts as work: a service that waits wakes up now and then."""
_TICKS_S = os.sysconf("SC_CLK_TCK")


class Work:
    """Whether work is done while a rank's own stack stands still.

    By the processes that it started, always: it may wait for ffmpeg, ninja or nvcc. By itself only before it has joined
    the others: after that, one that waits for the device, or for them, may spin.

    Args:
        clock: seconds that only grow.
        cpu_s: CPU seconds of the processes that count, ended children included.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] = lambda: children_cpu_s(os.getpid()),
    ) -> None:
        self._clock, self._cpu_s = clock, cpu_s
        self._moves: int | None = None
        self._looked = 0.0
        self._spent_s: float | None = None
        self.num_found = 0
        """How often work was found."""

    def look(self, moves: int) -> int:
        """Look for work where the rank, by its `moves`, stands still; returns how often it was found."""
        now = self._clock()
        if moves != self._moves:
            self._moves, self._looked, self._spent_s = moves, now, None
        elif now - self._looked >= LOOK_S:
            spent_s = self._cpu_s()
            if self._spent_s is not None and spent_s - self._spent_s >= WORKS * (now - self._looked):
                self.num_found += 1
            self._looked, self._spent_s = now, spent_s
        return self.num_found


def children_cpu_s(pid: int) -> float:
    """CPU seconds of all processes below `pid`, with those that were waited for."""
    spent = sum(map(int, stat_fields(pid)[WAITED_FOR : WAITED_FOR + 2]))
    for child in _below(pid):
        with suppress(ProcessLookupError):  # it has just ended: its time is its parent's from now on
            spent += sum(map(int, stat_fields(child)[USER : USER + 4]))
    return spent / _TICKS_S


def _below(pid: int) -> Iterator[int]:
    """The processes that `pid` started, those that they started, and so on."""
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, listed.read_text().split()):
                yield child
                yield from _below(child)
