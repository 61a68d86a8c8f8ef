"""The writing thread works little while a model runs, and without rest where it is late or no model runs."""

import threading
import time

import pytest

from ray_memprof.recorder import restraint as module
from ray_memprof.recorder.restraint import Restraint


class Rests(threading.Event):
    """Keeps the lengths of long rests, without waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.taken.append(timeout)
        return self.is_set()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The lengths of short rests."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def paced(worked: list[float], now: float = 100.0) -> tuple[Restraint, Rests]:
    restraint = Restraint(clock=lambda: now, worked_s=lambda: worked.pop(0))
    restraint._hurries = rests = Rests()
    return restraint, rests


def test_rests_are_a_hundred_times_as_long_as_work_that_has_just_come(short: list[float]) -> None:
    restraint, rests = paced([7.0, 7.0002, 7.0005])
    for _ in range(3):
        restraint.rest(since=100.0, num_waiting=0)
    assert rests.taken == pytest.approx([0.02, 0.03])
    assert short == [module.SHORT_REST_S]  # how long it had worked before is not known


@pytest.mark.parametrize(("share", "rest_s"), [(0.5, 0.025), (0.9, 0.001), (0.9999, module.SHORT_REST_S)])
@pytest.mark.parametrize("is_old", [True, False])
def test_the_nearer_a_limit_is_the_shorter_are_rests(
    short: list[float], share: float, rest_s: float, is_old: bool
) -> None:
    restraint, rests = paced([7.0, 7.001])
    since, num_waiting = (
        (100 - share * module.MOST_RELAXED_S, 0) if is_old else (100, share * module.MOST_RELAXED_EVENTS)
    )
    for _ in range(2):
        restraint.rest(since, num_waiting)  # type: ignore[arg-type]
    assert rests.taken == pytest.approx([rest_s], rel=0.01)


def test_a_rest_ends_some_day(short: list[float]) -> None:
    restraint, rests = paced([7.0, 17.0])
    for _ in range(2):
        restraint.rest(since=99.0, num_waiting=5)
    assert rests.taken == [module.LONGEST_REST_S]


@pytest.mark.parametrize(
    ("since", "num_waiting"),
    [(100.0 - module.MOST_RELAXED_S - 0.1, 5), (99.0, module.MOST_RELAXED_EVENTS + 1)],
    ids=["old", "many"],
)
def test_what_is_urgent_has_short_rests(short: list[float], since: float, num_waiting: int) -> None:
    restraint, rests = paced([7.0, 7.001, 7.002])
    for _ in range(3):
        restraint.rest(since, num_waiting)
    assert (rests.taken, short) == ([], [module.SHORT_REST_S] * 3)


def test_who_hurries_is_urgent(short: list[float]) -> None:
    restraint, rests = paced([7.0, 7.001, 7.002])
    restraint.rest(since=99.0, num_waiting=5)
    restraint._hurries.set()
    restraint.rest(since=99.0, num_waiting=5)
    assert (rests.taken, len(short)) == ([], 2)


def test_a_rest_ends_where_somebody_hurries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_REST_S", 1000.0)
    restraint = Restraint(worked_s=iter((0.0, 1e9)).__next__)
    restraint.rest(time.monotonic(), 5)
    threading.Timer(0.01, restraint.hurry).start()
    restraint.rest(time.monotonic(), 5)
    assert restraint._hurries.is_set()


def test_a_thread_that_waits_is_urgent_as_long_as_it_waits(short: list[float]) -> None:
    restraint, rests = paced([7.0, 7.001, 7.002, 7.003])
    restraint.rest(since=99.0, num_waiting=5)
    with restraint.pressed():
        restraint.rest(since=99.0, num_waiting=5)
    assert (rests.taken, len(short)) == ([], 2)
    restraint.rest(since=99.0, num_waiting=5, is_crowded=True)
    assert (rests.taken, len(short)) == ([], 3)
    restraint.rest(since=99.0, num_waiting=5)
    assert rests.taken == pytest.approx([0.025], rel=0.01)


def test_who_waited_does_not_undo_the_end(short: list[float]) -> None:
    restraint, rests = paced([7.0, 7.001])
    with restraint.pressed():
        restraint.hurry()
    for _ in range(2):
        restraint.rest(since=99.0, num_waiting=5)
    assert (rests.taken, len(short)) == ([], 2)
