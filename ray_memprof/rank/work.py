"""Whether a rank works although its stack does not change: its child processes, or itself before it joins the others.

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
"""Time between two checks, since a check of the children reads a file for every thread of this process."""
WORKS = 0.1
"""From this share of a core on, CPU time counts as work: a service that only waits also wakes up now and then."""
_TICKS_S = os.sysconf("SC_CLK_TCK")


class Work:
    """Whether a rank works while its own stack does not change.

    Work of the processes that it started always counts: the rank may wait for ffmpeg, ninja or nvcc. Its own work
    counts only before it has joined the other ranks: after that, a rank may use CPU time just to wait for the device or
    for other ranks.

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
        """Look for work if `moves` has not changed since the last call; returns how often work was found."""
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
    """CPU seconds of all descendants of `pid`, including ended ones that were waited for."""
    spent = sum(map(int, stat_fields(pid)[WAITED_FOR : WAITED_FOR + 2]))
    for child in _below(pid):
        with suppress(ProcessLookupError):  # it has just ended: its time now counts as time of its parent
            spent += sum(map(int, stat_fields(child)[USER : USER + 4]))
    return spent / _TICKS_S


def _below(pid: int) -> Iterator[int]:
    """All descendants of process `pid`: its children, their children, and so on."""
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, listed.read_text().split()):
                yield child
                yield from _below(child)
