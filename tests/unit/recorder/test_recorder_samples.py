"""Samples and spans: each sample counts for the spans it was taken in, however late it comes, and for no other."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_fakes import FakeMeter, FakeStore

from ray_memprof.allocator.replay import Replay
from ray_memprof.recorder import recorder as module
from ray_memprof.recorder.meters.meter import Batch
from ray_memprof.recorder.recorder import Recorder
from ray_memprof.recorder.rows import Sample
from ray_memprof.recorder.scribe import Scribe
from ray_memprof.recorder.writer import Writer

TOTAL = 1000


def sample(t_ns: int, used: int, *, reserved: int = 0) -> Sample:
    return Sample(t_ns, used, None, None, 0, reserved, 9, None)


@dataclass
class Desk:
    """A recorder whose spans are opened by hand; `now` is the time of its last reading."""

    meter: FakeMeter = field(default_factory=FakeMeter)
    store: FakeStore = field(default_factory=FakeStore)

    def __post_init__(self) -> None:
        scribe = Scribe(Writer(self.store, Replay(), categories={}, device_total_bytes=TOTAL))  # type: ignore[arg-type]
        self.recorder = Recorder(0, self.meter, scribe)
        self.recorder.start()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.recorder.enter(name, {})
        yield
        self.recorder.exit(name, False)

    def rows(self) -> dict[str, tuple[int, int, int]]:
        """Measured peak, bound and number of samples, by path."""
        self.recorder.close()
        return {
            row["path"]: (row["device_used_peak_bytes"], row["device_used_bound_bytes"], row["num_samples"])
            for row in self.store.rows.get("spans", [])
        }


def test_without_a_sample_the_ends_alone_are_measured() -> None:
    desk = Desk()
    desk.meter.device_used = 30
    with desk.span("denoise"):
        desk.meter.alloc(200)
        desk.meter.free(1, 200)
        desk.meter.device_used = 40
    # 200 were reserved for a moment, and at most 40 seen outside: 240 may have been in use, and 40 were seen.
    assert desk.rows() == {"denoise": (40, 240, 0)}


def test_a_sample_counts_for_every_span_around_it_and_for_none_before_or_after() -> None:
    desk = Desk()
    with desk.span("denoise"):
        with desk.span("first"):
            desk.recorder.tick(sample(desk.meter.now, 70))
        with desk.span("second"):
            desk.recorder.tick(sample(desk.meter.now, 50))
            desk.recorder.tick(sample(desk.meter.now, 60))
        desk.meter.now += 1
        desk.recorder.tick(sample(desk.meter.now, 80))
    with desk.span("decode"):
        pass
    assert desk.rows() == {
        "denoise": (80, 80, 4), "denoise/first": (70, 70, 1), "denoise/second": (60, 60, 2), "decode": (0, 0, 0)
    }  # fmt: skip


def test_a_sample_that_comes_late_counts_where_it_was_taken() -> None:
    desk = Desk()
    with desk.span("denoise"):
        with desk.span("first"):
            desk.meter.now += 10
            taken = desk.meter.now
            desk.meter.now += 10
        with desk.span("second"):
            desk.recorder.tick(sample(taken, 70))
    with desk.span("decode"):
        desk.recorder.tick(sample(taken, 90))
    assert desk.rows() == {
        "denoise": (90, 90, 2), "denoise/first": (90, 90, 2), "denoise/second": (0, 0, 0), "decode": (0, 0, 0)
    }  # fmt: skip


def test_a_row_waits_for_the_sample_that_may_have_been_taken_in_its_span(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GIVEN rows that are handed over at every boundary WHEN a sample comes after that THEN it still counts."""
    monkeypatch.setattr(module, "FLUSH_S", 0.0)
    desk = Desk()
    desk.recorder.tick(sample(desk.meter.now, 1))
    with desk.span("first"):
        taken = desk.meter.now
    with desk.span("second"):
        pass
    desk.recorder.tick(sample(taken, 70))
    assert desk.rows() == {"first": (70, 70, 1), "second": (0, 0, 0)}


def test_a_row_waits_for_no_sample_where_none_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.0)
    desk = Desk()
    desk.recorder.tick(sample(desk.meter.now, 1))
    with desk.span("first"):
        pass
    desk.meter.now += module.LATE_NS
    with desk.span("second"):
        pass
    held = [record.path for record in desk.recorder._outbox.parcel.spans]
    assert (held, list(desk.rows())) == (["second"], ["first", "second"])


def test_a_sample_with_old_reserved_bytes_is_measured_and_tells_nothing_of_the_outside() -> None:
    desk = Desk()
    with desk.span("denoise"):
        desk.meter.alloc(200)
        desk.meter.free(1, 200)
        desk.recorder.tick(sample(desk.meter.now, 150, reserved=10), is_whole=False)
        with desk.span("dit.block"):
            desk.recorder.tick(sample(desk.meter.now, 150, reserved=120))
    assert desk.rows() == {"denoise": (150, 230, 2), "denoise/dit.block": (150, 150, 1)}


def test_a_reading_at_a_collective_is_measured_too() -> None:
    desk = Desk()
    with desk.span("denoise"):
        desk.meter.device_used = 60
        before = desk.recorder.begin_collective()
        assert before is not None
        desk.recorder.end_collective(before, op="barrier", num_bytes=0, group="", group_size=1)
        desk.meter.device_used = 10
    assert desk.rows() == {"denoise": (60, 60, 0)}


# --------------------------------------------------------------------------------
# For all orders in which spans and samples come

ACTIONS = st.lists(st.sampled_from(["enter", "exit", "take", "tick", "flush"]), max_size=60)


@settings(max_examples=60, deadline=None)
@given(ACTIONS, st.randoms(use_true_random=False))
def test_for_any_order_a_sample_counts_where_its_time_lies(actions: list[str], random: Any) -> None:
    desk = Desk()
    taken: list[Sample] = []
    done: list[Sample] = []
    depth = 0
    for number, action in enumerate(actions):
        desk.meter.now += 1
        if action == "enter":
            desk.recorder.enter(f"s{number}", {})
            depth += 1
        elif action == "exit" and depth:
            desk.recorder.exit("", False)
            depth -= 1
        elif action == "take":
            desk.meter.now += 1  # at no time at which a span begins or ends
            taken.append(sample(desk.meter.now, random.randrange(TOTAL)))
        elif action == "tick" and taken:
            done.append(taken.pop(0))
            desk.recorder.tick(done[-1])
        elif action == "flush" and done:
            desk.recorder._flush()
    desk.recorder.close()
    for row in desk.store.rows.get("spans", []):
        inside = [one for one in done if row["start_ns"] <= one.t_ns <= row["end_ns"]]
        seen = [one.device_used_bytes for one in inside]
        ends = row["device_used_start_bytes"], row["device_used_end_bytes"]
        assert (row["num_samples"], row["device_used_peak_bytes"]) == (len(inside), max(*ends, *seen, 0))
        assert row["device_used_bound_bytes"] >= row["device_used_peak_bytes"]


# --------------------------------------------------------------------------------
# Others: which process took the memory


class Share:
    """The driver's figure for this process: what `held` says, or nothing."""

    def __init__(self, desk: Desk) -> None:
        self._meter, self.own, self.num_asked = desk.meter, 0, 0
        self.is_told = True
        self.meanwhile: list[int] = []
        """By how much others grow between two figures, call by call."""

    def read(self, used: int, reserved: int, *, is_on: bool) -> int | None:
        self.num_asked += 1
        if self.meanwhile:
            self._meter.device_used += self.meanwhile.pop(0)
        return self.own + reserved if self.is_told else None


def shared(desk: Desk) -> Share:
    share = Share(desk)
    desk.recorder._others._share = share  # type: ignore[assignment]
    return share


def booked(desk: Desk) -> list[tuple[str, int]]:
    desk.recorder.close()
    return [(row["account"], row["bytes"]) for row in desk.store.rows.get("ledger", [])]


def collective(desk: Desk, *, ours: int = 0, others: int = 0, share: Share | None = None) -> None:
    before = desk.recorder.begin_collective()
    assert before is not None
    desk.meter.device_used += ours + others
    if share is not None:
        share.own += ours
    desk.recorder.end_collective(before, op="all_reduce", num_bytes=8, group="g", group_size=2)


def test_another_process_that_grows_between_two_samples_is_never_nccls() -> None:
    desk = Desk()
    share = shared(desk)
    desk.recorder.tick(sample(1, 0))
    with desk.span("denoise"):
        collective(desk, ours=30, others=500, share=share)
        collective(desk, others=70, share=share)
        collective(desk, ours=20, share=share)
    assert booked(desk) == [("others", 500), ("nccl", 30), ("others", 70), ("nccl", 20)]
    rows = desk.store.rows["collectives"]
    assert [row["non_torch_growth_bytes"] for row in rows] == [30, 0, 20]


def test_nobody_is_asked_while_nothing_grows() -> None:
    desk = Desk()
    share = shared(desk)
    for _ in range(5):
        with desk.span("denoise"):
            desk.meter.alloc(10)
            collective(desk, share=share)
    assert share.num_asked == 1


def test_figures_of_two_moments_are_read_again() -> None:
    desk = Desk()
    share = shared(desk)
    with desk.span("denoise"):
        collective(desk, ours=500, share=share)
        share.meanwhile = [90]
        collective(desk, ours=30, share=share)
    assert booked(desk) == [("nccl", 500), ("nccl", 30), ("others", 90)]


def test_a_driver_that_does_not_tell_is_a_problem_of_the_run_and_growth_goes_by_the_span() -> None:
    desk = Desk()
    share = shared(desk)
    share.is_told = False
    with desk.span("denoise"):
        collective(desk, ours=500)
        collective(desk, others=70)
    assert booked(desk) == [("nccl", 500), ("nccl", 70)]
    (problem,) = desk.recorder.problems
    assert "others" in problem


def test_samples_tell_of_others_where_the_driver_cannot_be_asked_at_boundaries() -> None:
    desk = Desk()
    desk.meter.device_used = 500
    with desk.span("denoise"):
        pass
    desk.meter.device_used = 560
    desk.recorder.tick(Sample(2, 560, 500, 60, 0, 0, 9, None))
    with desk.span("denoise"):
        pass
    assert booked(desk) == [("context", 500), ("others", 60)]


def test_what_the_samplers_thread_waits_for_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain on that thread waits for Python's lock while the model works: only its own working time is counted."""

    class Waits(FakeMeter):
        def drain(self) -> Batch:
            time.sleep(0.05)
            return super().drain()

    monkeypatch.setattr(module, "RELIEF_S", 0.0)
    desk = Desk(meter=Waits())
    with desk.span("train_step"):
        desk.meter.events += [{}] * (module.DRAIN_EVENTS + 1)
        desk.recorder.relieve()
        assert desk.meter.events == []
        spent_ns = desk.recorder._longest_pause_ns
    assert 0 < spent_ns < 40_000_000


def test_a_driver_that_answers_with_an_error_costs_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    share = shared(desk)

    def fails(used: int, reserved: int, *, is_on: bool) -> int | None:
        raise ValueError("not a process")

    monkeypatch.setattr(share, "read", fails)
    with desk.span("denoise"), desk.span("first"):
        desk.meter.device_used += 30
    assert desk.rows() == {"denoise/first": (30, 30, 0), "denoise": (30, 30, 0)}
    text = "the driver could not be asked what this process holds: ValueError: not a process"
    assert desk.recorder.problems[0] == text
