"""The messages between the driver and its ranks: plain data that can be pickled, without torch and without Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ray_memprof.config.run_config import RunConfig
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.status import Group, ReplayCheck
from wan.parallel.environment import Place

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
class RankPlan:
    """All that a rank must know to run; set by the driver once every rank's place is known."""

    run_id: str
    config: RunConfig
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node: int
    """Number of the node, in rank order."""
    num_nodes: int = 1
    visible_devices: tuple[str, ...]
    """CUDA_VISIBLE_DEVICES of every rank on this node, in local_rank order; empty without GPUs."""
    facts: RankFacts
    run_dir: Path
    """The run folder as this rank sees it, or a scratch folder of its node that is collected at the end."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the driver that ranks may get; each is set only if the rank has no value of its own."""
    clock_offset_ns: int = 0
    """How far its host's clock is ahead of the driver's; 0 on the driver's own host."""
    master_addr: str = "127.0.0.1"
    master_port: int = 0

    @property
    def place(self) -> Place:
        """The number of this rank, and how many ranks there are."""
        return Place(rank=self.rank, local_rank=self.local_rank, num_ranks=self.world_size)

    @property
    def device(self) -> str:
        """The device's name in torch; CUDA_VISIBLE_DEVICES of this rank lists the GPUs of all ranks of its node."""
        if self.config.model.device == "cpu":
            return "cpu"
        return f"cuda:{self.local_rank}" if self.visible_devices else "cuda:0"

    @property
    def recording(self) -> RecordingOptions:
        """What is recorded of this rank."""
        logging = self.config.logging
        return RecordingOptions(
            run_dir=self.run_dir,
            rank=self.rank,
            device=self.device,
            level=logging.level,
            keeps_rows=logging.profile_memory,
            sample_interval_s=logging.sample_interval_s,
            gpu_uuid=self.facts.gpu_uuid,
            gpu_index=self.facts.gpu_index,
            device_total_bytes=self.facts.device_total_bytes,
            clock_offset_ns=self.clock_offset_ns,
        )


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
