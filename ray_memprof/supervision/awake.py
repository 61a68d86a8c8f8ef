"""A clock that does not run while its owner does not: for waits that end with a verdict on others.

    clock = AwakeClock(time.monotonic)
    clock()                  # seconds that only grow, without those in which this process was stopped
    clock.woke_s()           # seconds since it was stopped last

A process is stopped by SIGSTOP, by `docker pause`, by a machine or a job that is suspended, by Ctrl-S on its terminal.
What others did meanwhile it has not seen, so that time tells nothing about them.
"""

from collections.abc import Callable

GAP_S = 5.0
"""Between two readings: longer, and this process stood still. A look at all ranks and nodes takes 3 s at most."""


class AwakeClock:
    """Read it often: what lies between two readings is left out where it is longer than GAP_S.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()
        self._slept_s = 0.0
        self._woke: float | None = None

    def __call__(self) -> float:
        """Seconds, as `clock` counts them, less those that were slept."""
        now = self._clock()
        gap_s = now - self._last
        self._last = now
        if gap_s > GAP_S:
            self._slept_s += gap_s
            self._woke = now
        return now - self._slept_s

    def woke_s(self) -> float:
        """Seconds since the end of the last sleep; infinite where there was none."""
        return float("inf") if self._woke is None else self._last - self._woke
