"""What a rank reports when it is asked, and what it seals when it is ended."""

import threading
from typing import Any

import pytest
from desks import Desk, at_work
from recorder_fakes import FakeMeter

from ray_memprof.recorder.recorder import Recorder
from ray_memprof.recorder.spans import span
from ray_memprof.recorder.status import Beat


def test_beats_tell_where_the_model_is_to_any_thread() -> None:
    beats: list[Beat] = []

    def ask(desk: Desk) -> None:
        thread = threading.Thread(target=lambda: beats.append(desk.recorder.beat()))
        thread.start()
        thread.join()

    with at_work() as desk:
        ask(desk)
        with span("denoise", step=2):
            desk.meter.alloc(5)
            with span("dit.block"):
                ask(desk)
            desk.recorder.on_step(3, 50)
        ask(desk)
    assert beats == [
        beat(sequence=0),
        beat(sequence=2, path="denoise/dit.block", stage="denoise", step=2, allocated_bytes=5, reserved_bytes=5,
             device_used_bytes=5),
        beat(sequence=4, num_steps=50, allocated_bytes=5, reserved_bytes=5, device_used_bytes=5),
    ]  # fmt: skip


def test_a_beat_does_not_wait_for_the_disk() -> None:
    with at_work() as desk, span("decode"):
        desk.recorder._lock.acquire()  # as held by a flush that waits for the disk
        got: list[Beat] = []
        thread = threading.Thread(target=lambda: got.append(desk.recorder.beat()))
        thread.start()
        thread.join(20)
        desk.recorder._lock.release()
        assert [beat.path for beat in got] == ["decode"]


@pytest.mark.parametrize("events", [True, False])
def test_seal_writes_what_was_measured_and_what_is_open_before_it_returns(events: bool) -> None:
    with at_work(events=events) as desk, span("script"):
        with span("decode"):
            desk.meter.alloc(5)
        desk.meter.alloc(2)
        thread = threading.Thread(target=desk.recorder.seal)
        thread.start()
        thread.join()
        assert desk.store.num_seals == 1
        assert {
            path: (row["failed"], row["allocated_end_bytes"], row["allocated_peak_bytes"])
            for path, row in desk.spans.items()
        } == {"script/decode": (False, 5, 5), "script": (True, 7, 7)}
        with span("save"):
            pass
    assert list(desk.spans) == ["script/decode", "script"]


def test_seal_waits_for_a_recorder_that_is_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a rank whose model has failed, and which writes its last rows THEN it is not killed before that is done."""
    is_closing, may_close = threading.Event(), threading.Event()

    def close() -> None:
        is_closing.set()
        assert may_close.wait(20)

    with at_work() as desk:
        monkeypatch.setattr(desk.store, "close", close)
        threads = [threading.Thread(target=desk.recorder.close)]
        threads.append(threading.Thread(target=desk.recorder.seal, args=(20.0,)))
        threads[0].start()
        assert is_closing.wait(20)
        threads[1].start()
        threads[1].join(0.2)
        assert threads[1].is_alive()
        may_close.set()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


def test_seal_waits_for_nothing_where_nothing_is_kept() -> None:
    recorder = Recorder(0, FakeMeter(), None)
    recorder.start()
    recorder.seal(wait_s=1000.0)


def beat(**known: Any) -> Beat:
    unknown = {"path": "", "stage": "", "step": -1, "num_steps": -1, "allocated_bytes": 0, "reserved_bytes": 0,
               "device_used_bytes": 0}  # fmt: skip
    return Beat(rank=0, **{**unknown, **known})
