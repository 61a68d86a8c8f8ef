"""A device and a run for the tests of the pytest plug-in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tables import blank, make_ranks, make_run, span

GIB = 2**30


class FakeCuda:
    """One device of 80 GiB whose allocator is told what to hold; 1 GiB of it is held outside the allocator."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.allocated = self.reserved = self.allocated_peak = self.reserved_peak = 0
        self.is_initialized = True
        cuda = torch.cuda
        patch.setattr(cuda, "is_available", lambda: True)
        patch.setattr(cuda, "device_count", lambda: 1)
        patch.setattr(cuda, "is_initialized", lambda: self.is_initialized)
        patch.setattr(cuda, "empty_cache", self.empty_cache)
        patch.setattr(cuda, "max_memory_allocated", lambda index: self.allocated_peak)
        patch.setattr(cuda, "max_memory_reserved", lambda index: self.reserved_peak)
        patch.setattr(cuda, "memory_reserved", lambda index: self.reserved)
        patch.setattr(cuda, "mem_get_info", lambda index: (79 * GIB - self.reserved, 80 * GIB))
        patch.setattr(
            cuda, "reset_peak_memory_stats", lambda index: torch._C._cuda_resetPeakMemoryStats(index)
        )
        patch.setattr(torch._C, "_cuda_resetPeakMemoryStats", self.reset, raising=False)
        patch.setattr(torch, "fake", self, raising=False)

    def hold(self, allocated: float, reserved: float) -> None:
        """GiB, from now on."""
        self.allocated, self.reserved = int(allocated * GIB), int(reserved * GIB)
        self.allocated_peak = max(self.allocated_peak, self.allocated)
        self.reserved_peak = max(self.reserved_peak, self.reserved)

    def empty_cache(self) -> None:
        self.reserved = self.allocated

    def reset(self, index: int) -> None:
        self.allocated_peak, self.reserved_peak = self.allocated, self.reserved


def a_run(
    output_dir: Path,
    peaks: Mapping[str, Sequence[int]],
    samples: Mapping[int, Sequence[Mapping[str, Any]]] = {},
) -> Path:
    """A run folder of ranks whose second step peaks at these bytes, by measure."""
    num_ranks = len(next(iter(peaks.values())))
    ranks = {}
    for rank in range(num_ranks):
        most = {measure: (0, 0, by_rank[rank]) for measure, by_rank in peaks.items()}
        ranks[rank] = {
            "spans": [
                span(1, "denoise", (10, 20), step=1),
                span(2, "denoise", (20, 30), step=2, **most),
                span(3, "denoise/dit.block", (22, 28), step=2, parent_id=2, **most),
            ],
            "samples": [blank("samples", **row) for row in samples.get(rank, ())],
        }
    run_dir = output_dir / "two" / "20260102-030405-abcd"
    make_run(run_dir, ranks)
    make_ranks(run_dir, *({} for _ in range(num_ranks)), run_id="r", source="cuda", workload="wan")
    (output_dir / "two" / "latest").symlink_to(run_dir.name)
    (run_dir / "report.html").touch()
    return run_dir
