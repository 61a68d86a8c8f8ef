"""The thread that writes: hardly at work beside a model, at once where it is late or nobody is there to be held up."""

import threading
import time

import pytest

from ray_memprof.recorder import pace as module
from ray_memprof.recorder.pace import Pace


class Rests(threading.Event):
    """Long rests, by their length; none is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.taken.append(timeout)
        return self.is_set()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Short rests."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def paced(worked: list[float], now: float = 100.0) -> tuple[Pace, Rests]:
    pace = Pace(clock=lambda: now, worked_s=lambda: worked.pop(0))
    pace._hurries = rests = Rests()
    return pace, rests


def test_rests_are_a_hundred_times_as_long_as_work(short: list[float]) -> None:
    pace, rests = paced([7.0, 7.0002, 7.0005])
    for _ in range(3):
        pace.rest(since=99.0, num_waiting=5)
    assert rests.taken == pytest.approx([0.02, 0.03])
    assert short == [module.SHORT_REST_S]  # how long it had worked before is not known


def test_a_rest_ends_some_day(short: list[float]) -> None:
    pace, rests = paced([7.0, 17.0])
    for _ in range(2):
        pace.rest(since=99.0, num_waiting=5)
    assert rests.taken == [module.LONGEST_REST_S]


@pytest.mark.parametrize(
    ("since", "num_waiting"),
    [(100.0 - module.MOST_RELAXED_S - 0.1, 5), (99.0, module.MOST_RELAXED_EVENTS + 1)],
    ids=["old", "many"],
)
def test_what_is_urgent_has_short_rests(short: list[float], since: float, num_waiting: int) -> None:
    pace, rests = paced([7.0, 7.001, 7.002])
    for _ in range(3):
        pace.rest(since, num_waiting)
    assert (rests.taken, short) == ([], [module.SHORT_REST_S] * 3)


def test_who_hurries_is_urgent(short: list[float]) -> None:
    pace, rests = paced([7.0, 7.001, 7.002])
    pace.rest(since=99.0, num_waiting=5)
    pace._hurries.set()
    pace.rest(since=99.0, num_waiting=5)
    assert (rests.taken, len(short)) == ([], 2)


def test_a_rest_ends_where_somebody_hurries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_REST_S", 1000.0)
    pace = Pace(worked_s=iter((0.0, 1e9)).__next__)
    pace.rest(time.monotonic(), 5)
    threading.Timer(0.01, pace.hurry).start()
    pace.rest(time.monotonic(), 5)
    assert pace._hurries.is_set()
