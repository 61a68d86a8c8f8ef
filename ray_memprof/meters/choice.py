"""Which meter measures a rank: by its device, and by the level of its recording."""

from typing import TYPE_CHECKING

from ray_memprof.clock import Clock
from ray_memprof.meters import Meter
from ray_memprof.plan import RankPlan
from ray_memprof.problems import Problems

if TYPE_CHECKING:
    from ray_memprof.device import Device


def meter_of(plan: RankPlan, device: "Device | None", clock: Clock, problems: Problems) -> Meter:
    """The meter of this rank.

    Args:
        plan: of the rank.
        device: its GPU as the driver knows it; None: there is none.
        clock: tells the time.
        problems: where the meter notes what it cannot do.
    """
    from ray_memprof.workload import device_name

    level, name = plan.config.logging.level, device_name(plan)
    has_events = plan.config.logging.profile_memory and level != "stage"
    has_stacks = has_events and level == "stack"
    if name == "cpu":
        from ray_memprof.meters.host import HostMeter

        return HostMeter(events=has_events, stacks=has_stacks, clock=clock)
    from ray_memprof.meters.cuda import CudaMeter

    index = int(name.partition(":")[2] or 0)
    return CudaMeter(
        index, events=has_events, stacks=has_stacks, device=device, clock=clock, problems=problems
    )
