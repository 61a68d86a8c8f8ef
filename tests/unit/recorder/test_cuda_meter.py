"""The CUDA meter against an allocator faked here: when it begins, what a drain guarantees, which events are lost."""

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch_ring import KIB, FakeCuda

from ray_memprof.recorder.meters import shared_history as module
from ray_memprof.recorder.meters.cuda import CudaMeter
from ray_memprof.recorder.meters.meter import COUNT_RESETS, PEAK_RESETS, Batch
from ray_memprof.recorder.problems import Problems


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(num_devices=2)
    fake.install(monkeypatch)
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
    assert (cuda.calls, cuda.get_metadata()) == ([], "")
    # WHEN it starts THEN recording begins with the stamp of the span that is open by then
    cuda.start()
    assert (cuda.get_metadata(), meter.base_segments()) == ("3", [])
    assert cuda.calls == [("all", None, "python", module.MAX_EVENTS, True)]
    meter.stop()


@pytest.mark.parametrize("events", [True, False])
def test_readings_make_no_context_where_the_program_has_none_yet(cuda: FakeCuda, *, events: bool) -> None:
    cuda.is_lazy = True
    meter = started(cuda, events=events)
    reading = meter.read()
    assert (cuda.has_context, meter.is_on, reading.device_used) == (False, False, 0)
    # WHEN the program makes one THEN the device is asked, and events from before are there
    cuda.alloc()
    reading = meter.read()
    assert (meter.is_on, reading.device_used, reading.num_allocs) == (True, KIB, 1)
    assert len(drain(meter).events) == events
    meter.stop()
    assert not meter.is_on


def test_a_meter_that_stopped_before_cuda_started_leaves_it_alone(cuda: FakeCuda) -> None:
    meter = CudaMeter(0, events=True)
    meter.start()
    meter.stop()
    cuda.start()
    assert (meter.is_on, cuda.calls) == (False, [])


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


def test_where_another_thread_allocates_meanwhile_nothing_is_vouched_for_and_nothing_lost(
    cuda: FakeCuda,
) -> None:
    meter = started(cuda)
    cuda.alloc()
    cuda.during_copy = cuda.alloc
    batch = drain(meter)
    assert (len(batch.events), batch.reading, batch.num_allocs, batch.num_lost) == (1, None, 1, 0)
    cuda.during_copy = lambda: None
    cuda.alloc()
    batch = drain(meter)
    assert (len(batch.events), batch.num_allocs, batch.num_lost) == (2, 3, 0)
    assert batch.reading is not None


def test_what_comes_between_the_copy_and_the_emptying_is_counted_as_lost(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = started(cuda)
    cuda.alloc()
    record = cuda.record

    def late(*arguments: Any, **options: Any) -> None:
        cuda.free(cuda.alloc())
        record(*arguments, **options)

    monkeypatch.setitem(meter._history._originals, "_cuda_record_memory_history", late)
    assert len(drain(meter).events) == 1
    monkeypatch.setitem(meter._history._originals, "_cuda_record_memory_history", record)
    cuda.alloc()
    assert [(len(batch.events), batch.num_lost) for batch in (drain(meter), drain(meter))] == [(1, 3), (0, 0)]


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


def test_a_ring_that_only_another_thread_takes_loses_nothing_and_stays_short(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN one endless span, and bursts of events between two drains WHEN the bursts grow THEN the ring grows too."""
    monkeypatch.setattr(module, "MIN_EVENTS", 60)
    meter, sizes, lengths = started(cuda), [], []
    cuda.during_copy = lambda: cuda.alloc(len(sizes))
    total = 0
    for burst in [10] * 40 + [35] * 40 + [80] * 40 + [5] * 40:
        for _ in range(burst):
            cuda.alloc(total)
            total += 1
        batch = on_another_thread(lambda: drain(meter))
        sizes += [event["size"] for event in batch.events]
        assert batch.num_lost == 0
        lengths.append(len(cuda.rings[0].entries))
    cuda.during_copy = lambda: None
    sizes += [event["size"] for event in drain(meter).events]
    assert len(sizes) == total + 160  # one more event during each copy
    assert [size for size in sizes if size >= 0][:10] == list(range(10))
    assert lengths[39] <= 60 < lengths[-1] <= 240
    assert cuda.rings[0].entries == [], "the model's own thread empties it"


def test_what_overflowed_the_ring_is_counted(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 30)
    meter = started(cuda)
    for _ in range(50):
        cuda.alloc()
    first = drain(meter)
    assert (len(first.events), first.num_lost, first.num_allocs) == (30, 20, 50)
    cuda.alloc()
    again = drain(meter)
    assert (len(again.events), again.num_lost) == (1, 0)


def test_pending_counts_what_was_not_taken(cuda: FakeCuda) -> None:
    meter = started(cuda)
    cuda.alloc()
    before = meter.peek()
    assert meter.pending(before) == 3
    cuda.alloc()
    meter.peek()  # by the sampler: during a long span only it reads the meter
    assert meter.pending(before) == 6
    on_another_thread(lambda: drain(meter))
    assert meter.pending(meter.peek()) == 0


def test_at_level_stage_peaks_begin_anew_at_each_reading_and_at_no_look(cuda: FakeCuda) -> None:
    meter = started(cuda, events=False)
    cuda.alloc(4 * KIB)
    cuda.current = KIB
    assert [meter.peek().allocated_peak, meter.peek().allocated_peak] == [4 * KIB, 4 * KIB]
    assert [meter.read().allocated_peak, meter.read().allocated_peak] == [4 * KIB, KIB]
    assert (cuda.calls, drain(meter), meter.pending(meter.peek())) == ([], Batch([], None), 0)


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
    # WHEN the next span begins THEN the peak from before it does not count for it
    assert meter.read().allocated_peak == KIB


@pytest.mark.parametrize("is_watched_first", [True, False])
def test_whoever_else_watches_resets_hears_of_ours(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, is_watched_first: bool
) -> None:
    """GIVEN another watch (PeakWatch) around the meter or inside it WHEN a span ends THEN it saw the peak."""
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
    assert ([call[0] for call in cuda.calls], meter.is_on) == (["all", None], False)
    assert torch._C._cuda_memorySnapshot == cuda.snapshot


def test_an_allocator_without_events_is_counted(cuda: FakeCuda) -> None:
    cuda.backend, problems = "cudaMallocAsync", Problems()
    meter = CudaMeter(0, events=True, problems=problems)
    meter.start()
    cuda.start()
    cuda.alloc()
    assert (meter.has_events, cuda.calls, drain(meter)) == (False, [], Batch([], None))
    assert meter.read().allocated_peak == KIB
    assert problems.texts == (
        "the allocator (cudaMallocAsync) reports no events, only its counters are recorded",
    )


@pytest.mark.parametrize("events", [False, True])
def test_of_an_allocator_without_counters_the_device_is_recorded(cuda: FakeCuda, events: bool) -> None:
    cuda.backend, problems = "pluggable", Problems()
    cuda.stats_error = RuntimeError(
        "CUDAPluggableAllocator does not yet support getDeviceStats.\nIf you need it ..."
    )
    cuda.current = 5 * KIB
    meter = CudaMeter(0, events=events, problems=problems)
    meter.start()
    cuda.start()
    reading = meter.read()
    assert (meter.is_on, meter.has_events, meter.pending(reading), drain(meter)) == (
        True,
        False,
        0,
        Batch([], None),
    )
    assert (reading.allocated, reading.reserved, reading.device_used, reading.allocated_peak) == (
        0,
        0,
        5 * KIB,
        -1,
    )
    assert meter.peaks() == (0, 0)
    meter.stop()
    assert problems.texts == (
        "the allocator (pluggable) has no counters, device memory alone is recorded: RuntimeError: "
        "CUDAPluggableAllocator does not yet support getDeviceStats.",
    )


def test_counters_that_fail_once_are_those_of_before_and_the_device_is_still_read(cuda: FakeCuda) -> None:
    problems = Problems()
    meter = CudaMeter(0, events=True, problems=problems)
    meter.start()
    cuda.start()
    cuda.alloc()
    meter.read()
    cuda.stats_error = RuntimeError("no")
    cuda.current = 3 * KIB
    assert (meter.peek().allocated, meter.peek().device_used) == (KIB, 3 * KIB)
    cuda.stats_error = None
    assert meter.peek().allocated == 3 * KIB
    assert problems.texts == ("the allocator's counters could not be read: RuntimeError: no",)


def test_what_fails_inside_the_programs_own_start_of_cuda_does_not_break_it(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> str:
        raise RuntimeError("no backend")

    monkeypatch.setattr(torch.cuda, "get_allocator_backend", fails)
    problems = Problems()
    meter = CudaMeter(0, events=True, problems=problems)
    meter.start()
    cuda.start()
    meter.read()
    assert (meter.is_on, meter.has_events) == (True, False)
    assert problems.texts == ("the allocator cannot be recorded: RuntimeError: no backend",)


@pytest.mark.parametrize("name", COUNT_RESETS)
def test_a_program_that_resets_its_counts_does_not_reset_ours(cuda: FakeCuda, name: str) -> None:
    original = getattr(torch._C, name)
    meter = started(cuda)
    for _ in range(3):
        cuda.alloc()
    getattr(torch._C, name)(0)
    cuda.alloc()
    assert (cuda.num_allocs, meter.peek().num_allocs) == (1, 4)
    batch = drain(meter)
    assert (len(batch.events), batch.num_allocs, batch.num_lost) == (4, 4, 0)
    meter.stop()
    assert getattr(torch._C, name) is original


def test_a_thread_that_starts_cuda_is_not_stamped_with_the_models_span(cuda: FakeCuda) -> None:
    meter = CudaMeter(0, events=True)
    meter.start()
    meter.stamp(3)
    texts = []
    thread = threading.Thread(target=lambda: (cuda.start(), texts.append(cuda.get_metadata())))
    thread.start()
    thread.join()
    assert texts == [""]


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

    asked = threading.Event()

    def ask() -> None:
        asked.wait()
        time.sleep(0.05)  # by then the model's thread waits for the lock
        answers.append(meter.answers())
        lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    asked.set()
    lock.acquire()
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
    # The fake does not compute times since torch was loaded, so its line is that of the clock.
    assert 0 <= after - before < 10**9
    assert before - 10**6 <= ours <= after + 10**6


def test_a_reading_asks_the_allocator_once_and_a_reset_by_the_program_is_heard_still(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = started(cuda, events=False)
    asked: list[int] = []
    stats = cuda.stats
    monkeypatch.setattr(torch._C, "_cuda_memoryStats", lambda index: (asked.append(index), stats(index))[1])
    cuda.free(cuda.alloc(3 * KIB))
    assert (meter.read().allocated_peak, asked) == (3 * KIB, [0])
    # WHEN the program resets its peaks THEN ours are read before that
    cuda.free(cuda.alloc(2 * KIB))
    torch._C._cuda_resetPeakMemoryStats(0)
    assert (meter.read().allocated_peak, meter.read().allocated_peak) == (2 * KIB, 0)
    meter.stop()


@pytest.mark.parametrize("was_enabled", [True, False])
def test_a_copy_of_many_events_makes_python_look_for_no_garbage(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, was_enabled: bool
) -> None:
    meter = started(cuda)
    looks: list[str] = []
    copy, made = meter._history._originals["_cuda_memorySnapshot"], []

    def many(*arguments: Any) -> Any:
        before = gc.get_stats()
        made.extend([] for _ in range(20_000))
        looks.extend("a look" for one, then in zip(gc.get_stats(), before, strict=True) if one != then)
        return copy(*arguments)

    monkeypatch.setitem(meter._history._originals, "_cuda_memorySnapshot", many)
    (gc.enable if was_enabled else gc.disable)()
    try:
        drain(meter)
        assert (looks, len(made), gc.isenabled()) == ([], 20_000, was_enabled)
    finally:
        gc.enable()
        meter.stop()
