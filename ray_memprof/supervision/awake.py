"""A clock that stands still while its own process is stopped: for time limits that other processes must keep.

    clock = AwakeClock(time.monotonic)
    clock()                  # seconds that only grow, without those in which this process was stopped
    clock.woke_s()           # seconds since the last stop ended

A process is stopped by SIGSTOP, by `docker pause`, if its machine or job is suspended, or by Ctrl-S on its terminal.
While it is stopped it does not see what the ranks do, so that time must not count against them.
"""

from collections.abc import Callable

GAP_S = 5.0
"""A longer time between two readings means that this process was stopped: one check of all ranks and nodes takes at
most 3 s."""


class AwakeClock:
    """A clock that must be read often: a time of more than GAP_S between two readings is not counted.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()
        self._slept_s = 0.0
        self._woke: float | None = None

    def __call__(self) -> float:
        """Seconds, as `clock` counts them, without those in which this process was stopped."""
        now = self._clock()
        gap_s = now - self._last
        self._last = now
        if gap_s > GAP_S:
            self._slept_s += gap_s
            self._woke = now
        return now - self._slept_s

    def woke_s(self) -> float:
        """Seconds since the last stop ended; infinite if this process was never stopped."""
        return float("inf") if self._woke is None else self._last - self._woke
