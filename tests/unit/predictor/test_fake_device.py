"""The memory and the time of a device that is not there."""

import gc

import pytest
import torch
from devices import MIB, allocations, device_of, on_device

from ray_memprof.allocator.rules import Rules
from ray_memprof.predictor.fake_device import FakeDevice


def test_a_new_device_has_nothing_on_it() -> None:
    device = device_of()
    assert (device.used, device.allocator.reserved, device.has_context, device.now_ns) == (0, 0, False, 0)


def test_a_storage_has_memory_until_it_is_gone() -> None:
    device = device_of(context_bytes=500 * MIB)
    with on_device(device):
        tensor = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        view = tensor.view(3, MIB)[1:]
        del tensor
        assert device.allocator.allocated == 3 * MIB
        # A segment that grows, grows by 20 MiB.
        assert device.used == 520 * MIB
        del view
        gc.collect()
        assert (device.allocator.allocated, device.used) == (0, 520 * MIB)
        torch.cuda.empty_cache()
        assert device.used == 500 * MIB


def test_a_storage_that_is_made_smaller_gives_its_memory_back_and_can_have_it_again() -> None:
    """As FSDP does with gathered parameters."""
    device = device_of()
    with on_device(device):
        tensor = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
        tensor.untyped_storage().resize_(0)
        assert device.allocator.allocated == 0
        tensor.untyped_storage().resize_(4 * MIB)
        assert device.allocator.allocated == 4 * MIB
        del tensor
        gc.collect()
        assert device.allocator.allocated == 0


def test_host_tensors_are_counted_apart() -> None:
    device = device_of()
    with on_device(device):
        tensor = torch.empty(MIB, dtype=torch.uint8)
        assert (device.host_bytes, device.used) == (MIB, 0)
        del tensor
        gc.collect()
        assert device.host_bytes == 0


def test_a_full_device_raises_what_torch_raises() -> None:
    device = device_of(total_bytes=600 * MIB, context_bytes=500 * MIB, kernels_bytes=0)
    with on_device(device):
        kept = torch.empty(60 * MIB, dtype=torch.uint8, device="cuda")
        with pytest.raises(
            torch.OutOfMemoryError, match=r"Tried to allocate 50\.00 MiB.* 40\.00 MiB is free"
        ):
            torch.empty(50 * MIB, dtype=torch.uint8, device="cuda")
        assert kept.shape == (60 * MIB,)


def test_each_stream_has_a_pool_of_its_own() -> None:
    device = device_of(rules=Rules())
    with on_device(device):
        first = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        del first
        gc.collect()
        with torch.cuda.stream(torch.cuda.Stream()):
            second = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        assert device.allocator.reserved == 40 * MIB
        third = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        assert device.allocator.reserved == 40 * MIB
        del second, third


def test_growth_is_told_at_once_and_only_growth() -> None:
    device = device_of()
    seen: list[int] = []
    device.on_growth = lambda: seen.append(device.used)
    with on_device(device):
        kept = [torch.empty(size * MIB, dtype=torch.uint8, device="cuda") for size in (3, 3, 30)]
        kept.clear()
        gc.collect()
    assert seen == sorted(seen) and len(seen) == 2
    assert seen[1] - seen[0] == 20 * MIB  # 36 MiB are in use, 40 are there


def test_events_have_the_span_that_was_open() -> None:
    device = device_of()
    with on_device(device):
        device.span_id = 7
        kept = torch.empty(5, device="cuda")
        device.span_id = 8
        del kept
        gc.collect()
    columns, times, spans = device.take_events()
    told = list(zip(columns.action, spans, strict=True))
    assert told == [("segment_map", 7), ("alloc", 7), ("free_requested", 8), ("free_completed", 8)]
    assert times == sorted(times) and len(times) == 4
    assert allocations(device) == []


def test_kernels_of_a_stream_run_one_after_the_other_and_the_host_waits_for_them() -> None:
    device = device_of(launch_ns=10)
    device.run(1000)
    device.run(1000)
    assert (device.now_ns, device.stream.free_ns) == (20, 2010)
    device.synchronize()
    assert device.now_ns == 2010


def test_the_host_cannot_run_ahead_without_end() -> None:
    device = device_of(launch_ns=1)
    for _ in range(3000):
        device.run(1000)
    assert device.stream.free_ns - device.now_ns <= 1025 * 1000


def test_a_stream_waits_for_an_event_of_another() -> None:
    device = device_of(launch_ns=0)
    with on_device(device):
        side, event = torch.cuda.Stream(), torch.cuda.Event()
        with torch.cuda.stream(side):
            device.run(500)
            event.record()
        assert torch.cuda.current_stream() is device.default_stream
        event.wait()
        device.run(100)
    assert device.default_stream.free_ns == 600


def free_used_elsewhere(device: FakeDevice) -> None:
    """Free 12 MiB that a stream besides the default one uses for 500 ns."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        device.run(500)
    tensor = torch.empty(12 * MIB, dtype=torch.uint8, device="cuda")
    device.record_stream(tensor.untyped_storage(), side)
    del tensor
    gc.collect()


def test_memory_that_another_stream_uses_comes_back_at_a_request_after_that_stream_has_passed() -> None:
    device = device_of(rules=Rules(), launch_ns=0)
    with on_device(device):
        free_used_elsewhere(device)
        assert (device.allocator.allocated, device.allocator.active) == (0, 12 * MIB)
        second = torch.empty(12 * MIB, dtype=torch.uint8, device="cuda")
        assert device.allocator.reserved == 24 * MIB
        device.wait_until(500)
        third = torch.empty(12 * MIB, dtype=torch.uint8, device="cuda")
        assert (device.allocator.active, device.allocator.reserved) == (24 * MIB, 24 * MIB)
        del second, third


def test_emptying_the_cache_waits_for_the_streams_that_use_what_was_freed() -> None:
    device = device_of(rules=Rules(), launch_ns=0)
    with on_device(device):
        free_used_elsewhere(device)
        torch.cuda.empty_cache()
    assert (device.allocator.active, device.allocator.reserved, device.now_ns) == (0, 0, 500)


def test_memory_that_several_streams_use_comes_back_after_the_last_of_them() -> None:
    device = device_of(rules=Rules(), launch_ns=0)
    with on_device(device):
        tensor = torch.empty(12 * MIB, dtype=torch.uint8, device="cuda")
        for runs_ns in (500, 900, 700):
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                device.run(runs_ns)
            device.record_stream(tensor.untyped_storage(), side)
        del tensor
        gc.collect()
        for now_ns, reserved in ((899, 24 * MIB), (900, 24 * MIB)):
            device.wait_until(now_ns)
            other = torch.empty(12 * MIB, dtype=torch.uint8, device="cuda")
            assert (device.allocator.reserved, device.allocator.allocated) == (reserved, 12 * MIB)
            assert device.allocator.active == (24 * MIB if now_ns < 900 else 12 * MIB)
            del other
            gc.collect()


def test_what_libraries_take_must_fit_too() -> None:
    device = device_of(total_bytes=600 * MIB, context_bytes=500 * MIB)
    device.start()
    with pytest.raises(torch.OutOfMemoryError, match=r"allocate 101.00 MiB\..* 100.00 MiB is free"):
        device.add_outside(101 * MIB)
    device.add_outside(100 * MIB)
    assert device.used == 600 * MIB
