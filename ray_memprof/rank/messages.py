"""What a rank reports to the driver: plain data that can be pickled, without torch, Ray and the configuration.

What the driver sends to a rank is in plan.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ray_memprof.recorder.status import Group, ReplayCheck

Status = Literal["ok", "oom", "host_oom", "failed", "died", "hung", "lost", "interrupted", "never_started"]
"""How a rank, or a run, ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFacts:
    """The node, process and GPU of an actor; the driver asks for them before it assigns ranks."""

    node_id: str
    """Ray's id of the node; two nodes may share an IP."""
    host: str
    node_ip: str
    pid: int
    started: int = 0
    """When its process started, in ticks of the kernel; together with the pid it identifies the process, whatever name
    the process gives itself. 0: not known."""
    kernel: str = ""
    """Identifies one boot of one kernel: all processes under it share one clock. "": not known."""
    gpu_index: int
    """Physical index on its node, as NVML counts; -1: no GPU."""
    gpu_uuid: str = ""
    gpu_name: str = ""
    device_total_bytes: int = 0
    visible_device: str = ""
    """How CUDA_VISIBLE_DEVICES names this GPU on its node: an index or a UUID."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a rank answers once it is ready to run."""

    run_dir: Path
    """Where this rank writes: the run folder, or a scratch folder of its node if ray.scratch_dir is set or the run
    folder is not there."""
    shared: bool
    """Whether run_dir is the run folder itself."""
    environment: dict[str, str]
    process: tuple[int, int] | None = None
    """Pid of the process that runs the script, and when it started, as in RankFacts; None: the actor itself works."""
    versions: dict[str, Any]
    """From versions.versions(); empty: those of the first rank of its node (see RankPlan.asks_torch)."""
    checks: dict[str, Any]
    """From checks.check_rank: its device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """Where a rank is; ranks are asked for it when they make no progress."""

    stack: str
    """The stack of the thread that runs the workload."""
    joined: Mapping[Group, int] = field(default_factory=dict)
    """How many collectives of each group it has called, finished or not; see collectives.joined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a rank's run ended, reported by the rank itself."""

    rank: int
    status: Status
    exit_code: int = 0
    reason: str = ""
    """One line; empty if the rank ended well."""
    hint: str = ""
    path: str = ""
    """Path of the innermost span that the error left."""
    step: int = -1
    allocated_bytes: int = 0
    reserved_bytes: int = 0
    oom_by: str | None = None
    """Which library could not get device memory; None: torch's allocator, or memory did not run out."""
    oom_free_bytes: int | None = None
    """Free on the device when memory ran out; None: not known, or memory did not run out."""
    check: ReplayCheck | None = None
    environment: dict[str, str] = field(default_factory=dict)
    """The variables that affect its memory, as they were at the end: the workload may have set some itself."""
    problems: tuple[str, ...] = ()
    """What went wrong with its recording, one line for each problem; the run went on."""
