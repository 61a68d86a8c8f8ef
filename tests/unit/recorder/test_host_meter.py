"""The host meter counts storages that operations make, to the byte, until they are freed."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from ray_memprof.allocator.replay import Replay
from ray_memprof.recorder.meters.host import HostMeter

KIB = 1024


@contextmanager
def metering(*, events: bool = True, source: str = "cpu") -> Iterator[HostMeter]:
    meter = HostMeter(events=events, source=source)
    meter.start()
    try:
        yield meter
    finally:
        meter.stop()


def live(meter: HostMeter) -> int:
    return meter.peek().allocated


def kib(number: int = 1) -> torch.Tensor:
    return torch.zeros(number * KIB, dtype=torch.uint8)


def told(meter: HostMeter) -> list[tuple[str, int, str]]:
    batch = meter.drain()
    return [(event["action"], event["size"], event["user_metadata"]) for event in batch.events]


def test_nothing_made_is_nothing_counted() -> None:
    before = torch.UntypedStorage.resize_
    with metering() as meter:
        reading = meter.read()
        assert (reading.allocated, reading.reserved, reading.active, reading.num_allocs) == (0, 0, 0, 0)
        assert reading.device_used == reading.host_rss > 0
        assert (meter.is_on, meter.source, meter.base_segments(), meter.peaks()) == (True, "cpu", [], (0, 0))
        assert told(meter) == []
    assert torch.UntypedStorage.resize_ is before


def test_stopping_a_meter_that_never_started_is_harmless() -> None:
    before = torch.UntypedStorage.resize_
    HostMeter(events=True).stop()
    assert torch.UntypedStorage.resize_ is before


def test_a_meter_that_is_gone_leaves_no_open_file() -> None:
    with metering() as meter:
        pass
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    del meter
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_tensor_counts_from_its_making_to_its_end_with_exact_bytes() -> None:
    with metering() as meter:
        meter.stamp(1)
        tensor = torch.zeros(3, dtype=torch.float32)
        assert live(meter) == 12
        meter.stamp(2)
        del tensor
        assert live(meter) == 0
        assert told(meter) == [("alloc", 12, "1"), ("free_requested", 12, "2"), ("free_completed", 12, "2")]
        assert meter.peaks() == (12, 12)


def test_what_was_there_before_is_not_counted() -> None:
    tensor = kib()
    with metering() as meter:
        tensor.add_(1)
        view = tensor[1:]
        assert (live(meter), view.numel()) == (0, KIB - 1)
        del tensor, view
        assert live(meter) == 0


def test_views_count_once_and_hold_the_whole_storage() -> None:
    with metering() as meter:
        tensor = kib(4)
        view = tensor.view(torch.int32)[:1]
        again = tensor.detach()
        assert live(meter) == 4 * KIB
        del tensor, again
        assert live(meter) == 4 * KIB
        del view
        assert live(meter) == 0


def test_results_in_lists_and_freed_intermediates_count() -> None:
    with metering() as meter:
        parts = torch.unbind_copy(kib(2).view(2, KIB))
        assert live(meter) == 2 * KIB
        assert meter.peaks() == (4 * KIB, 4 * KIB)
        del parts
        assert live(meter) == 0


def test_a_tensor_that_is_resized_in_place_counts_anew() -> None:
    with metering() as meter:
        tensor = kib()
        tensor.resize_(3 * KIB)
        assert live(meter) == 3 * KIB
        del tensor
        assert live(meter) == 0


def test_a_storage_given_back_and_taken_again_as_fsdp_does() -> None:
    with metering() as meter:
        tensor = kib()
        storage = tensor.untyped_storage()
        storage.resize_(0)
        assert live(meter) == 0
        storage.resize_(KIB)
        assert live(meter) == KIB
        batch = meter.drain()
        replay = Replay()
        replay.feed(batch.events)
        assert batch.reading is not None
        assert (replay.allocated, batch.reading.allocated) == (KIB, KIB)
        storage.resize_(0)
        del tensor, storage
        assert live(meter) == 0


def test_a_resized_storage_that_is_older_than_the_meter_stays_out() -> None:
    tensor = kib()
    with metering() as meter:
        tensor.untyped_storage().resize_(0)
        tensor.untyped_storage().resize_(KIB)
        assert live(meter) == 0


def test_a_wrapper_counts_as_the_tensors_inside_it() -> None:
    with metering() as meter:
        wrapper = TwoTensor(kib(), kib())
        assert live(meter) == 2 * KIB
        result = wrapper + wrapper
        assert isinstance(result, TwoTensor)
        assert live(meter) == 4 * KIB
        del wrapper, result
        gc.collect()
        assert live(meter) == 0


def test_fake_tensors_count_as_if_they_were_real() -> None:
    with FakeTensorMode(), metering(source="predicted") as meter:
        tensor = torch.zeros(2**40, dtype=torch.uint8)
        result = tensor[: 2**39] + 1
        assert (meter.source, live(meter)) == ("predicted", 2**40 + 2**39)
        del tensor, result
        assert live(meter) == 0


def test_meta_tensors_have_no_bytes() -> None:
    with metering() as meter:
        tensor = torch.zeros(2**40, device="meta")
        assert (live(meter), tensor.numel()) == (0, 2**40)


def test_a_tensor_may_be_freed_by_another_thread() -> None:
    with metering() as meter:
        held = [kib()]
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        assert live(meter) == 0


class Maker(threading.Thread):
    """A thread of a program's own kind."""

    def __init__(self, held: list[torch.Tensor]) -> None:
        super().__init__()
        self.held = held

    def run(self) -> None:
        self.held.append(kib(2))


def test_what_threads_make_belongs_to_the_span_of_the_one_that_started() -> None:
    held: list[torch.Tensor] = []
    before = threading.Thread.start
    with metering() as meter:
        meter.stamp(7)
        threads = [threading.Thread(target=lambda: held.append(kib())), Maker(held)]
        for thread in threads:
            thread.start()
            thread.join()
        with ThreadPoolExecutor(1) as pool:
            held.append(pool.submit(kib, 4).result())
        assert (live(meter), meter.peaks()) == (7 * KIB, (7 * KIB, 7 * KIB))
        assert told(meter) == [("alloc", size * KIB, "7") for size in (1, 2, 4)]
        assert all("run" not in vars(thread) for thread in threads)
    assert threading.Thread.start is before


def test_what_a_thread_makes_after_the_end_is_not_counted() -> None:
    goes_on, held = threading.Event(), []
    with metering() as meter:
        thread = threading.Thread(target=lambda: (goes_on.wait(20), held.append(kib())))
        thread.start()
    goes_on.set()
    thread.join()
    assert (len(held), live(meter)) == (1, 0)


def test_a_backward_pass_counts() -> None:
    with metering() as meter:
        weight = torch.ones(256, 256, requires_grad=True)
        (weight @ weight).sum().backward()
        assert weight.grad is not None
        assert live(meter) == 2 * weight.nbytes


def test_stacks_are_those_of_the_program() -> None:
    meter = HostMeter(events=True, stacks=True)
    meter.start()
    try:
        tensor = kib()
        del tensor
    finally:
        meter.stop()
    made, *freed = meter.drain().events
    names = [frame["name"] for frame in made["frames"]]
    assert names[:2] == ["kib", "test_stacks_are_those_of_the_program"]
    assert (made["frames"][0]["filename"], made["frames"][0]["line"]) == (
        __file__,
        kib.__code__.co_firstlineno + 1,
    )
    assert [event.get("frames") for event in freed] == [None, None]


def test_torch_compile_compiles_the_program_and_leaves_the_meter_alone() -> None:
    """GIVEN a line that is not compiled, so that its operation runs as it is inside a compiled program."""
    num_graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        nonlocal num_graphs
        num_graphs += 1
        return graph.forward

    def program(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        exec("y * 3", {"y": y})
        return y * 2

    torch.compiler.reset()
    with metering() as meter:
        assert torch.compile(program, backend=backend)(torch.ones(4)).tolist() == [4.0] * 4
        assert num_graphs == 2
        assert [size for action, size, _ in told(meter) if action == "alloc"].count(16) >= 4


def test_without_events_each_reading_has_the_peak_since_the_one_before() -> None:
    with metering(events=False) as meter:
        kept = kib()
        kib(2)
        assert meter.peek().allocated_peak == 3 * KIB
        # Neither a peek from another thread nor a drain resets a peak.
        assert meter.drain().events == []
        reading = meter.read()
        assert (reading.allocated, reading.allocated_peak) == (KIB, 3 * KIB)
        assert (reading.reserved_peak, reading.active_peak) == (3 * KIB, 3 * KIB)
        assert meter.read().allocated_peak == KIB
        assert (meter.peaks(), kept.numel()) == ((3 * KIB, 3 * KIB), KIB)


def test_with_events_peaks_are_theirs_to_tell() -> None:
    with metering() as meter:
        kib()
        assert meter.read().allocated_peak == -1
        assert meter.pending(meter.peek()) == 3


def test_drained_events_add_up_to_the_reading_beside_them() -> None:
    replay = Replay()
    with metering() as meter:
        kept = []
        for number in range(1, 20):
            kept.append(kib(number) + 1)
            if number % 3 == 0:
                kept.pop(0)
            batch = meter.drain()
            replay.feed(batch.events)
            assert batch.reading is not None
            assert replay.allocated == batch.reading.allocated
        assert (replay.allocated_peak, replay.num_strays) == (meter.peaks()[0], 0)
        del kept


@pytest.mark.parametrize("events", [False, True])
def test_stop_ends_the_counting(events: bool) -> None:
    with metering(events=events) as meter:
        kept = kib()
    other = kib()
    assert (live(meter), kept.numel(), other.numel()) == (KIB, KIB, KIB)
