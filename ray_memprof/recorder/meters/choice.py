"""Chooses the meter of a rank, by its device and by the level of its recording."""

from typing import TYPE_CHECKING

from ray_memprof.recorder.clock import Clock
from ray_memprof.recorder.meters.meter import Meter
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.problems import Problems

if TYPE_CHECKING:
    from ray_memprof.recorder.meters.nvml import Device


def meter_of(options: RecordingOptions, device: "Device | None", clock: Clock, problems: Problems) -> Meter:
    """The meter of this rank.

    Args:
        options: what is recorded.
        device: the rank's GPU through NVML; None: there is none.
        clock: tells the time.
        problems: where the meter notes what it cannot do.
    """
    has_events, has_stacks = options.has_events, options.has_stacks
    if options.device == "cpu":
        from ray_memprof.recorder.meters.host import HostMeter

        return HostMeter(events=has_events, stacks=has_stacks, clock=clock)
    from ray_memprof.recorder.meters.cuda import CudaMeter

    index = int(options.device.partition(":")[2] or 0)
    return CudaMeter(
        index, events=has_events, stacks=has_stacks, device=device, clock=clock, problems=problems
    )
