"""Which meter measures a rank: by its device, and by the level of its recording."""

from typing import TYPE_CHECKING

from ray_memprof.clock import Clock
from ray_memprof.meters import Meter
from ray_memprof.problems import Problems
from ray_memprof.recording_options import RecordingOptions

if TYPE_CHECKING:
    from ray_memprof.device import Device


def meter_of(options: RecordingOptions, device: "Device | None", clock: Clock, problems: Problems) -> Meter:
    """The meter of this rank.

    Args:
        options: of the recording.
        device: its GPU as the driver knows it; None: there is none.
        clock: tells the time.
        problems: where the meter notes what it cannot do.
    """
    has_events, has_stacks = options.has_events, options.has_stacks
    if options.device == "cpu":
        from ray_memprof.meters.host import HostMeter

        return HostMeter(events=has_events, stacks=has_stacks, clock=clock)
    from ray_memprof.meters.cuda import CudaMeter

    index = int(options.device.partition(":")[2] or 0)
    return CudaMeter(
        index, events=has_events, stacks=has_stacks, device=device, clock=clock, problems=problems
    )
