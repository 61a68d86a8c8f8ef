"""The time of a run: the driver's wall clock on every rank, and no step back, whatever is done to a host's clock.

    clock = Clock(offset_ns=plan.clock_offset_ns)
    clock.now_ns()                            # ns since 1970
    clock.times().ours(columns.t_ns)          # of events that torch has timed by this host's wall clock

A Clock reads the wall clock once, when it is made, and counts from there by the one that only goes forward
(CLOCK_BOOTTIME: a time for which the machine is suspended counts). What this host's clock is ahead of the driver's is
taken out. The driver measures it by asking: see offset().
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_STEP_NS = 10_000
"""By less than this the wall clock was not set anew."""
_LOOKS = 3
"""Two clocks are read one after the other so often; the closest pair counts."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _forward_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """Of one process; from any thread.

    Args:
        offset_ns: what this host's wall clock is ahead of the driver's.
    """

    def __init__(self, offset_ns: int = 0) -> None:
        wall_ns, forward_ns = _both()
        self._wall_ns, self._forward_ns = wall_ns, forward_ns
        self._since_1970_ns = wall_ns - forward_ns
        self.offset_ns = offset_ns

    def ahead(self, offset_ns: int) -> "Clock":
        """The same clock, where `offset_ns` is now known."""
        clock = Clock(offset_ns)
        clock._wall_ns, clock._forward_ns = self._wall_ns, self._forward_ns
        clock._since_1970_ns = self._since_1970_ns
        return clock

    def now_ns(self) -> int:
        """The driver's wall time, in ns since 1970; never before what it was before."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._since_1970_ns - self.offset_ns

    def times(self, since_ns: int = 0) -> "WallTimes":
        """How times that torch tells now, by the host's wall clock, become ours.

        Args:
            since_ns: of our time; nothing that is to be told happened before.
        """
        wall_ns, forward_ns = _both()
        now_ns = forward_ns + self._since_1970_ns - self.offset_ns
        since_made_ns = forward_ns - self._forward_ns
        step_ns = wall_ns - self._wall_ns - since_made_ns
        rate = 1.0
        if abs(step_ns) > _STEP_NS and since_made_ns > 0:
            rate = 1 + step_ns / since_made_ns
        return WallTimes(now_ns, wall_ns, rate, since_ns)


@dataclass(frozen=True, slots=True)
class WallTimes:
    """Times told by the host's wall clock, as torch's allocator tells them, and ours.

    torch notes ticks of the processor. When asked, it draws a line through two moments: the loading of torch, and now.
    Where the wall clock was set anew in between, every time on that line is wrong in proportion to its age, and right
    for now alone. So the age is divided by the `rate` at which the line runs.
    """

    now_ns: int
    """Our time."""
    wall_ns: int
    """The wall clock's at the same moment."""
    rate: float = 1.0
    """Seconds of the wall clock in a second, on the line."""
    since_ns: int = 0
    """Of our time; nothing happened before."""

    def ours(self, times_ns: Sequence[int]) -> list[int]:
        """Our times of `times_ns`, which stay in their order."""
        if self.rate == 1.0:
            shift = self.now_ns - self.wall_ns
            return [time_ns + shift for time_ns in times_ns]
        told, latest = [], self.since_ns
        for time_ns in times_ns:
            # A clock that was set back by more than torch's age runs backwards on the line.
            age_ns = max(0, (self.wall_ns - time_ns) / self.rate) if abs(self.rate) > 1e-6 else 0
            latest = max(latest, self.now_ns - int(age_ns))
            told.append(latest)
        return told


def _both() -> tuple[int, int]:
    """The wall clock and the one that only goes forward, of one moment: to some tenths of a microsecond."""
    best: tuple[int, int, int] | None = None
    for _ in range(_LOOKS):
        before, wall, after = _forward_ns(), time.time_ns(), _forward_ns()
        if best is None or after - before < best[0]:
            best = after - before, wall, before + (after - before) // 2
    assert best is not None
    return best[1], best[2]


def kernel() -> str:
    """What is the same for all processes that have one clock: of one start of one kernel. "" where it is not told."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Offset:
    """What a clock is ahead of ours."""

    ns: int
    error_ns: int
    """It may be off by so much: half of the round trip that it was measured with."""


def offset(ours: Clock, theirs: Callable[[], int], num_trips: int) -> Offset:
    """Ask another host for its time; the quickest of `num_trips` round trips counts.

    Args:
        ours: the driver's.
        theirs: asks the other one, and returns its answer, in ns since 1970.
        num_trips: at least 1.
    """
    found: Offset | None = None
    for _ in range(num_trips):
        before = ours.now_ns()
        told = theirs()
        trip = ours.now_ns() - before
        if found is None or trip // 2 < found.error_ns:
            # Answered at some time in between; the middle is wrong by half of it at most.
            found = Offset(told - before - trip // 2, trip // 2)
    assert found is not None
    return found
