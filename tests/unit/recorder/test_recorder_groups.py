"""The recorder and process groups: rows of communicators, and the context told apart from NCCL's buffers."""

from types import SimpleNamespace

import pytest
from recorder_fakes import FakeMeter, FakeStore

from ray_memprof.allocator.replay import Replay
from ray_memprof.recorder import communicators
from ray_memprof.recorder.recorder import Recorder
from ray_memprof.recorder.rows import Sample
from ray_memprof.recorder.scribe import Scribe
from ray_memprof.recorder.spans import listening, span
from ray_memprof.recorder.writer import Writer

SAMPLE = Sample(1, 2, None, 0, 5, 6, 7, None)


def recorder_of(meter: FakeMeter, store: FakeStore) -> Recorder:
    categories: dict[int, str] = {}
    replay = Replay(category_of=lambda span_id: categories.get(span_id, "activation"))
    return Recorder(0, meter, Scribe(Writer(store, replay, categories=categories)))  # type: ignore[arg-type]


def test_a_process_group_is_a_row_and_growth_by_its_calls_is_nccls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GIVEN a program that makes its context first, then a communicator, both in one span: a sample lies between."""
    calls = {"0": 0}
    group = SimpleNamespace(
        group_name="0",
        bound_device_id=None,
        size=lambda: 2,
        name=lambda: "nccl",
        _get_sequence_number_for_group=lambda: calls["0"],
    )
    monkeypatch.setattr(communicators, "_groups", lambda: [group])
    meter, store = FakeMeter(is_on=False), FakeStore(1000)
    recorder = recorder_of(meter, store)
    recorder.start()
    with listening(recorder), span("script"):
        meter.is_on, meter.device_used = True, 500
        recorder.tick(SAMPLE, is_whole=False)
        recorder.tick(SAMPLE)
        calls["0"], meter.device_used = 3, 1500
        with span("forward"):
            meter.device_used += 70
        calls["0"] = 4
    recorder.close()
    booked = [(row["span_id"], row["account"], row["bytes"]) for row in store.rows["ledger"]]
    assert booked == [(1, "context", 500), (1, "nccl", 1000), (2, "libraries", 70)]
    rows = [
        (row["group"], row["backend"], row["num_calls"], row["bytes"], row["shared_bytes"], row["how_known"])
        for row in store.rows["communicators"]
    ]
    assert rows == [
        ("0", "nccl", 0, 0, 0, "none"), ("0", "nccl", 3, 1000, 1000, "growth"), ("0", "nccl", 4, 1000, 1000, "growth"),
    ]  # fmt: skip


def test_a_context_is_not_booked_by_a_sample_inside_a_collective() -> None:
    meter, store = FakeMeter(is_on=False), FakeStore(1000)
    recorder = recorder_of(meter, store)
    recorder.start()
    with listening(recorder):
        before = recorder.begin_collective()
        assert before is not None
        meter.is_on, meter.device_used = True, 800
        recorder.tick(SAMPLE)
        assert not recorder._ledger.has_context
        recorder.end_collective(before, op="barrier", num_bytes=0, group="0", group_size=1)
        assert recorder._ledger.has_context
    recorder.close()
