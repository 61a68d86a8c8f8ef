"""What the driver sends to a rank before it runs: the configuration, the rank's place, its folder and its addresses.

    plan = RankPlan(run_id=..., config=config, rank=0, world_size=4, ...)
    plan.place, plan.device, plan.recording

Plain data that can be pickled, without torch and without Ray.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ray_memprof.config.run_config import RunConfig
from ray_memprof.rank.messages import RankFacts
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.workload.place import Place


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
    working_dir: Path | None = None
    """Where a script runs, if the node has this folder: where the run was launched; None: where the actor runs."""
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
    def asks_torch(self) -> bool:
        """Whether the actor itself imports torch: for wan, and where it tells the versions for all ranks of its node.

        A script imports torch in a process of its own, so an actor that does too only takes seconds and memory.
        """
        return self.config.workload == "wan" or self.local_rank == 0

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
