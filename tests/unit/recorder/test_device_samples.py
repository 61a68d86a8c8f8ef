"""Samples: one row from a meter and a driver, taken on a thread of their own."""

import os
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ray_memprof.recorder import device_samples
from ray_memprof.recorder.clock import Clock
from ray_memprof.recorder.device_samples import Sampler, sampling, split
from ray_memprof.recorder.device_samples import sample as taken
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.meters.nvml import Device, Holder
from ray_memprof.recorder.rows import Sample

READING = Reading(
    t_ns=1, allocated=2, reserved=3, active=4, device_used=5, host_rss=6, allocated_peak=-1, reserved_peak=-1,
    active_peak=-1, num_allocs=7, num_segments=8, num_retries=9,
)  # fmt: skip
ROW = Sample(
    t_ns=1, device_used_bytes=5, process_used_bytes=None, others_used_bytes=None, allocated_bytes=2,
    reserved_bytes=3, host_rss_bytes=6, utilisation_fraction=None,
)  # fmt: skip
ME = os.getpid()


class FakeMeter:
    has_events = True
    """Answers every peek with the same reading; once it is stuck, it answers no more."""

    def __init__(self, stuck: bool = False) -> None:
        self.num_looks, self._stuck = 0, stuck

    def peek(self) -> Reading:
        self.num_looks += 1
        return READING

    def answers(self) -> bool:
        return not self._stuck


def sample(reading: Reading, device: Device | None, *, is_fresh: bool = True) -> Sample:
    return taken(reading, device, t_ns=1, is_fresh=is_fresh, note=fail)


def fail(what: str, error: Exception) -> None:
    raise AssertionError(what) from error


def at_once(row: Sample) -> Sample:
    """The same row; its time is that of the look."""
    assert 0 <= time.time_ns() - row.t_ns < 60e9
    return replace(row, t_ns=1)


class FakeDevice(Device):
    """A GPU with these holders."""

    def __init__(self, *holders: Holder, utilisation: float | None = 0.5, is_mig: bool = False) -> None:
        self._holders, self._utilisation = None if is_mig else list(holders), utilisation

    def used_bytes(self) -> int:
        return 50

    def holders(self) -> list[Holder] | None:
        return self._holders

    def utilisation(self) -> float | None:
        return self._utilisation


def test_without_a_driver_a_row_has_what_the_meter_knows() -> None:
    assert sample(READING, None) == ROW


def test_the_driver_tells_who_holds_what() -> None:
    device = FakeDevice(Holder(ME, 30), Holder(ME + 1, 15))
    wanted = replace(ROW, process_used_bytes=30, others_used_bytes=15, utilisation_fraction=0.5)
    assert sample(READING, device) == wanted
    # Where the reading is old, the driver is asked for what is in use as well.
    assert sample(READING, device, is_fresh=False) == replace(wanted, device_used_bytes=50)


@pytest.mark.parametrize(
    ("holders", "own", "others"),
    [
        ((), None, None),
        ((Holder(ME, 30),), 30, 0),
        ((Holder(ME, 30), Holder(1, None)), 30, None),
        ((Holder(ME, None), Holder(1, 15)), None, None),
        ((Holder(1, 15), Holder(2, 16)), None, None),  # numbers of the host, seen from a container
    ],
)
def test_what_the_driver_does_not_tell_stays_empty(
    holders: tuple[Holder, ...], own: int | None, others: int | None
) -> None:
    assert split(FakeDevice(*holders), ME) == (own, others)


def test_a_driver_that_names_no_process_tells_neither() -> None:
    assert sample(READING, FakeDevice(utilisation=None, is_mig=True)) == ROW


@dataclass
class Listener:
    """Keeps what it is told: rows, those whose allocator's figures are old, and problems."""

    rows: list[Sample] = field(default_factory=list)
    old: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_reliefs: int = 0
    threads: set[str] = field(default_factory=set)
    enough: threading.Event = field(default_factory=threading.Event)
    """Set once there are three of any kind."""

    def tick(self, sample: Sample, *, is_whole: bool) -> None:
        (self.rows if is_whole else self.old).append(sample)
        self._note()

    def relieve(self) -> None:
        self.num_reliefs += 1
        self._note()

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def _note(self) -> None:
        self.threads.add(threading.current_thread().name)
        if 3 in (len(self.rows), len(self.old)) or self.num_reliefs >= 3 + len(self.rows):
            self.enough.set()


def test_rows_come_from_a_thread_that_ends_with_the_block() -> None:
    listener = Listener()
    with sampling(listener, FakeMeter(), None, 0.001):  # type: ignore[arg-type]
        assert listener.enough.wait(20)
    num_rows = len(listener.rows)
    assert ({at_once(row) for row in listener.rows}, listener.threads) == ({ROW}, {"sampler"})
    assert listener.num_reliefs == num_rows
    assert "sampler" not in {thread.name for thread in threading.enumerate()}
    assert len(listener.rows) == num_rows


def test_an_allocator_that_does_not_answer_is_not_asked_and_rows_go_on() -> None:
    listener, meter = Listener(), FakeMeter(stuck=True)
    with sampling(listener, meter, FakeDevice(), 0.001):  # type: ignore[arg-type]
        assert listener.enough.wait(20)
    assert (meter.num_looks, listener.rows, listener.num_reliefs) == (1, [], 0)
    assert {(row.allocated_bytes, row.device_used_bytes) for row in listener.old} == {(2, 50)}


def test_between_rare_samples_the_recorder_is_relieved(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN one sample an hour THEN events do not wait for an hour."""
    monkeypatch.setattr(device_samples, "RELIEVE_S", 0.001)
    listener, meter = Listener(), FakeMeter()
    with sampling(listener, meter, None, 3600.0):  # type: ignore[arg-type]
        assert listener.enough.wait(20)
    assert (listener.rows, meter.num_looks >= 1 + listener.num_reliefs) == ([], True)


def test_a_thread_that_mostly_waits_is_met_while_it_gets_on() -> None:
    class Seldom(FakeMeter):
        num_asked = 0

        def answers(self) -> bool:
            self.num_asked += 1
            return self.num_asked == 5

    listener = Listener()
    sampler = Sampler(listener, Seldom(), None, Clock(), 20.0)  # type: ignore[arg-type]
    sampler._patience_s = 20.0
    sampler.look()
    assert (len(listener.rows), listener.num_reliefs) == (1, 1)


def test_a_driver_that_never_answers_does_not_keep_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_samples, "END_S", 0.05)
    entered, leave = threading.Event(), threading.Event()

    class Hangs(FakeMeter):
        def answers(self) -> bool:
            entered.set()
            return not leave.wait(60)

    listener = Listener()
    with sampling(listener, Hangs(), None, 0.001):  # type: ignore[arg-type]
        assert entered.wait(20)
    assert listener.problems == ["the last sample was not taken within 0.05 s, it is missing"]
    leave.set()


def test_a_block_that_fails_ends_the_thread_at_once() -> None:
    with pytest.raises(KeyError), sampling(Listener(), FakeMeter(), None, 1000.0):  # type: ignore[arg-type]
        raise KeyError
    assert "sampler" not in {thread.name for thread in threading.enumerate()}


# --------------------------------------------------------------------------------
# Errors: a gap, a problem, and the next sample


class Failing:
    """Raises `error` in the calls whose numbers are in `when`; the other calls return what `answer` returns."""

    def __init__(self, answer: Any, error: Exception, when: tuple[int, ...]) -> None:
        self._answer, self._error, self._when, self.num_calls = answer, error, when, 0

    def __call__(self) -> Any:
        self.num_calls += 1
        if self.num_calls in self._when:
            raise self._error
        return self._answer


@dataclass
class Bench(Listener):
    """A sampler whose looks are taken one by one."""

    meter: FakeMeter = field(default_factory=FakeMeter)
    device: Device | None = None

    def look(self, num: int) -> "Bench":
        sampler = self.sampler()
        sampler.begin()
        for _ in range(num):
            sampler.look()
        return self

    def sampler(self) -> Sampler:
        return Sampler(self, self.meter, self.device, Clock(), 0.002)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error"), OSError(5, "statm"), KeyError("all")], ids=repr
)
@pytest.mark.parametrize("when", [(1,), (2,), (2, 3)])
def test_a_meter_that_fails_makes_a_gap_and_a_problem_and_sampling_goes_on(
    error: Exception, when: tuple[int, ...]
) -> None:
    bench = Bench()
    bench.meter.peek = Failing(READING, error, when)  # type: ignore[method-assign]
    bench.look(4)
    num_lost = len([number for number in when if number > 1])
    assert [at_once(row) for row in bench.rows] == [ROW] * (4 - num_lost)
    assert len(bench.problems) == len(when)
    assert all(type(error).__name__ in text for text in bench.problems)


def test_a_driver_that_fails_once_costs_its_own_figures_and_no_row() -> None:
    bench = Bench(device=FakeDevice(Holder(ME, 30)))
    bench.device.utilisation = Failing(0.5, RuntimeError("GPU is lost"), (2,))  # type: ignore[union-attr,method-assign]
    bench.look(3)
    assert [row.utilisation_fraction for row in bench.rows] == [0.5, None, 0.5]
    assert [row.process_used_bytes for row in bench.rows] == [30, None, 30]
    assert bench.problems == ["the driver did not report all of a sample: RuntimeError: GPU is lost"]


def test_what_the_recorder_raises_does_not_end_the_sampling() -> None:
    bench, ticks = Bench(), Failing(None, ValueError("no"), (1, 3))
    bench.tick = lambda row, is_whole: ticks()  # type: ignore[method-assign, assignment, misc]
    bench.look(4)
    assert (ticks.num_calls, bench.problems) == (4, ["a sample could not be taken: ValueError: no"] * 2)


def test_what_relief_raises_does_not_end_the_sampling() -> None:
    bench, reliefs = Bench(), Failing(None, ValueError("no"), (1,))
    bench.relieve = reliefs  # type: ignore[method-assign]
    sampler = bench.sampler()
    for _ in range(2):
        sampler.relieve()
    assert (reliefs.num_calls, bench.problems) == (2, ["events that wait could not be taken: ValueError: no"])


def test_an_old_reading_is_no_sample_where_nobody_else_can_be_asked() -> None:
    bench = Bench(meter=FakeMeter(stuck=True)).look(3)
    assert (bench.rows, bench.old, bench.problems) == ([], [], [])
    bench = Bench(meter=FakeMeter(stuck=True), device=FakeDevice()).look(3)
    assert (bench.rows, [row.device_used_bytes for row in bench.old], bench.problems) == ([], [50] * 3, [])


def test_a_look_that_was_interrupted_is_taken_again() -> None:
    class Slow(FakeMeter):
        def peek(self) -> Reading:
            reading = super().peek()
            if self.num_looks == 2:
                time.sleep(0.003)
            return replace(reading, device_used=self.num_looks)

    bench = Bench(meter=Slow()).look(1)
    assert bench.rows[0].device_used_bytes >= 3


@pytest.mark.parametrize(
    ("reserved", "is_torn"), [((3, 3, 3), False), ((3, 9, 9, 9), False), ((3, 4, 5, 6, 7, 8, 9, 10), True)]
)
def test_a_segment_between_two_figures_is_no_growth_outside_the_allocator(
    reserved: tuple[int, ...], is_torn: bool
) -> None:
    """GIVEN 10 bytes in use instead of 5, and an allocator that may have taken the others meanwhile."""
    bench, told = Bench(), iter(reserved)
    bench.meter.peek = lambda: replace(READING, reserved=next(told), device_used=5)  # type: ignore[method-assign]
    sampler = bench.sampler()
    sampler.begin()
    bench.meter.peek = lambda: replace(READING, reserved=next(told), device_used=10)  # type: ignore[method-assign]
    sampler.look()
    assert (len(bench.rows), len(bench.old), bench.problems) == (not is_torn, is_torn, [])
