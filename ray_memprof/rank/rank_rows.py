"""Columns of the table ranks that a launched run and a program without a launcher have alike.

row = rank_columns(facts, outcome) | {"node": 0, "local_rank": 0, ...}
"""

from dataclasses import asdict
from typing import Any

from ray_memprof.rank.messages import Outcome, RankFacts
from ray_memprof.recorder.status import ReplayCheck

_NO_CHECK = ReplayCheck(**dict.fromkeys(ReplayCheck.__dataclass_fields__, 0))


def rank_columns(facts: RankFacts, outcome: Outcome) -> dict[str, Any]:
    """The row of a rank without its place: node, local_rank, clock_offset_ns and its coordinates are missing."""
    return {
        "rank": outcome.rank,
        "node_id": facts.node_id,
        "host": facts.host,
        "pid": facts.pid,
        "gpu_index": facts.gpu_index,
        "gpu_uuid": facts.gpu_uuid,
        "gpu_name": facts.gpu_name,
        "device_total_bytes": facts.device_total_bytes,
        # The recorder sees every event, so its replay is exact and complete.
        "inexact_bytes": 0,
        "peak_at_least": False,
        "status": outcome.status,
        "exit_code": outcome.exit_code,
        "reason": outcome.reason,
        "path": outcome.path,
        "step": outcome.step,
        "oom_by": outcome.oom_by,
        "oom_free_bytes": outcome.oom_free_bytes,
        **asdict(outcome.check or _NO_CHECK),
    }
