"""What limit_gpu_peak measures of this process, against torch's own counters and the device."""

import pytest
import torch

from ray_memprof.pytest_plugin.peaks import watched

pytestmark = pytest.mark.gpu
MIB = 2**20


def test_peaks_are_those_of_the_block_whoever_resets_the_counters() -> None:
    torch.empty(512 * MIB, dtype=torch.uint8, device="cuda")  # gone before the block, and back from the cache
    with watched() as watch:
        held = torch.cuda.memory_allocated()
        large = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        del large
        torch.cuda.reset_peak_memory_stats()
        small = torch.empty(MIB, dtype=torch.uint8, device="cuda")
    assert torch.cuda.max_memory_allocated() == held + small.numel()  # they were reset
    found = {name: watch.measured(name).bytes for name in ("allocated", "reserved", "device_used")}
    assert found["allocated"] == held + 256 * MIB
    assert found["reserved"] >= reserved >= found["allocated"]
    # Between the two looks at the device only the small tensor's segment was added.
    assert abs(found["device_used"] - (total - free)) <= 32 * MIB
