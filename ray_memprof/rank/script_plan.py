"""The orders for the process of a script, from the plan of its rank.

    orders = script_orders(plan, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "41123"}, clock.marks)

For the rank alone: the script's process does not import the configuration.
"""

from collections.abc import Mapping

from ray_memprof.rank.plan import RankPlan
from ray_memprof.rank.script_messages import ScriptOrders
from ray_memprof.workload.wan_rank import trace_file, trace_schedule


def script_orders(plan: RankPlan, environment: Mapping[str, str], clock: tuple[int, int]) -> ScriptOrders:
    """What the process runs and records.

    Args:
        plan: of a rank whose workload is a script.
        environment: variables that were not known when the process was started.
        clock: Clock.marks of the clock whose offset the driver has measured.
    """
    script, logging = plan.config.script, plan.config.logging
    assert script is not None  # config/rules.py refuses workload: script without one
    return ScriptOrders(
        recording=plan.recording,
        path=script.path,
        module=script.module or "",
        args=script.args,
        module_spans=script.module_spans,
        components=script.components,
        ranges=script.ranges,
        num_ranks=plan.world_size,
        environment=dict(environment),
        clock=clock,
        trace=trace_schedule(logging),
        trace_file=trace_file(logging, plan.run_dir, plan.rank),
    )
