"""What crosses between the driver and its ranks: plain data that pickles, without torch and without Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ray_memprof.config import RunConfig

Status = Literal["ok", "oom", "host_oom", "failed", "died", "hung", "lost", "interrupted", "never_started"]
"""How a rank, or a run, ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFacts:
    """Where an actor is, asked before it knows its rank."""

    node_id: str
    """Ray's; two nodes may share an IP."""
    host: str
    node_ip: str
    pid: int
    started: int = 0
    """When its process started, in the kernel's own ticks: with the pid it names one process, whatever that calls
    itself; 0: not known."""
    kernel: str = ""
    """Of which start of which kernel: processes of one have one clock. "": not known."""
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
    """Allow-listed variables of the driver, applied where the rank has none of its own."""
    clock_offset_ns: int = 0
    """What its host's clock is ahead of the driver's; 0 on the driver's own host."""
    master_addr: str = "127.0.0.1"
    master_port: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """A sign of life: where a rank is and what it holds."""

    rank: int
    sequence: int
    """Spans entered and left so far: grows while the rank gets on."""
    path: str
    """Of the innermost open span; "" between spans."""
    stage: str
    step: int
    """Of the denoise loop, from 0; -1 outside it."""
    num_steps: int
    """-1: not known."""
    allocated_bytes: int
    reserved_bytes: int
    device_used_bytes: int
    problem: str = ""
    """Why its recorder can write no more; "" where it can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A process group, or two ranks of one, by the same name on all its ranks."""

    name: str
    """torch's; groups that share no rank may have the same."""
    first_rank: int
    second_rank: int | None = None
    """Of two ranks: they have no number before their first call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """Where a rank is; asked of ranks that do not get on."""

    stack: str
    """Of the thread that runs the workload."""
    joined: Mapping[Group, int] = field(default_factory=dict)
    """How many collectives of each group it has called, finished or not; see collectives.joined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a rank's run ended, told by the rank itself."""

    rank: int
    status: Status
    exit_code: int = 0
    reason: str = ""
    """One line; empty when all is well."""
    hint: str = ""
    path: str = ""
    """Of the innermost span that an error left."""
    step: int = -1
    allocated_bytes: int = 0
    reserved_bytes: int = 0
    oom_by: str | None = None
    """Who could not get device memory; None: torch's allocator, or it did not run out."""
    oom_free_bytes: int | None = None
    """On the device when it ran out; None: not known, or it did not."""
    check: "ReplayCheck | None" = None
    environment: dict[str, str] = field(default_factory=dict)
    """What bore on its memory at the end: a workload may have set some of it itself."""
    problems: tuple[str, ...] = ()
    """What went wrong with its recording, a line each; the run went on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayCheck:
    """Whether the recorded events add up to the allocator's own counters, and what recording itself cost."""

    num_events: int
    num_lost_events: int
    num_checks: int
    """Moments at which the replayed curves were laid beside the counters."""
    max_error_bytes: int
    """Largest difference seen in allocated, reserved or active bytes; 0 is what must be."""
    allocated_peak_bytes: int
    """The allocator's own counter."""
    replayed_allocated_peak_bytes: int
    reserved_peak_bytes: int
    replayed_reserved_peak_bytes: int
    recorder_ns: int
    """Spent by the recorder on the thread that runs the model."""
    longest_pause_ns: int
    """The longest time the recorder held up that thread at once."""
    recorder_bytes: int
    """Largest number of bytes that the recorder held in buffers, as far as it can count them."""
