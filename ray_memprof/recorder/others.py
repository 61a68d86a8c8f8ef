"""What other processes hold of the device: the driver is asked whenever memory outside the allocator has changed.

    others = Others(meter, OwnShare(device, os.getpid(), is_contained=...), recorder.problem)
    others.look(reading)
    others.bytes                        # at the time of the reading; None: not known

Samples have this figure too, but are up to 0.1 s old: what another process took since then would be booked to NCCL, or
to a library. While nothing changes, the driver is not asked.
"""

from collections.abc import Callable

from ray_memprof.recorder.handler_errors import pass_on
from ray_memprof.recorder.meters.meter import Meter, Reading
from ray_memprof.recorder.meters.nvml import OwnShare
from ray_memprof.recorder.rows import Sample
from ray_memprof.wording import error_line

_TRIES = 3
"""How often, at most, the figures of allocator and driver are read until both are of the same moment."""
_UNKNOWN = (
    "the driver does not tell what this process holds of its device (a container, MIG): what others took meanwhile may "
    "be booked to nccl or libraries"
)


class Others:
    """What others hold of one rank's device; call look() on the thread that reads the meter.

    Args:
        meter: the meter of the rank.
        share: tells what this process holds of the device; None: only samples tell what others hold.
        problem: is told if the driver does not report what this process holds.
    """

    def __init__(self, meter: Meter, share: OwnShare | None, problem: Callable[[str], None]) -> None:
        self._meter, self._share, self._problem = meter, share, problem
        self._outside: int | None = None
        self.bytes: int | None = None
        """What others hold; None: not known."""

    def note(self, sample: Sample) -> None:
        """A sample was taken; it is used only where there is no `share` to ask."""
        if self._share is None:
            self.bytes = sample.others_used_bytes

    def look(self, reading: Reading) -> None:
        """Find out what others hold at the time of `reading`."""
        outside = reading.device_used - reading.reserved
        if self._share is None or outside == self._outside:
            return
        for _ in range(_TRIES):
            try:
                own = self._share.read(reading.device_used, reading.reserved, is_on=self._meter.is_on)
            except Exception as error:  # if raised, the span at this boundary would be lost
                pass_on(error)
                own = None
                self._problem(f"the driver could not be asked what this process holds: {error_line(error)}")
            if own is None:
                self.bytes = None
                if self._meter.is_on and self._outside is not None:
                    self._problem(_UNKNOWN)
                break
            now = self._meter.peek()
            if now.reserved == reading.reserved:
                self.bytes = max(0, outside - (own - now.reserved))
                break
            # Another thread allocated meanwhile: these are figures of two moments.
            reading = now
        else:
            return  # asked again at the next boundary
        self._outside = outside
