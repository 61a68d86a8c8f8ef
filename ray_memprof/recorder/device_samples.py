"""A look at the device every tenth of a second, on a thread of its own: what is in use, by whom, and how busy it is.

    with sampling(recorder.tick, meter, device, interval_s=0.1): ...

Samples show what happens between span boundaries and what other processes take; they are rows of the samples table. One
that cannot be taken is no row: a gap, and a problem of the run. The next one is tried as if nothing had been.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray_memprof.recorder.clock import Clock
from ray_memprof.recorder.meters.meter import Meter, Reading
from ray_memprof.recorder.meters.nvml import Device
from ray_memprof.recorder.scribe import Sample

Tick = Callable[[Sample], None]
_TRIES = 3
_QUICK_NS = 1_000_000
"""A look that takes longer was interrupted: what it saw may be older than the end of a span. Another is taken."""


def _unheard(text: str) -> None:
    """Where nobody asks for problems."""


@contextmanager
def sampling(
    tick: Tick,
    meter: Meter,
    device: Device | None,
    interval_s: float,
    *,
    clock: Clock | None = None,
    tick_old: Tick | None = None,
    problem: Callable[[str], None] = _unheard,
) -> Iterator[None]:
    """Call `tick` with a sample every `interval_s` seconds while the block runs.

    Args:
        tick: takes each sample, at once.
        meter: of the rank.
        device: the same through NVML; None: the meter alone is asked.
        interval_s: seconds between two samples.
        clock: that the meter has too.
        tick_old: takes those whose allocated and reserved bytes are older than the rest; None: as the others.
        problem: is told what went wrong, again and again.
    """
    sampler = Sampler(tick, meter, device, clock or Clock(), tick_old or tick, problem)
    done, pid = threading.Event(), os.getpid()

    def work() -> None:
        sampler.begin()
        while not done.wait(interval_s):
            sampler.look()

    thread = threading.Thread(target=work, name="sampler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        if os.getpid() == pid:  # a forked child leaves this block too: the thread is not there
            done.set()
            thread.join()


class Sampler:
    """Takes samples; no error leaves it. See sampling() for what it is given."""

    def __init__(
        self,
        tick: Tick,
        meter: Meter,
        device: Device | None,
        clock: Clock,
        tick_old: Tick,
        problem: Callable[[str], None],
    ) -> None:
        self._tick, self._tick_old, self._problem = tick, tick_old, problem
        self._meter, self._device, self._clock = meter, device, clock
        self._last: Reading | None = None
        self._outside = 0

    def begin(self) -> None:
        """Know what is held before the first sample."""
        try:
            self._last = self._meter.peek()
        except Exception as error:
            self._note("what is held at the beginning could not be read", error)

    def look(self) -> None:
        """Take a sample, or note why there is none."""
        try:
            # Where the allocator does not answer it holds what it held: the model waits for it, or for the device.
            is_fresh = self._meter.answers()
            t_ns, is_whole = self._read() if is_fresh else (self._clock.now_ns(), False)
            if self._last is None or (self._device is None and not is_fresh):
                return
            row = sample(self._last, self._device, t_ns=t_ns, is_fresh=is_fresh, note=self._note)
            (self._tick if is_whole else self._tick_old)(row)
        except Exception as error:
            self._note("a sample could not be taken", error)

    def _read(self) -> tuple[int, bool]:
        """Read the meter; the time of what it tells, and whether all of it is of that time."""
        for _ in range(_TRIES):
            t_ns = self._clock.now_ns()
            self._last = self._meter.peek()
            is_quick = self._clock.now_ns() - t_ns < _QUICK_NS
            if (is_whole := self._is_whole(self._last)) and is_quick:
                break
        return t_ns, is_whole

    def _is_whole(self, now: Reading) -> bool:
        """Whether no segment came between the two figures that memory outside the allocator is the difference of.

        It mostly stays what it is. Where it seems to have grown, the model may have been given a segment in between.
        """
        outside = now.device_used - now.reserved
        if outside > self._outside and self._meter.peek().reserved != now.reserved:
            return False
        self._outside = outside
        return True

    def _note(self, what: str, error: Exception) -> None:
        self._problem(f"{what}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


def sample(
    reading: Reading,
    device: Device | None,
    *,
    t_ns: int,
    is_fresh: bool = True,
    note: Callable[[str, Exception], None],
) -> Sample:
    """One row; what the driver does not tell stays empty.

    Args:
        reading: just taken, or the last there is.
        device: to ask about processes, and for what is in use where the reading is old.
        t_ns: the row's time.
        is_fresh: whether the reading is of that time.
        note: is told what else the driver answers than that it does not tell.
    """
    own = others = utilisation = None
    used = reading.device_used
    if device is not None:
        if not is_fresh:
            used = device.used_bytes()
        try:
            utilisation = device.utilisation()
            own, others = split(device, os.getpid())
        except Exception as error:  # the rest of the row is worth having
            note("the driver did not tell all of a sample", error)
    return Sample(
        t_ns=t_ns,
        device_used_bytes=used,
        process_used_bytes=own,
        others_used_bytes=others,
        allocated_bytes=reading.allocated,
        reserved_bytes=reading.reserved,
        host_rss_bytes=reading.host_rss,
        utilisation_fraction=utilisation,
    )


def split(device: Device, pid: int) -> tuple[int | None, int | None]:
    """Bytes of this process and of all others; None where the driver does not tell.

    In a container the driver may name processes by the host's numbers: then this one is not among them, and neither
    number is known.
    """
    holders = {holder.pid: holder.used_bytes for holder in device.holders() or ()}
    own = holders.pop(pid, None)
    sizes = list(holders.values())
    if own is None or None in sizes:
        return own, None
    return own, sum(size for size in sizes if size is not None)
