"""Memory outside the allocator, as recorded on H200s (torch 2.11, NCCL 2.28.9, 2026-11-28)."""

import gc
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from devices import MIB, device_of, on_device

from ray_memprof.allocator.rules import Rules
from ray_memprof.predictor.outside import Nccl, PageLocked

GIB = 1024 * MIB


def test_the_context_comes_first_then_kernels_then_libraries() -> None:
    device = device_of()
    seen = []
    with on_device(device):
        x = torch.empty(64, 64, device="cuda")
        seen.append(device.outside / MIB)
        x.zero_()
        x = x + 1
        seen.append(device.outside / MIB)
        x = x @ x
        seen.append(device.outside / MIB)
        torch.softmax(x, -1)
        seen.append(device.outside / MIB)
    assert seen == [526.8125, 618.8125, 692.8125, 694.8125]


@pytest.mark.parametrize(
    ("sizes", "grown"),
    [
        # T5, CLIP and the 14B DiT, streamed one after the other.
        ([9_265_000_000, 1_262_000_000, 32_790_000_000], [86, 2, 62]),
        ([9_265_000_000, 2_837_000_000], [86, 6]),
    ],
)
def test_page_locked_memory_needs_tables_on_the_device(sizes: list[int], grown: list[int]) -> None:
    device = device_of()
    locked, found = PageLocked(device), []
    for size in sizes:
        before = device.outside
        locked.lock(size)
        found.append((device.outside - before) // MIB)
    assert found == grown


def grown(device_bytes: int, nccl: Nccl, name: str, *args: object) -> int:
    before = nccl._device.outside
    nccl.call(name, args)
    return nccl._device.outside - before


@pytest.mark.parametrize(
    ("num_ranks", "buffer_bytes", "peer_mib"),
    [(4, 4 * MIB, 12), (4, MIB, 10), (8, MIB // 2, 8), (2, MIB, 10)],
)
def test_all_to_all_connects_every_pair_once(num_ranks: int, buffer_bytes: int, peer_mib: int) -> None:
    nccl = Nccl(device_of(), buffer_bytes)
    nccl.join(1, num_ranks)
    wanted = (num_ranks - 1) * 32 * peer_mib * MIB
    assert grown(0, nccl, "all_to_all_single") == wanted
    assert grown(0, nccl, "all_to_all_single") == 0


def test_rings_are_connected_by_the_first_collective_of_all_ranks() -> None:
    nccl = Nccl(device_of(), MIB)
    nccl.join(0, 2)
    assert nccl._device.outside == (526.8125 + 458) * MIB
    assert grown(0, nccl, "broadcast") == 334 * MIB
    assert grown(0, nccl, "all_reduce") == 0


def test_a_ring_connects_its_neighbours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Passed:
        def __init__(self, op: object, peer: int) -> None:
            self.op, self.peer = op, peer

    nccl = Nccl(device_of(), MIB)
    nccl.join(1, 4)
    batch = [Passed(dist.isend, 2), Passed(dist.irecv, 0)]
    assert grown(0, nccl, "batch_isend_irecv", batch) == 32 * (8 + 2) * MIB
    assert grown(0, nccl, "batch_isend_irecv", batch) == 0
    # All others are new but for these two.
    assert grown(0, nccl, "all_to_all_single") == 32 * (2 * 8 + 2 * 2) * MIB


@dataclass
class Passing:
    op: Any
    tensor: torch.Tensor


def test_what_is_sent_point_to_point_takes_its_time_after_the_work_before_it() -> None:
    # 1 MiB takes 1,000 ns, and a batch 10 more.
    device = device_of(rules=Rules(), launch_ns=0, exchange_ns=10, link_bytes_per_s=MIB * 1e6)
    nccl = Nccl(device, MIB)
    with on_device(device):
        sent, received, other = (torch.empty(2 * MIB, dtype=torch.uint8, device="cuda") for _ in range(3))
        device.default_stream.free_ns = 700
        # Both directions at once; two tensors one way, one after the other.
        batch = [Passing(dist.isend, sent), Passing(dist.irecv, received), Passing(dist.irecv, other)]
        transfer = nccl.transfer(batch)
        assert device.default_stream.free_ns == 700
        transfer.wait()
        assert (device.default_stream.free_ns, device.now_ns) == (700 + 4010, 0)
        assert nccl.transfer([Passing(dist.isend, sent)]).wait()
        assert device.default_stream.free_ns == 700 + 4010 + 2010
        batch.clear()
        del sent, received
        gc.collect()
        # NCCL's stream has not passed: torch keeps what was sent and what was received.
        assert (device.allocator.allocated, device.allocator.active) == (2 * MIB, 6 * MIB)
        device.wait_until(700 + 4010 + 2010)
        last = torch.empty(1, device="cuda")
        assert device.allocator.active == 2 * MIB + 512
        del last, other


def test_collectives_run_one_after_the_other_beside_the_work_of_the_current_stream() -> None:
    device = device_of(launch_ns=0, exchange_ns=10, link_bytes_per_s=1e9)  # a byte takes 1 ns
    nccl = Nccl(device, MIB)
    with on_device(device):
        device.default_stream.free_ns = 700
        first, second = nccl.exchange(100), nccl.exchange(50)
        device.run(30)
        assert device.stream is device.default_stream and device.stream.free_ns == 730
        first.wait()
        assert (device.default_stream.free_ns, device.now_ns) == (810, 0)
        device.run(500)
        second.wait()
        assert device.default_stream.free_ns == 1310  # it was done at 870
