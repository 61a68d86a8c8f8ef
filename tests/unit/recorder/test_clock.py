"""Clocks that are set, suspended or ahead of others: times stay in order, and are those of the driver's clock."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_memprof.recorder import clock as module
from ray_memprof.recorder.clock import (
    Clock,
    Offset,
    WallTimes,
    kernel,
    offset,
)

S = 1_000_000_000


class Host:
    """A host's two clocks, set from outside; reading them takes no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wall: int = 1000 * S, up: int = 50 * S) -> None:
        self.wall, self.up = wall, up
        monkeypatch.setattr(time, "time_ns", lambda: self.wall)
        monkeypatch.setattr(time, "clock_gettime_ns", lambda which: self.up)

    def wait(self, ns: int) -> None:
        self.wall += ns
        self.up += ns

    def step(self, ns: int) -> None:
        """NTP, or a person, sets the wall clock."""
        self.wall += ns


def test_a_clock_tells_the_wall_time() -> None:
    before = time.time_ns()
    now = Clock().now_ns()
    assert before - 1_000_000 < now < time.time_ns() + 1_000_000


@pytest.mark.parametrize("step", [-3600 * S, 0, 3600 * S])
def test_a_step_of_the_wall_clock_changes_no_duration(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    host = Host(monkeypatch)
    clock = Clock()
    assert clock.now_ns() == 1000 * S
    host.wait(3)
    host.step(step)
    host.wait(4)
    assert clock.now_ns() == 1000 * S + 7


def test_what_a_host_is_ahead_is_taken_out_and_known(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    first = Clock()
    host.step(9 * S)
    clock = first.ahead(5 * S)
    host.wait(7)
    # The clock goes on from the wall time at which it was made: the wall clock was set later.
    assert (clock.now_ns(), clock.offset_ns) == (995 * S + 7, 5 * S)
    assert first.now_ns() == 1000 * S + 7


def test_times_of_the_wall_clock_become_ours_where_it_was_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    clock = Clock(offset_ns=2 * S)
    host.wait(10 * S)
    assert clock.times().ours([]) == []
    assert clock.times().ours([1004 * S, 1010 * S]) == [1002 * S, 1008 * S]


def torch_tells(age: int, *, wall: int, loaded: int, up: int, since_loaded: int) -> int:
    """Return the time that torch reports for an event `age` ns ago: a point on the line from its loading until now."""
    rate = (wall - loaded) / since_loaded
    return wall - round(age * rate)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(-7200 * S, 7200 * S),
    st.lists(st.integers(0, 2 * S), min_size=1, max_size=20),
    st.integers(5 * S, 5000 * S),
)
def test_for_any_step_events_keep_their_order_and_their_age(step: int, ages: list[int], alive: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        host = Host(patch, wall=10_000 * S)
        clock = Clock()
        loaded = host.wall
        host.wait(alive)
        host.step(step)
        ages.sort(reverse=True)
        told = [
            torch_tells(age, wall=host.wall, loaded=loaded, up=host.up, since_loaded=alive) for age in ages
        ]
        now, since = clock.now_ns(), clock.now_ns() - 2 * S
        ours = clock.times(since).ours(told)
    assert ours == sorted(ours)
    assert all(since - module._STEP_NS <= time_ns <= now for time_ns in ours)
    if abs(alive + step) > alive // 100:  # else its line stands still: no two events have different times
        assert (
            max(abs(now - age - time_ns) for age, time_ns in zip(ages, ours, strict=True)) <= module._STEP_NS
        )


def test_events_of_a_line_that_stands_still_are_of_now() -> None:
    assert WallTimes(100, 50, 0.0, since_ns=40).ours([50, 50]) == [100, 100]


def test_a_real_event_is_placed_to_some_microseconds() -> None:
    clock = Clock(offset_ns=S)
    before, told, after = clock.now_ns(), time.time_ns(), clock.now_ns()
    (ours,) = clock.times().ours([told])
    assert before - 20_000 <= ours <= after + 20_000


def test_one_kernel_is_one_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    assert kernel() == kernel() != ""
    monkeypatch.setattr(module, "_BOOT_ID", module.Path(f"{tmp_path}/none"))
    assert kernel() == ""


def test_the_quickest_round_trip_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    ours = Clock()
    trips = iter([(40, 400), (30, 10), (900, 5)])  # there and back; the second is the quickest
    ahead = -3 * S

    def theirs() -> int:
        there, back = next(trips)
        host.wait(there)
        told = ours.now_ns() + ahead
        host.wait(back)
        return told

    assert offset(ours, theirs, 3) == Offset(ahead + 10, 20)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(-(10**12), 10**12),
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)), min_size=1),
)
def test_an_offset_is_wrong_by_its_error_at_most(ahead: int, trips: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        host = Host(patch)
        ours, waits = Clock(), iter(trips)

        def theirs() -> int:
            there, back = next(waits)
            host.wait(there)
            told = ours.now_ns() + ahead
            host.wait(back)
            return told

        found = offset(ours, theirs, len(trips))
    assert abs(found.ns - ahead) <= found.error_ns + 1
    assert found.error_ns == min(sum(trip) for trip in trips) // 2
