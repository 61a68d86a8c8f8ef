"""The scribe: who delivers too much waits, rests end when somebody waits, errors are kept for the end."""

import threading
from pathlib import Path
from typing import Any

import pytest
from recorder_fakes import FakeMeter, FakeStore

from ray_memprof.allocator.replay import BlockReplay, Replay
from ray_memprof.errors import DiskFull
from ray_memprof.recorder import restraint, writer
from ray_memprof.recorder import scribe as module
from ray_memprof.recorder.meters.meter import Batch
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.rows import Entry, Parcel
from ray_memprof.recorder.scribe import QUEUE_LENGTH, Scribe, scribe_of
from ray_memprof.recorder.writer import Writer, Writes
from ray_memprof.recorder.writer_process import WriterProcess
from ray_memprof.store.level import Level

MIB = 2**20


def event(action: str, address: int, size: int, span: str = "0", **more: Any) -> dict[str, Any]:
    return {
        "action": action, "addr": address, "size": size, "stream": 0, "time_us": 1, "user_metadata": span, **more
    }  # fmt: skip


def test_an_error_of_the_store_ends_the_writing_and_is_kept() -> None:
    store = FakeStore(room=1)
    scribe = Scribe(Writer(store, Replay(), categories={}))  # type: ignore[arg-type]
    for number in range(4 * QUEUE_LENGTH):  # more than may wait: the scribe still takes them from the queue
        scribe.deliver(Parcel(ledger=[Entry(number, 0, "nccl", 1)]))
    scribe.close()
    assert isinstance(scribe.error, DiskFull)
    assert [row["t_ns"] for row in store.rows["ledger"]] == [0]
    assert store.is_closed


def test_an_error_while_closing_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def close(store: FakeStore) -> None:
        raise DiskFull("no room for the last part")

    monkeypatch.setattr(FakeStore, "close", close)
    scribe = Scribe(Writer(FakeStore(), Replay(), categories={}))  # type: ignore[arg-type]
    scribe.close()
    assert str(scribe.error) == "no room for the last part"


def silent_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """A disk that does not answer until the first of these is set; the second is set once it is asked to write."""
    answers, is_asked, plain = threading.Event(), threading.Event(), FakeStore.append

    def append(store: FakeStore, *args: Any) -> None:
        is_asked.set()
        assert answers.wait(20)
        plain(store, *args)

    monkeypatch.setattr(FakeStore, "append", append)
    return answers, is_asked


def test_whoever_delivers_more_than_may_wait_waits_and_what_waits_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, is_asked = silent_disk(monkeypatch)
    scribe = Scribe(Writer(FakeStore(), Replay(), categories={}))  # type: ignore[arg-type]
    parcels = [Parcel(batch=Batch([event("alloc", number, 7)], None)) for number in range(QUEUE_LENGTH + 2)]

    def deliver() -> None:
        for parcel in parcels:
            scribe.deliver(parcel)
            assert is_asked.wait(20)

    thread = threading.Thread(target=deliver)
    thread.start()
    # WHEN one parcel is being written and as many as allowed are waiting THEN the caller with the next one waits
    thread.join(0.5)
    assert thread.is_alive()
    answers.set()
    thread.join(20)
    scribe.close()
    assert scribe.error is None
    assert (scribe.most_waiting_events, scribe.writer.followed().num_events) == (
        QUEUE_LENGTH + 1,
        QUEUE_LENGTH + 2,
    )


def test_whoever_delivers_more_events_than_may_wait_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING_EVENTS", 10)
    (answers, is_asked), delivered = silent_disk(monkeypatch), []
    scribe = Scribe(Writer(FakeStore(), Replay(), categories={}))  # type: ignore[arg-type]

    def deliver() -> None:
        for first in range(0, 36, 6):
            scribe.deliver(Parcel(batch=Batch([event("alloc", first + n, 7) for n in range(6)], None)))
            delivered.append(first)
            assert is_asked.wait(20)
        scribe.deliver(Parcel(batch=Batch([event("alloc", 100 + n, 7) for n in range(20)], None)))

    thread = threading.Thread(target=deliver)
    thread.start()
    thread.join(0.5)
    assert delivered == [0]
    answers.set()
    thread.join(20)
    scribe.close()
    # A parcel larger than all that may wait is taken when no other one waits.
    assert (scribe.most_waiting_events, scribe.writer.followed().num_events) == (20, 56)


def test_events_are_decoded_a_few_at_once_and_others_may_work_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows, peaks and counters are the same as when all events come at once."""
    rests: list[int] = []

    def rest(self: object, since: float, num_waiting: int, *, is_crowded: bool) -> None:
        rests.append(num_waiting)

    monkeypatch.setattr(module.Restraint, "rest", rest)
    events = [event("segment_alloc", 0, 8 * MIB)]
    for number in range(1, 40):
        address = number % 4 * MIB
        events += [event("alloc", address, 1000 * number, str(number % 3))]
        events += [
            event(action, address, 1000 * number, "9") for action in ("free_requested", "free_completed")
        ]
    whole = BlockReplay().feed([dict(one) for one in events])
    expected = list(zip(whole.seq, whole.span_id, whole.size_bytes, strict=True))
    for at_once, num_rests in ((1000, 0), (len(events), 0), (7, len(events) // 7)):
        monkeypatch.setattr(writer, "AT_ONCE", at_once)
        rests.clear()
        store = FakeStore()
        scribe = Scribe(Writer(store, BlockReplay(), categories={}))  # type: ignore[arg-type]
        scribe.deliver(Parcel(batch=Batch([dict(one) for one in events], None)))
        scribe.close()
        assert [(row["seq"], row["span_id"], row["size_bytes"]) for row in store.rows["allocs"]] == expected
        # Two more: before owners are looked up, and before rows are written.
        assert (rests, scribe.problems.texts) == ([len(events)] * (num_rests + 2), ())


class Endless:
    """Rests that last until the test is over, unless somebody hurries or waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(restraint, "IDLE", 1e12)
        monkeypatch.setattr(restraint, "LONGEST_REST_S", 1000.0)
        monkeypatch.setattr(restraint, "MOST_RELAXED_S", 1000.0)
        monkeypatch.setattr(writer, "AT_ONCE", 2)
        self.scribe = Scribe(Writer(FakeStore(), BlockReplay(), categories={}))  # type: ignore[arg-type]

    def deliver(self, num_events: int) -> None:
        events = [event("segment_alloc", number * MIB, 512) for number in range(num_events)]
        self.scribe.deliver(Parcel(batch=Batch(events, None)))


def test_who_delivers_more_than_may_wait_is_not_kept_by_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING_EVENTS", 10)
    endless = Endless(monkeypatch)
    for _ in range(5):
        endless.deliver(9)
    endless.scribe.close()
    assert endless.scribe.writer.followed().num_events == 45


def test_many_small_parcels_are_not_kept_by_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless(monkeypatch)
    for _ in range(4 * module.QUEUE_LENGTH):
        endless.deliver(7)
    endless.scribe.close()
    assert endless.scribe.writer.followed().num_events == 28 * module.QUEUE_LENGTH


def test_the_end_of_a_recording_ends_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless(monkeypatch)
    endless.deliver(9)
    endless.scribe.hurry()
    endless.scribe.close()
    assert endless.scribe.writer.followed().num_events == 9


@pytest.mark.parametrize(
    ("source", "level", "kind"),
    [
        ("cuda", "event", WriterProcess),
        ("cuda", "stage", Writer),  # no events to follow
        ("cuda", "stack", Writer),  # numbers of stacks need torch
        ("cpu", "event", Writer),
        ("predicted", "event", Writer),
    ],
)
def test_only_events_of_a_device_are_written_by_a_process_of_its_own(
    tmp_path: Path, source: str, level: Level, kind: type[Writes]
) -> None:
    options = RecordingOptions(run_dir=tmp_path, device="cuda:0", level=level)
    meter = FakeMeter(source=source, has_events=options.has_events)
    scribe = scribe_of(options, meter, Problems())
    assert scribe is not None
    assert type(scribe.writer) is kind
    scribe.close()
    assert scribe.problems.texts == ()


def test_where_nothing_is_kept_there_is_no_scribe(tmp_path: Path) -> None:
    options = RecordingOptions(run_dir=tmp_path, device="cpu", keeps_rows=False)
    assert scribe_of(options, FakeMeter(), Problems()) is None
    assert list(tmp_path.iterdir()) == []
