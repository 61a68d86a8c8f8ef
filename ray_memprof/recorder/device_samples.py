"""A look at the device every tenth of a second, on a thread of its own: what is in use, by whom, and how busy it is.

    with sampling(recorder, meter, device, interval_s=0.1): ...

Samples show what happens between span boundaries and what other processes take; they are rows of the samples table. One
that cannot be taken is no row: a gap, and a problem of the run. The next one is tried as if nothing had been.

The same thread has the recorder take what waits where a span goes on for long, however seldom samples are wanted.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ray_memprof.recorder.clock import Clock
from ray_memprof.recorder.meters.meter import Meter, Reading
from ray_memprof.recorder.meters.nvml import Device
from ray_memprof.recorder.rows import Sample

RELIEVE_S = 0.1
"""Between two times that the recorder may take what waits: events come fast, and have little room."""
END_S = 5.0
"""That the end of the recording waits for a sample."""
_AGAIN_S = 0.001
"""Before the meter is asked anew whether it answers."""
_TRIES = 3
_QUICK_NS = 1_000_000
"""A look that takes longer was interrupted: what it saw may be older than the end of a span. Another is taken."""


class Hearer(Protocol):
    """Who is told; the recorder."""

    def tick(self, sample: Sample, *, is_whole: bool) -> None:
        """A sample, at once.

        Args:
            sample: just taken.
            is_whole: False: its allocated and reserved bytes are older than the rest.
        """

    def relieve(self) -> None:
        """The meter answers at this moment: what has waited for long may be taken from it."""

    def problem(self, text: str) -> None:
        """What went wrong, again and again."""


@contextmanager
def sampling(
    hearer: Hearer, meter: Meter, device: Device | None, interval_s: float, *, clock: Clock | None = None
) -> Iterator[None]:
    """Tell `hearer` of a sample every `interval_s` seconds while the block runs.

    Args:
        hearer: is told, on the thread that takes them.
        meter: of the rank.
        device: the same through NVML; None: the meter alone is asked.
        interval_s: seconds between two samples.
        clock: that the meter has too.
    """
    sampler = Sampler(hearer, meter, device, clock or Clock(), interval_s)
    thread = threading.Thread(target=sampler.work, name="sampler", daemon=True)
    pid = os.getpid()
    thread.start()
    try:
        yield
    finally:
        if os.getpid() == pid:  # a forked child leaves this block too: the thread is not there
            sampler.done.set()
            thread.join(END_S)  # a driver that does not answer must not keep the program from its end
            if thread.is_alive():
                hearer.problem(
                    f"the last sample was not taken within {END_S:g} s: the driver does not answer"
                )


class Sampler:
    """Takes samples; no error leaves it. See sampling() for what it is given."""

    def __init__(
        self, hearer: Hearer, meter: Meter, device: Device | None, clock: Clock, interval_s: float = RELIEVE_S
    ) -> None:
        self._hearer, self._meter, self._device, self._clock = hearer, meter, device, clock
        self._interval_s, self._patience_s = interval_s, min(interval_s, RELIEVE_S)
        self._last: Reading | None = None
        self._outside = 0
        self.done = threading.Event()
        """Once it is set, work() ends."""

    def work(self) -> None:
        """Take samples, and have the recorder relieved more often than that, until it is done."""
        self.begin()
        now = time.monotonic()
        sample_at = now + self._interval_s
        while not self.done.wait(max(0.0, min(now + RELIEVE_S, sample_at) - time.monotonic())):
            now = time.monotonic()
            if now >= sample_at:
                sample_at = now + self._interval_s
                self.look()
            else:
                self.relieve()

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
            is_fresh = self._answers()
            t_ns, is_whole = self._read() if is_fresh else (self._clock.now_ns(), False)
            if self._last is None or (self._device is None and not is_fresh):
                return
            row = sample(self._last, self._device, t_ns=t_ns, is_fresh=is_fresh, note=self._note)
            self._hearer.tick(row, is_whole=is_whole)
            if is_fresh:
                self._hearer.relieve()
        except Exception as error:
            self._note("a sample could not be taken", error)

    def relieve(self) -> None:
        """Have the recorder take what waits, between two samples."""
        try:
            if self._answers():
                self._meter.peek()  # by which the recorder knows how much that is
                self._hearer.relieve()
        except Exception as error:
            self._note("events that wait could not be taken", error)

    def _answers(self) -> bool:
        """Whether the meter answers now, or soon: a thread that mostly waits must be met while it gets on."""
        until = time.monotonic() + self._patience_s
        while not self._meter.answers():
            if time.monotonic() >= until or self.done.wait(_AGAIN_S):
                return False
        return True

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
        self._hearer.problem(f"{what}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


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
