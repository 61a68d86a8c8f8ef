"""Whatever fails in the recorder is noted, and the program and the rest of the recording go on."""

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_fakes import FakeMeter, FakeStore

from ray_memprof.allocator.replay import Replay
from ray_memprof.errors import DiskFull
from ray_memprof.recorder import recorder as module
from ray_memprof.recorder.meters.guarded import Guarded
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.problems import MOST_PROBLEMS, Problems
from ray_memprof.recorder.recorder import Recorder
from ray_memprof.recorder.rows import Sample
from ray_memprof.recorder.scribe import Scribe
from ray_memprof.recorder.spans import listening, span
from ray_memprof.recorder.writer import Writer

SAMPLE = Sample(1, 2, None, 40, 5, 6, 7, None)


class Failing(FakeMeter):
    """A meter some of whose methods raise."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, self.fails)

    def fails(self, *arguments: Any) -> Any:
        raise RuntimeError("no\nhint: of another line")


def recorder_of(meter: Any, store: FakeStore | None = None) -> Recorder:
    scribe = Scribe(Writer(store or FakeStore(), Replay(), categories={}))  # type: ignore[arg-type]
    return Recorder(0, meter, scribe)


def rows(store: FakeStore, table: str, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in store.rows.get(table, [])]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["start"], "no memory is recorded, for the meter could not start: RuntimeError: no"),
        (["read"], "memory could not be read: RuntimeError: no"),
        (["stamp"], "events could not be given their span: RuntimeError: no"),
        (["pending"], "events could not be counted: RuntimeError: no"),
        (["drain"], "events could not be taken: RuntimeError: no"),
        (["base_segments"], "what was held before is unknown: RuntimeError: no"),
        (["peaks"], "peaks could not be read: RuntimeError: no"),
        (["stop"], "the meter could not stop: RuntimeError: no"),
    ],
)
def test_a_meter_that_fails_is_a_problem_and_spans_are_recorded(
    names: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.0)
    meter, store = Failing(*names), FakeStore()
    recorder = recorder_of(meter, store)
    recorder.start()
    with listening(recorder), span("denoise", step=1):
        with span("dit.block"):
            meter.alloc(5)
        recorder.tick(SAMPLE)
        recorder.relieve()
        before = recorder.begin_collective()
        assert before is not None
        recorder.end_collective(before, op="all_reduce", num_bytes=1, group="0", group_size=2)
    recorder.close()
    assert rows(store, "spans", "path", "step") == [("denoise/dit.block", 1), ("denoise", 1)]
    assert rows(store, "collectives", "op") == [("all_reduce",)]
    assert (len(store.rows["samples"]), store.is_closed) == (1, True)
    assert recorder.problems == (problem,)


def test_a_meter_that_cannot_be_asked_does_not_answer() -> None:
    problems = Problems()
    meter = Guarded(Failing("answers"), problems)  # type: ignore[arg-type]
    meter.start()
    assert (meter.answers(), problems.texts) == (False, ("the meter could not be asked: RuntimeError: no",))


def test_events_that_cannot_be_followed_are_lost_and_spans_are_not() -> None:
    class Stumbling(Replay):
        def feed(self, events: Any) -> Any:
            raise KeyError("addr")

    meter, store = FakeMeter(), FakeStore()
    recorder = Recorder(0, meter, Scribe(Writer(store, Stumbling(), categories={})))  # type: ignore[arg-type]
    recorder.start()
    with listening(recorder), span("decode"):
        meter.alloc(5)
        meter.alloc(6)
    recorder.close()
    check = recorder.check()
    assert check is not None
    assert (check.num_lost_events, rows(store, "spans", "path")) == (2, [("decode",)])
    assert recorder.problems == ("events could not be written: KeyError: 'addr'",)


def test_attributes_that_are_no_numbers_are_left_out() -> None:
    meter, store = FakeMeter(), FakeStore()
    recorder = recorder_of(meter, store)
    recorder.start()
    with listening(recorder), span("dit.block", step="warmup", index=2**40), span("dit.block", step="7"):
        pass
    recorder.close()
    assert rows(store, "spans", "path", "step", "block") == [
        ("dit.block/dit.block", 7, None), ("dit.block", None, None)
    ]  # fmt: skip
    assert recorder.problems == (
        "the index of a span is no whole number of 32 bits: 1099511627776",
        "the step of a span is no whole number of 32 bits: 'warmup'",
    )


def test_texts_and_numbers_that_no_file_can_hold_cost_no_span() -> None:
    meter, store = FakeMeter(), FakeStore()
    recorder = recorder_of(meter, store)
    recorder.start()
    with (
        listening(recorder),
        span("half \ud800", component="c\udfff", module="m\ud800", branch="b\ud800", step=float("inf")),
        span("inside", index=float("nan")),
    ):
        pass
    recorder.close()
    assert rows(store, "spans", "path", "component", "branch", "step") == [
        ("half ?/inside", "c?", "b?", None),
        ("half ?", "c?", "b?", None),
    ]
    assert recorder.problems == (
        "the step of a span is no whole number of 32 bits: inf",
        "the index of a span is no whole number of 32 bits: nan",
    )


def test_spans_of_other_threads_leave_the_models_alone_and_are_told() -> None:
    meter, store = FakeMeter(), FakeStore()
    recorder = recorder_of(meter, store)
    recorder.start()

    def other() -> None:
        with span("prefetch"):
            pass

    with listening(recorder), span("denoise"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    recorder.close()
    assert rows(store, "spans", "path") == [("denoise",)]
    assert recorder.problems == ("spans of other threads than the model's are not recorded: prefetch",)


def test_tasks_that_take_turns_end_their_own_spans() -> None:
    """GIVEN two tasks of asyncio on one thread: A begins, B begins, A ends, B ends."""
    meter, store = FakeMeter(), FakeStore()
    recorder = recorder_of(meter, store)
    recorder.start()
    with listening(recorder):
        one, other = span("load.t5"), span("load.vae")
        one.__enter__()
        meter.alloc(5)
        other.__enter__()
        meter.alloc(6)
        one.__exit__(None, None, None)
        meter.alloc(7)
        other.__exit__(None, None, None)
        meter.alloc(8)
    recorder.close()
    assert rows(store, "spans", "name", "failed", "allocated_peak_bytes") == [
        ("load.t5", False, 11), ("load.vae", False, 18)
    ]  # fmt: skip
    assert rows(store, "allocs", "size_bytes", "span_id") == [(5, 1), (6, 2), (7, 2), (8, 0)]


@pytest.mark.parametrize("where", ["enter", "exit"])
def test_a_signal_in_the_middle_of_the_recorder_leaves_no_span_open(where: str) -> None:
    class Interrupted(FakeMeter):
        is_due = False

        def read(self) -> Reading:
            if self.is_due:
                self.is_due = False
                raise KeyboardInterrupt
            return super().read()

    meter, store = Interrupted(), FakeStore()
    recorder = recorder_of(meter, store)
    recorder.start()
    with listening(recorder), span("script"):
        with pytest.raises(KeyboardInterrupt):
            meter.is_due = where == "enter"
            with span("dit.block"):
                meter.is_due = where == "exit"
        with span("dit.block"):
            pass
    recorder.close()
    assert rows(store, "spans", "path")[-2:] == [("script/dit.block",), ("script",)]
    assert recorder.beat().path == ""


def test_problems_come_once_and_not_without_end(capsys: pytest.CaptureFixture[str]) -> None:
    problems = Problems()
    assert problems.texts == ()
    for number in range(MOST_PROBLEMS + 20):
        for _ in range(2):
            problems.add(f"number {number}")
    assert len(problems.texts) == MOST_PROBLEMS + 1
    assert problems.texts[-1] == "40 more problems of the recording"
    assert capsys.readouterr().err.count("\n") == MOST_PROBLEMS


def test_a_long_span_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN 15,000 events a second in one span for 10 minutes, at 200 times the speed."""
    monkeypatch.setattr(module, "FLUSH_S", 1000.0)
    monkeypatch.setattr(module, "RELIEF_S", 0.0)
    meter, store = FakeMeter(), CountingStore()
    recorder = recorder_of(meter, store)
    recorder.start()
    most, num_events = 0, 0
    with listening(recorder), span("script"):
        for tick in range(6_000 // 200):
            for number in range(1_500 * 200 // 3 // 10):
                address = tick * 100_000 + number
                meter.alloc(512, address)
                meter.free(address, 512)
                num_events += 3
            recorder.relieve()
            most = max(most, len(meter.events))
    recorder.close()
    check = recorder.check()
    assert check is not None
    assert (check.num_events, check.num_lost_events, check.max_error_bytes) == (num_events, 0, 0)
    assert most < 2 * module.DRAIN_EVENTS + 30_000


class CountingStore(FakeStore):
    """Counts rows in place of keeping them."""

    def append(self, table: str, columns: Any) -> None:
        pass


STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "own", "other"]), st.integers(1, 99)), max_size=50
)


@settings(deadline=None, max_examples=100)
@given(steps=STEPS, flush_s=st.sampled_from([0.0, 1000.0]))
def test_every_thread_counts_for_the_span_that_is_open(steps: list[tuple[str, int]], flush_s: float) -> None:
    """GIVEN allocations of the model's thread and of others THEN no span's peak is below what was held inside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FLUSH_S", flush_s)
        now = 1_000_000
        patch.setattr(module.time, "time_ns", lambda: now * 1000)
        meter, store = Timed(), FakeStore(10**6)
        recorder = recorder_of(meter, store)
        recorder.start()
        open_spans: list[Any] = []
        peaks: dict[int, int] = {}
        numbers: list[int] = []
        with listening(recorder):
            for step, size in steps:
                now += 10
                meter.time_us = now
                if step == "begin":
                    open_spans.append(span(f"s{len(peaks)}"))
                    open_spans[-1].__enter__()
                    numbers.append(len(peaks) + 1)
                    peaks[numbers[-1]] = meter.allocated
                elif step == "end" and open_spans:
                    open_spans.pop().__exit__(None, None, None)
                    numbers.pop()
                elif step in ("own", "other"):
                    own, meter.stamped = meter.stamped, step == "own"
                    meter.alloc(size)
                    for number in numbers:
                        peaks[number] = max(peaks[number], meter.allocated)
                    meter.free(meter.num_allocs, size)
                    meter.stamped = own
        recorder.close()
        assert {row["span_id"]: row["allocated_peak_bytes"] for row in store.rows.get("spans", [])} == peaks
        assert recorder.problems == ()


class Timed(FakeMeter):
    """Its events have times; events of other threads have no stamp, as on CUDA."""

    def __init__(self) -> None:
        super().__init__(source="cuda")
        self.time_us, self.stamped = 0, True

    def _event(self, action: str, address: int, size: int) -> None:
        super()._event(action, address, size)
        self.events[-1]["time_us"] = self.time_us
        if not self.stamped:
            self.events[-1]["user_metadata"] = ""


def test_a_signals_handler_may_have_a_problem_while_one_is_added() -> None:
    problems = Problems()

    def handled() -> None:
        with problems._lock:  # add() is interrupted here, and its thread runs the handler
            problems.add("from the handler")

    thread = threading.Thread(target=handled, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert problems.texts == ("from the handler",)


def test_a_span_that_was_not_ended_as_it_should_be_gets_no_more_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meter = FakeMeter()
    recorder = recorder_of(meter)
    recorder.start()

    def fails(path: str) -> None:
        raise RuntimeError("no")

    with listening(recorder), span("train_step"):
        with monkeypatch.context() as patch, span("forward"):
            patch.setattr(recorder._ledger, "close", fails)
        assert (meter.span, recorder.beat().path) == (1, "train_step")
    recorder.close()
    assert recorder.problems == ("a span was not ended as it should be: RuntimeError: no",)


def test_spans_after_a_full_disk_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.0)
    recorder = recorder_of(FakeMeter(), FakeStore(room=0))
    scribe = recorder._scribe
    assert scribe is not None
    assert isinstance(scribe.writer, Writer)
    recorder.start()
    with listening(recorder):
        with span("decode"):
            pass
        while scribe.error is None:
            with span("decode"):
                pass
        before = len(scribe.writer.categories)
        for _ in range(50):
            with span("decode"):
                pass
    assert len(scribe.writer.categories) == before
    with pytest.raises(DiskFull):
        recorder.close()
