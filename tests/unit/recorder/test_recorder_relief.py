"""When the recorder takes waiting events: at a boundary, or inside a span that lasts."""

import pytest
from desks import at_work

from ray_memprof.recorder import recorder as module
from ray_memprof.recorder.spans import span


def test_relief_flushes_where_no_span_has_ended_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 1000.0)
    with at_work() as desk, span("load.dit"):
        desk.meter.alloc(5)
        desk.recorder.relieve()
        assert len(desk.meter.events) == 1
        monkeypatch.setattr(module, "FLUSH_S", 0.0)
        desk.recorder.relieve()
        assert desk.meter.events == []


def test_relief_takes_events_inside_a_span_when_some_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 1000.0)
    monkeypatch.setattr(module, "RELIEF_S", 0.0)
    with at_work() as desk, span("load.dit"):
        desk.meter.events += [{}] * (module.RELIEF_EVENTS - 1)
        desk.recorder.relieve()
        assert len(desk.meter.events) == module.RELIEF_EVENTS - 1
        desk.meter.events.clear()
        for number in range(module.RELIEF_EVENTS):
            desk.meter.alloc(5, number)
        desk.recorder.relieve()
        assert desk.meter.events == []
    assert module.RELIEF_EVENTS <= module.DRAIN_EVENTS // 2, "a ring would be doubled at every relief"


def test_relief_leaves_events_to_the_next_boundary_where_boundaries_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a boundary the model's thread empties the ring; inside a span all of it is copied, again and again."""
    monkeypatch.setattr(module, "FLUSH_S", 1000.0)
    monkeypatch.setattr(module, "RELIEF_S", 60.0)
    with at_work() as desk, span("train_step"):
        desk.meter.events += [{}] * (module.DRAIN_EVENTS - 1)
        desk.recorder.relieve()
        assert len(desk.meter.events) == module.DRAIN_EVENTS - 1
        desk.recorder._settled_s -= 61.0  # as a boundary a minute ago
        desk.recorder.relieve()
        assert desk.meter.events == []


def test_events_are_taken_when_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 1000.0)
    monkeypatch.setattr(module, "DRAIN_EVENTS", 3)
    with at_work() as desk:
        for _ in range(4):
            with span("decode"):
                desk.meter.alloc(5)
        assert len(desk.meter.events) == 1
    check = desk.recorder.check()
    assert check is not None
    assert (check.num_events, check.num_checks, check.max_error_bytes) == (4, 2, 0)
    assert check.recorder_bytes >= 1500
