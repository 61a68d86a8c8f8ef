"""Samples the device every tenth of a second, on a thread of its own: memory in use, by which process, and how busy.

    with sampling(recorder, meter, device, interval_s=0.1): ...

Samples show what happens between span boundaries and what other processes take; they are rows of the samples table. A
sample that cannot be taken leaves a gap in the rows and a problem of the run; the next one is tried all the same.

During a long span the same thread also lets the recorder take waiting events, even where samples are rare.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ray_memprof.recorder.clock import Clock
from ray_memprof.recorder.flag import Flag
from ray_memprof.recorder.meters.meter import Meter, Reading
from ray_memprof.recorder.meters.nvml import Device
from ray_memprof.recorder.rows import Sample
from ray_memprof.wording import error_line

RELIEVE_S = 0.1
"""Seconds between two moments when the recorder may take waiting events: many come, and there is little room."""
END_S = 5.0
"""Seconds that the end of the recording waits for the last sample."""
_AGAIN_S = 0.001
"""Seconds before the meter is asked again whether it answers."""
_TRIES = 3
_QUICK_NS = 1_000_000
"""A longer reading was interrupted: a span may have ended between its time and its figures. It is taken again."""


class SampleListener(Protocol):
    """The part of the recorder that is told of samples."""

    def tick(self, sample: Sample, *, is_whole: bool) -> None:
        """Receive a sample, right after it was taken.

        Args:
            sample: the row.
            is_whole: False: its allocated and reserved bytes are older than the rest.
        """

    def relieve(self) -> None:
        """The meter answers at this moment: events that have waited for long may be taken from it."""

    def problem(self, text: str) -> None:
        """Receive what went wrong; the same text may come many times."""


@contextmanager
def sampling(
    listener: SampleListener,
    meter: Meter,
    device: Device | None,
    interval_s: float,
    *,
    clock: Clock | None = None,
) -> Iterator[None]:
    """Tell `listener` of a sample every `interval_s` seconds while the block runs.

    Args:
        listener: is told of each sample, on the thread that takes it.
        meter: the meter of the rank.
        device: the rank's device through NVML; None: only the meter is asked.
        interval_s: seconds between two samples.
        clock: the clock that the meter uses too.
    """
    sampler = Sampler(listener, meter, device, clock or Clock(), interval_s)
    thread = threading.Thread(target=sampler.work, name="sampler", daemon=True)
    pid = os.getpid()
    thread.start()
    try:
        yield
    finally:
        if os.getpid() == pid:  # a forked child leaves this block too, but does not have the thread
            sampler.done.set()
            thread.join(END_S)  # a driver that does not answer must not keep the program here
            if thread.is_alive():
                listener.problem(f"the last sample was not taken within {END_S:g} s, it is missing")


class Sampler:
    """Takes samples; never raises. See sampling() for its arguments."""

    def __init__(
        self,
        listener: SampleListener,
        meter: Meter,
        device: Device | None,
        clock: Clock,
        interval_s: float = RELIEVE_S,
    ) -> None:
        self._listener, self._meter, self._device, self._clock = listener, meter, device, clock
        self._interval_s, self._patience_s = interval_s, min(interval_s, RELIEVE_S)
        self._last: Reading | None = None
        self._outside = 0
        self.done = Flag()
        """Once it is set, work() ends."""

    def work(self) -> None:
        """Take samples, and more often than that let the recorder take waiting events, until `done` is set."""
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
        """Read what is held before the first sample."""
        try:
            self._last = self._meter.peek()
        except Exception as error:
            self._note("what is held at the beginning could not be read", error)

    def look(self) -> None:
        """Take a sample, or note why there is none."""
        try:
            # An allocator that does not answer still holds what it held: the model waits for it, or for the device.
            is_fresh = self._answers()
            t_ns, is_whole = self._read() if is_fresh else (self._clock.now_ns(), False)
            if self._last is None or (self._device is None and not is_fresh):
                return
            row = sample(self._last, self._device, t_ns=t_ns, is_fresh=is_fresh, note=self._note)
            self._listener.tick(row, is_whole=is_whole)
            if is_fresh:
                self._listener.relieve()
        except Exception as error:
            self._note("a sample could not be taken", error)

    def relieve(self) -> None:
        """Let the recorder take waiting events, between two samples."""
        if not self._meter.has_events:
            return
        try:
            if self._answers():
                self._meter.peek()  # this tells the recorder how many events wait
                self._listener.relieve()
        except Exception as error:
            self._note("events that wait could not be taken", error)

    def _answers(self) -> bool:
        """Whether the meter answers now or soon: a model that mostly waits is seen to move only now and then."""
        until = time.monotonic() + self._patience_s
        while not self._meter.answers():
            if time.monotonic() >= until or self.done.wait(_AGAIN_S):
                return False
        return True

    def _read(self) -> tuple[int, bool]:
        """Read the meter; return the time of the reading, and whether all its figures are of that time."""
        for _ in range(_TRIES):
            t_ns = self._clock.now_ns()
            self._last = self._meter.peek()
            is_quick = self._clock.now_ns() - t_ns < _QUICK_NS
            if (is_whole := self._is_whole(self._last)) and is_quick:
                break
        return t_ns, is_whole

    def _is_whole(self, now: Reading) -> bool:
        """Whether the allocator got no new segment between the readings of reserved bytes and of device memory.

        Their difference is the memory outside the allocator, which seldom changes. Where it seems to have grown, the
        allocator may have got a segment between the two readings.
        """
        outside = now.device_used - now.reserved
        if outside > self._outside and self._meter.peek().reserved != now.reserved:
            return False
        self._outside = outside
        return True

    def _note(self, what: str, error: Exception) -> None:
        self._listener.problem(f"{what}: {error_line(error)}")


def sample(
    reading: Reading,
    device: Device | None,
    *,
    t_ns: int,
    is_fresh: bool = True,
    note: Callable[[str, Exception], None],
) -> Sample:
    """Return one row; figures that the driver does not report stay empty.

    Args:
        reading: the reading just taken, or the last one that there is.
        device: is asked about processes, and for the memory in use where the reading is old.
        t_ns: the row's time.
        is_fresh: whether the reading is of that time.
        note: is told of the driver's errors, except the answer that it does not report a figure.
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
            note("the driver did not report all of a sample", error)
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
    """Return the bytes of this process and of all others; None where the driver does not report them.

    In a container the driver may name processes by the host's numbers: then this process is not found among them, and
    both results are None.
    """
    holders = {holder.pid: holder.used_bytes for holder in device.holders() or ()}
    own = holders.pop(pid, None)
    sizes = list(holders.values())
    if own is None or None in sizes:
        return own, None
    return own, sum(size for size in sizes if size is not None)
