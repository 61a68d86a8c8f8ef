"""The time of a run: the driver's wall clock on every rank; it never goes back, even when a host's clock is set.

    clock = Clock(offset_ns=plan.clock_offset_ns)
    clock.now_ns()                            # ns since 1970
    clock.times().ours(columns.t_ns)          # t_ns: of events, by this host's wall clock as torch reports it

A Clock reads the wall clock once, when it is made. From then on it counts with CLOCK_BOOTTIME, which only goes forward
and also counts while the machine is suspended. The time by which this host's clock is ahead of the driver's is
subtracted. The driver measures it by asking the host for its time: see offset().
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_STEP_NS = 10_000
"""A smaller difference between the two clocks does not mean that the wall clock was set."""
_LOOKS = 3
"""How often two clocks are read, one after the other; the pair that took the least time counts."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _forward_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """The clock of one process; may be used from any thread.

    Args:
        offset_ns: by how much this host's wall clock is ahead of the driver's.
    """

    def __init__(self, offset_ns: int = 0) -> None:
        wall_ns, forward_ns = _both()
        self._wall_ns, self._forward_ns = wall_ns, forward_ns
        self._since_1970_ns = wall_ns - forward_ns
        self.offset_ns = offset_ns

    @property
    def marks(self) -> tuple[int, int]:
        """The wall clock and CLOCK_BOOTTIME when this clock was made: by them another process of this host makes it."""
        return self._wall_ns, self._forward_ns

    @classmethod
    def of(cls, marks: tuple[int, int]) -> "Clock":
        """Return the clock with these marks, without an offset."""
        clock = cls()
        clock._wall_ns, clock._forward_ns = marks
        clock._since_1970_ns = marks[0] - marks[1]
        return clock

    def ahead(self, offset_ns: int) -> "Clock":
        """Return the same clock with `offset_ns`, which was not known when this one was made."""
        clock = Clock(offset_ns)
        clock._wall_ns, clock._forward_ns = self._wall_ns, self._forward_ns
        clock._since_1970_ns = self._since_1970_ns
        return clock

    def now_ns(self) -> int:
        """Return the driver's wall time, in ns since 1970; it never goes back."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._since_1970_ns - self.offset_ns

    def times(self, since_ns: int = 0) -> "WallTimes":
        """Return what converts times that torch reports now, by the host's wall clock, into times of this clock.

        Args:
            since_ns: by this clock; no event to convert happened before.
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
    """Converts times of the host's wall clock, as torch's allocator reports them, into times of our Clock.

    torch records ticks of the processor. When asked for times, it draws a straight line through two moments: the
    loading of torch, and now. If the wall clock was set in between, only the time of now is right on that line; every
    other time is wrong in proportion to its age. So the age is divided by the `rate` of the line.
    """

    now_ns: int
    """Now, by our Clock."""
    wall_ns: int
    """The same moment by the wall clock."""
    rate: float = 1.0
    """Seconds of the wall clock that pass on the line in one second."""
    since_ns: int = 0
    """By our Clock; no event happened before."""

    def ours(self, times_ns: Sequence[int]) -> list[int]:
        """Return `times_ns` as times of our Clock, in the same order."""
        if self.rate == 1.0:
            shift = self.now_ns - self.wall_ns
            return [time_ns + shift for time_ns in times_ns]
        times, latest = [], self.since_ns
        for time_ns in times_ns:
            # If the clock was set back by more than the time since torch was loaded, the line runs backwards.
            age_ns = max(0, (self.wall_ns - time_ns) / self.rate) if abs(self.rate) > 1e-6 else 0
            latest = max(latest, self.now_ns - int(age_ns))
            times.append(latest)
        return times


def _both() -> tuple[int, int]:
    """Return the wall clock and CLOCK_BOOTTIME of one moment, to some tenths of a microsecond."""
    best: tuple[int, int, int] | None = None
    for _ in range(_LOOKS):
        before, wall, after = _forward_ns(), time.time_ns(), _forward_ns()
        if best is None or after - before < best[0]:
            best = after - before, wall, before + (after - before) // 2
    assert best is not None
    return best[1], best[2]


def kernel() -> str:
    """Return the id of this start of the kernel: processes with the same id share one clock. "": it is not known."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Offset:
    """By how much another clock is ahead of ours."""

    ns: int
    error_ns: int
    """By how much `ns` may be wrong: half of the round trip that measured it."""


def offset(ours: Clock, theirs: Callable[[], int], num_trips: int) -> Offset:
    """Ask another host for its time; the quickest of `num_trips` round trips counts.

    Args:
        ours: the driver's clock.
        theirs: asks the other host and returns its time, in ns since 1970.
        num_trips: at least 1.
    """
    found: Offset | None = None
    for _ in range(num_trips):
        before = ours.now_ns()
        their_ns = theirs()
        trip = ours.now_ns() - before
        if found is None or trip // 2 < found.error_ns:
            # The other host answered at some time during the trip; the middle is wrong by half of the trip at most.
            found = Offset(their_ns - before - trip // 2, trip // 2)
    assert found is not None
    return found
