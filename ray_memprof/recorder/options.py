"""The options of a recorder: what is recorded of one rank, and where it is written.

    RecordingOptions(run_dir=Path("profiler_logs/nano/1"), rank=0, device="cuda:0", level="event")

Plain data, without torch, so that a launcher, a test and a program that records itself all use the same options.
"""

from dataclasses import dataclass
from pathlib import Path

from ray_memprof.store.level import Level


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordingOptions:
    """The options of one rank."""

    run_dir: Path
    """The run folder, or a scratch folder of the node that is collected at the end."""
    rank: int = 0
    device: str
    """As torch names it in this process: "cpu" or "cuda:1"."""
    level: Level = "event"
    keeps_rows: bool = True
    """False: nothing is written; the recorder still tells where the rank is."""
    sample_interval_s: float = 0.1
    """Seconds between two samples of the device and the host."""
    gpu_uuid: str = ""
    """NVML's name of the GPU; "": gpu_index says which."""
    gpu_index: int = -1
    """Physical index on the node, as NVML counts; -1: not known."""
    device_total_bytes: int = 0
    """0: not known."""
    clock_offset_ns: int = 0
    """How far the clock of this host is ahead of the driver's."""

    @property
    def has_events(self) -> bool:
        """Whether allocator events are recorded."""
        return self.keeps_rows and self.level != "stage"

    @property
    def has_stacks(self) -> bool:
        """Whether events bring their Python stacks."""
        return self.keeps_rows and self.level == "stack"
