"""Events of threads that have no stamp belong to the span that was open on the model's thread."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_memprof.recorder.event_spans import give_spans


def event(time_us: int, stamp: str = "") -> dict[str, Any]:
    return {"action": "alloc", "time_us": time_us, "user_metadata": stamp}


def stamped(events: list[dict[str, Any]], stamps: list[tuple[int, int]]) -> list[str]:
    give_spans(events, stamps, lambda: None)
    return [one["user_metadata"] for one in events]


def test_no_events_and_no_stamps_are_nothing() -> None:
    assert stamped([], []) == []
    assert stamped([], [(0, 1)]) == []
    assert stamped([event(1)], []) == [""]


def test_events_that_have_a_stamp_keep_it() -> None:
    events = [event(5, "7"), event(6, "2")]
    assert stamped(events, [(0, 1)]) == ["7", "2"]


def test_the_clock_decides_between_spans_that_left_no_event() -> None:
    stamps = [(0, 0), (10, 1), (20, 2), (30, 1), (40, 0)]
    times = [5, 10, 19, 20, 29, 30, 39, 40, 90]
    assert stamped([event(time) for time in times], stamps) == list("011221100")


def test_an_event_of_no_span_is_the_models_own_only_where_it_was_outside_of_all() -> None:
    """The stamp 0 is of the model's thread outside of all spans; fake events of other threads may have it, too."""
    stamps = [(0, 0), (100, 1), (200, 2), (300, 1), (400, 0)]
    events = [
        event(50, "0"),
        event(210, "2"),
        event(220, "0"),
        event(230, "2"),
        event(410, "0"),
        event(420, "0"),
    ]
    assert stamped(events, stamps) == ["0", "2", "2", "2", "0", "0"]


def test_what_lies_between_two_events_of_one_span_is_that_spans_whatever_the_clock_says() -> None:
    stamps = [(0, 0), (100, 1), (200, 2)]
    events = [event(110, "1"), event(500), event(120, "1"), event(20), event(210, "2"), event(90)]
    assert stamped(events, stamps) == ["1", "1", "1", "1", "2", "2"]


def test_a_backward_pass_on_threads_of_its_own_belongs_to_the_step_around_it() -> None:
    """GIVEN a forward span, stamped events in it, and a backward pass after it in the span around both."""
    stamps = [(0, 1), (10, 2), (50, 1), (100, 3)]  # train_step, forward, train_step again, the next forward
    events = [event(20, "2"), event(30, "2"), event(60), event(70), event(90), event(110, "3")]
    assert stamped(events, stamps) == ["2", "2", "1", "1", "1", "3"]


def test_where_the_clock_was_set_the_models_own_events_tell_by_how_much() -> None:
    shift = 5_000
    stamps = [(0, 1), (10, 2), (50, 1), (100, 3), (150, 1)]
    events = [
        event(time + shift, stamp) for time, stamp in [(12, "2"), (49, "2"), (60, ""), (105, "3"), (120, "")]
    ]
    assert stamped(events, stamps) == ["2", "2", "1", "3", "3"]


@settings(deadline=None, max_examples=200)
@given(
    steps=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.booleans()), min_size=1, max_size=60),
    shift=st.integers(-1, 1),
)
def test_every_event_gets_the_span_that_was_open(steps: list[tuple[int, int, bool]], shift: int) -> None:
    """GIVEN spans that begin and end, and events of two threads WHEN the clock is exact THEN the spans are exact."""
    now, stamps, events, right = 10, [(0, 0)], [], []
    for number, (span_id, passes, is_own) in enumerate(steps):
        now += passes
        if number % 3 == 0:
            stamps.append((now, span_id))
            now += 3
        right.append(str(stamps[-1][1]))
        events.append(event(now + shift, right[-1] if is_own else ""))
        now += 2
    assert stamped(events, stamps) == right
