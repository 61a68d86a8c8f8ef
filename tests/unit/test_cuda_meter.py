"""The CUDA meter against an allocator faked here: when it begins, what a drain can vouch for, what it loses."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from ray_memprof.meters import PEAK_RESETS, Batch
from ray_memprof.meters import cuda as module
from ray_memprof.meters.cuda import CudaMeter

KIB = 1024


@dataclass
class FakeCuda:
    """What the meter calls of torch: counters, a ring of events, and a start of its own."""

    is_on: bool = False
    queued: list[Callable[[], None]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    history: list[str | None] = field(default_factory=list)
    """First arguments of _record_memory_history."""
    stamps: list[str] = field(default_factory=list)
    current: int = 0
    peak: int = 0
    num_allocs: int = 0
    during_copy: Callable[[], None] = lambda: None
    """What other threads do while a snapshot is taken, just after the copy."""
    is_broken: bool = False
    backend: str = "native"

    def start(self) -> None:
        """The program starts CUDA."""
        for call in self.queued:
            call()
        self.is_on = True

    def lazy_call(self, call: Callable[[], None]) -> None:
        if self.is_on:
            call()
        else:
            self.queued.append(call)

    def alloc(self, size: int = KIB) -> None:
        self.current += size
        self.peak = max(self.peak, self.current)
        self.num_allocs += 1
        if self.history and self.history[-1] == "all":
            self.events.append({"action": "alloc", "size": size})

    def stats(self, index: int) -> dict[str, Any]:
        held = {"all": {"current": self.current, "peak": self.peak}}
        return {
            "allocated_bytes": held, "reserved_bytes": held, "active_bytes": held, "num_alloc_retries": 2,
            "allocation": {"all": {"allocated": self.num_allocs}}, "segment": {"all": {"allocated": 1}},
        }  # fmt: skip

    def snapshot(self, pool: None) -> dict[str, Any]:
        held = {"device": 0, "total_size": self.current}
        copy = {
            "segments": [held, {"device": 1}],
            "device_traces": [list(self.events), []],
            "allocator_settings": {"expandable_segments": True},
        }
        self.during_copy()
        return copy

    def record(self, enabled: str | None, *, clear_history: bool = False, **options: Any) -> None:
        self.history.append(enabled)
        if clear_history:
            self.events.clear()

    def mem_get_info(self, index: int) -> tuple[int, int]:
        if self.is_broken:
            raise RuntimeError("device-side assert triggered")
        return 100 * KIB - self.current, 100 * KIB


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()

    def reset_peak(index: int = 0) -> None:
        fake.peak = fake.current

    for where, name, function in (
        (torch.cuda, "_lazy_call", fake.lazy_call),
        (torch.cuda, "is_initialized", lambda: fake.is_on),
        (torch.cuda, "get_allocator_backend", lambda: fake.backend),
        (torch.cuda, "mem_get_info", fake.mem_get_info),
        (torch._C, "_accelerator_resetPeakStats", reset_peak),
        (torch.cuda.memory, "_record_memory_history", fake.record),
        (torch.cuda.memory, "_set_memory_metadata", fake.stamps.append),
        (torch._C, "_cuda_memoryStats", fake.stats),
        (torch._C, "_cuda_memorySnapshot", fake.snapshot),
        (torch._C, "_cuda_resetPeakMemoryStats", reset_peak),
    ):
        monkeypatch.setattr(where, name, function, raising=False)
    return fake


def started(cuda: FakeCuda, *, events: bool = True) -> CudaMeter:
    meter = CudaMeter(0, events=events)
    meter.start()
    cuda.start()
    return meter


def drain(meter: CudaMeter) -> Batch:
    return meter.drain()


def on_another_thread(call: Callable[[], Batch]) -> Batch:
    got: list[Batch] = []
    thread = threading.Thread(target=lambda: got.append(call()))
    thread.start()
    thread.join()
    return got[0]


def test_until_the_program_starts_cuda_nothing_is_asked_of_it(cuda: FakeCuda) -> None:
    meter = CudaMeter(0, events=True)
    meter.start()
    reading = meter.read()
    assert (meter.is_on, reading.device_used, reading.num_allocs, meter.peaks()) == (False, 0, 0, (0, 0))
    assert drain(meter) == Batch([], None)
    meter.stamp(3)
    assert (cuda.history, cuda.stamps) == ([], [])
    # WHEN it starts THEN recording begins with the stamp of the span that is open by then
    cuda.start()
    assert (meter.is_on, cuda.history, cuda.stamps, meter.base_segments()) == (True, ["all"], ["3"], [])


def test_a_meter_that_stopped_before_cuda_started_leaves_it_alone(cuda: FakeCuda) -> None:
    meter = CudaMeter(0, events=True)
    meter.start()
    meter.stop()
    cuda.start()
    assert (meter.is_on, cuda.history) == (False, [])


def test_what_was_held_before_is_the_base_and_its_allocations_are_not_missed(cuda: FakeCuda) -> None:
    cuda.start()
    cuda.alloc(8 * KIB)
    cuda.current = KIB
    meter = CudaMeter(0, events=True)
    meter.start()
    assert meter.base_segments() == [{"device": 0, "total_size": KIB}]
    assert (meter.peaks(), meter.pending(meter.read())) == ((KIB, KIB), 0)
    cuda.alloc()
    batch = drain(meter)
    assert (len(batch.events), batch.num_allocs) == (1, 1)


def test_a_reading_has_the_counters_and_the_device(cuda: FakeCuda) -> None:
    meter = started(cuda)
    cuda.alloc()
    reading = meter.read()
    assert (reading.allocated, reading.reserved, reading.active, reading.device_used) == (KIB,) * 4
    assert (reading.allocated_peak, reading.num_allocs, reading.num_segments, reading.num_retries) == (
        -1,
        1,
        1,
        2,
    )
    assert meter.pending(reading) == 3


def test_a_drain_takes_each_event_once_and_vouches_for_the_counters(cuda: FakeCuda) -> None:
    meter = started(cuda)
    for num_allocs in (1, 2):
        cuda.alloc()
        batch = drain(meter)
        assert [event["size"] for event in batch.events] == [KIB]
        assert batch.reading is not None
        assert (batch.reading.allocated, batch.num_allocs) == (num_allocs * KIB, num_allocs)
        assert batch.settings == {"expandable_segments": True}
        assert meter.pending(meter.peek()) == 0
    assert drain(meter).events == []


def test_where_another_thread_allocates_meanwhile_nothing_is_vouched_for_and_the_loss_is_seen_next(
    cuda: FakeCuda,
) -> None:
    meter = started(cuda)
    cuda.alloc()
    cuda.during_copy = cuda.alloc
    batch = drain(meter)
    assert (len(batch.events), batch.reading, batch.num_allocs) == (1, None, 1)
    cuda.during_copy = lambda: None
    cuda.alloc()
    batch = drain(meter)
    assert (len(batch.events), batch.num_allocs) == (1, 3), "three were made and two events came"


def test_a_drain_on_another_thread_loses_nothing_of_what_the_model_does_meanwhile(cuda: FakeCuda) -> None:
    meter = started(cuda)
    cuda.alloc(1)
    cuda.during_copy = lambda: cuda.alloc(2)
    first = on_another_thread(lambda: drain(meter))
    cuda.during_copy = lambda: None
    second = on_another_thread(lambda: drain(meter))
    cuda.alloc(3)
    third = drain(meter)
    cuda.alloc(4)
    fourth = drain(meter)
    assert [[event["size"] for event in batch.events] for batch in (first, second, third, fourth)] == [
        [1], [2], [3], [4]
    ]  # fmt: skip
    assert [batch.num_allocs for batch in (first, second, third, fourth)] == [1, 2, 3, 4]
    assert [batch.reading is None for batch in (first, second, third, fourth)] == [True, False, False, False]


def test_what_another_thread_left_in_the_ring_waits_for_the_next_boundary_to_empty_it(cuda: FakeCuda) -> None:
    meter = started(cuda)
    cuda.alloc()
    on_another_thread(lambda: drain(meter))
    assert meter.pending(meter.peek()) == 1
    drain(meter)
    assert meter.pending(meter.peek()) == 0


def test_another_thread_leaves_a_ring_alone_that_has_grown_long(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT_EVENTS", 1)
    meter = started(cuda)
    for _ in range(2):
        cuda.alloc()
    assert len(on_another_thread(lambda: drain(meter)).events) == 2
    cuda.alloc()
    assert on_another_thread(lambda: drain(meter)) == Batch([], None)
    assert len(drain(meter).events) == 1


def test_at_level_stage_peaks_begin_anew_at_each_reading_and_at_no_look(cuda: FakeCuda) -> None:
    meter = started(cuda, events=False)
    cuda.alloc(4 * KIB)
    cuda.current = KIB
    assert [meter.peek().allocated_peak, meter.peek().allocated_peak] == [4 * KIB, 4 * KIB]
    assert [meter.read().allocated_peak, meter.read().allocated_peak] == [4 * KIB, KIB]
    assert (cuda.history, drain(meter), meter.pending(meter.peek())) == ([], Batch([], None), 0)


@pytest.mark.parametrize("name", PEAK_RESETS)
def test_a_program_that_resets_its_peaks_does_not_reset_ours(cuda: FakeCuda, name: str) -> None:
    original = getattr(torch._C, name)
    meter = started(cuda)
    cuda.alloc(4 * KIB)
    cuda.current = KIB
    getattr(torch._C, name)(0)
    assert (cuda.peak, meter.peaks()) == (KIB, (4 * KIB, 4 * KIB))
    meter.stop()
    assert getattr(torch._C, name) is original


@pytest.mark.parametrize("name", PEAK_RESETS)
def test_a_program_that_resets_its_peaks_lowers_no_span_at_level_stage(cuda: FakeCuda, name: str) -> None:
    meter = started(cuda, events=False)
    cuda.alloc(4 * KIB)
    cuda.current = KIB
    getattr(torch._C, name)(0)
    assert [meter.peek().allocated_peak, meter.read().allocated_peak] == [4 * KIB, 4 * KIB]
    # WHEN the next span begins THEN what was before it is not its
    assert meter.read().allocated_peak == KIB


@pytest.mark.parametrize("is_watched_first", [True, False])
def test_whoever_else_watches_resets_hears_of_ours(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, is_watched_first: bool
) -> None:
    """GIVEN another watch (gpu_peaks.PeakWatch) around the meter or inside it WHEN a span ends THEN it saw the peak."""
    seen = []

    def watch() -> None:
        reset = torch._C._cuda_resetPeakMemoryStats
        kept = lambda index: (seen.append(cuda.peak), reset(index))  # noqa: E731
        monkeypatch.setattr(torch._C, "_cuda_resetPeakMemoryStats", kept)

    if is_watched_first:
        watch()
    meter = started(cuda, events=False)
    if not is_watched_first:
        watch()
    cuda.alloc(4 * KIB)
    cuda.current = KIB
    assert meter.read().allocated_peak == 4 * KIB
    assert (seen[-1], meter.read().allocated_peak) == (4 * KIB, KIB)


def test_a_device_that_has_failed_reads_as_it_did_last(cuda: FakeCuda) -> None:
    meter = started(cuda)
    cuda.alloc()
    before = meter.read()
    cuda.is_broken = True
    after = meter.read()
    assert (after.device_used, after.allocated) == (before.device_used, before.allocated) == (KIB, KIB)


def test_stop_ends_the_recording(cuda: FakeCuda) -> None:
    meter = started(cuda)
    meter.stop()
    meter.stop()
    assert (cuda.history, meter.is_on) == (["all", None], False)


def test_an_allocator_without_events_is_counted(cuda: FakeCuda) -> None:
    cuda.backend = "cudaMallocAsync"
    meter = started(cuda)
    cuda.alloc()
    assert (meter.has_events, cuda.history, drain(meter)) == (False, [], Batch([], None))
    assert meter.read().allocated_peak == KIB


def test_the_allocator_is_asked_while_the_model_gets_on(cuda: FakeCuda) -> None:
    meter = started(cuda)
    done = threading.Event()
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: (answers.append(meter.answers()), done.set()))
    thread.start()
    count = 0
    while not done.is_set():
        count += 1
    assert answers == [True]


def test_the_allocator_is_not_asked_while_the_model_is_inside_one_call(cuda: FakeCuda) -> None:
    meter = started(cuda)
    lock = threading.Lock()
    lock.acquire()
    answers: list[bool] = []

    def ask() -> None:
        time.sleep(0.05)  # by then the model's thread waits for the lock
        answers.append(meter.answers())
        lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    assert lock.acquire(timeout=20)
    thread.join()
    assert answers == [False]


def test_the_models_own_thread_may_always_ask(cuda: FakeCuda) -> None:
    assert CudaMeter(0, events=True).answers()
    assert started(cuda).answers()


@pytest.mark.parametrize("step_ns", [-3600 * 10**9, 0, 3600 * 10**9])
def test_times_go_on_though_the_wall_clock_is_set(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, step_ns: int
) -> None:
    meter = started(cuda)
    before = meter.read().t_ns
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + step_ns)
    cuda.alloc()
    told = time.time_ns()
    times, after = drain(meter).times, meter.read().t_ns
    assert times is not None
    (ours,) = times.ours([told])
    # The fake tells no time since torch was loaded, so its line is that of the clock.
    assert 0 <= after - before < 10**9
    assert before - 10**6 <= ours <= after + 10**6
