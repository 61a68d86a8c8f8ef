"""The scribe: parcels in, rows out, peaks handed from a span to the one around it, errors kept for the end."""

import threading
from typing import Any

import pytest
from recorder_fakes import FakeStore

from ray_memprof.allocator.replay import BlockReplay, Replay
from ray_memprof.errors import DiskFull
from ray_memprof.recorder import restraint
from ray_memprof.recorder import scribe as module
from ray_memprof.recorder.meters.meter import Batch, Reading
from ray_memprof.recorder.rows import Collective, Entry, Parcel, Sample, SpanRecord
from ray_memprof.recorder.scribe import QUEUE_LENGTH, Scribe
from ray_memprof.recorder.stacks import Stacks

MIB = 2**20


def reading(allocated: int = 0, *, used: int = 0, t_ns: int = 1, num_allocs: int = 0) -> Reading:
    return Reading(t_ns, allocated, allocated, allocated, used, 5, -1, -1, -1, num_allocs, 0, 0)


def record(span_id: int, parent_id: int = 0, *, start: Reading, end: Reading) -> SpanRecord:
    return SpanRecord(
        span_id=span_id, parent_id=parent_id, name="decode", path="decode", stage="decode", component="vae",
        module=None, step=None, block=None, branch=None, depth=0, start=start, end=end,
    )  # fmt: skip


def event(action: str, address: int, size: int, span: str = "0", **more: Any) -> dict[str, Any]:
    return {
        "action": action, "addr": address, "size": size, "stream": 0, "time_us": 1, "user_metadata": span, **more
    }  # fmt: skip


def written(*parcels: Parcel, replay: Replay | None = None, total: int = 0) -> tuple[Scribe, FakeStore]:
    store = FakeStore()
    scribe = Scribe(
        store,  # type: ignore[arg-type]
        replay or Replay(),
        categories={},
        device_total_bytes=total,
    )
    for parcel in parcels:
        scribe.deliver(parcel)
    scribe.close()
    if scribe.error is not None:
        raise scribe.error
    return scribe, store


def test_nothing_delivered_is_nothing_written() -> None:
    scribe, store = written()
    assert (store.rows, store.is_closed, store.num_seals) == ({}, True, 0)
    assert (scribe.num_checks, scribe.max_error_bytes, scribe.num_lost_events) == (0, 0, 0)


def test_what_was_held_when_recording_began_has_rows_before_the_events() -> None:
    block = {"address": 0, "size": MIB, "requested_size": 7, "state": "active_allocated"}
    rest = {"address": MIB, "size": MIB, "state": "inactive"}
    base = [
        {"address": 0, "total_size": 2 * MIB, "stream": 0, "is_expandable": False, "blocks": [block, rest]}
    ]
    first = Parcel(base=base, base_ns=40, batch=Batch([event("alloc", MIB, 700)], None))
    scribe, store = written(first, replay=BlockReplay())
    rows = store.rows["allocs"]
    names = ("seq", "t_ns", "action", "size_bytes", "requested_bytes", "category")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (-2, 40, "segment_alloc", 2 * MIB, 2 * MIB, "before"),
        (-1, 40, "alloc", MIB, 7, "before"),
        (0, 1000, "alloc", 1024, 700, "activation"),
    ]
    assert (scribe.replay.num_events, scribe.replay.allocated_peak) == (1, MIB + 1024)


def test_an_empty_parcel_writes_nothing_and_one_that_asks_for_it_seals() -> None:
    _, store = written(Parcel(), Parcel(batch=Batch([], reading())), Parcel(seal=True))
    assert (store.rows, store.num_seals) == ({}, 1)


def test_rows_of_samples_collectives_and_ledger_are_theirs_name_by_name() -> None:
    sample = Sample(1, 2, None, 4, 5, 6, 7, 0.5)
    collective = Collective(1, 2, 3, "all_reduce", 4, "default", 2, 5)
    _, store = written(Parcel(ledger=[Entry(1, 2, "nccl", 3)], collectives=[collective], samples=[sample]))
    assert store.rows == {
        "ledger": [{"t_ns": 1, "span_id": 2, "account": "nccl", "bytes": 3}],
        "collectives": [
            {
                "start_ns": 1, "end_ns": 2, "span_id": 3, "op": "all_reduce", "bytes": 4, "group": "default",
                "group_size": 2, "non_torch_growth_bytes": 5,
            }
        ],
        "samples": [
            {
                "t_ns": 1, "device_used_bytes": 2, "process_used_bytes": None, "others_used_bytes": 4,
                "allocated_bytes": 5, "reserved_bytes": 6, "host_rss_bytes": 7, "utilisation_fraction": 0.5,
            }
        ],
    }  # fmt: skip


def test_peaks_go_from_a_span_to_the_one_around_it_also_across_parcels() -> None:
    inner = record(2, 1, start=reading(0, used=3), end=reading(0, used=3))
    outer = record(1, start=reading(0), end=reading(1))
    events = [
        event("alloc", 1, 7, "2"),
        event("free_requested", 1, 7, "2"),
        event("free_completed", 1, 7, "2"),
    ]
    _, store = written(Parcel(batch=Batch(events, reading()), spans=[inner]), Parcel(spans=[outer]))
    peaks = [
        {
            name: row[f"{name}_peak_bytes"]
            for name in ("allocated", "reserved", "active", "device_used", "host_rss")
        }
        for row in store.rows["spans"]
    ]
    # 3 bytes of the device were seen in use; with the 7 that were reserved in between, 10 may have been in use.
    assert peaks == [{"allocated": 7, "reserved": 7, "active": 7, "device_used": 3, "host_rss": 5}] * 2
    assert [row["device_used_bound_bytes"] for row in store.rows["spans"]] == [10, 10]


def test_no_bound_of_the_device_is_above_what_it_has_or_below_what_was_seen() -> None:
    events = [
        event("alloc", 1, 7, "1"),
        event("free_requested", 1, 7, "1"),
        event("free_completed", 1, 7, "1"),
    ]
    for used, bound in ((3, 8), (9, 9)):
        span = record(1, start=reading(used=2), end=reading(used=used))
        _, store = written(Parcel(batch=Batch(events, None), spans=[span]), total=8)
        row = store.rows["spans"][0]
        assert (row["device_used_peak_bytes"], row["device_used_bound_bytes"]) == (used, bound)


def test_a_span_that_is_written_leaves_nothing_behind() -> None:
    scribe = Scribe(FakeStore(), Replay(), categories={1: "output", 2: "cache"})  # type: ignore[arg-type]
    batch = Batch([event("alloc", 1, 7, "2")], None)
    spans = [record(2, 1, start=reading(), end=reading()), record(1, start=reading(), end=reading())]
    scribe.deliver(Parcel(batch=batch, spans=spans))
    scribe.close()
    assert (scribe.error, scribe.categories, scribe.replay.peaks, scribe._inherited) == (None, {}, {}, {})


def test_the_replay_is_laid_beside_the_counters_where_there_are_any() -> None:
    scribe, _ = written(
        Parcel(batch=Batch([event("alloc", 1, 7)], reading(7), 1)),
        Parcel(batch=Batch([event("alloc", 2, 7)], None, 2)),
        Parcel(batch=Batch([event("alloc", 3, 7)], reading(19), 5)),
    )
    assert (scribe.num_checks, scribe.max_error_bytes, scribe.num_lost_events) == (2, 2, 2)


def test_the_rule_of_splitting_is_that_of_the_batch() -> None:
    events = [event("segment_map", 0, 2 * MIB), event("alloc", 0, 2 * MIB - 512)]
    scribe, _ = written(
        Parcel(batch=Batch(events, None, settings={"expandable_segments": True})), replay=BlockReplay()
    )
    assert scribe.replay.allocated == 2 * MIB - 512


def test_stacks_are_written_once_and_before_who_needs_them() -> None:
    store = FakeStore()
    stacks = Stacks(store)  # type: ignore[arg-type]
    scribe = Scribe(store, Replay(stack_of=stacks.number), categories={}, stacks=stacks)  # type: ignore[arg-type]
    frames = [{"name": "f", "filename": "a.py", "line": 1}, {"name": "g", "filename": "b.py", "line": 2}]
    for address in (1, 2):
        events = [event("alloc", address, 7, frames=frames), event("free_requested", address, 7)]
        scribe.deliver(Parcel(batch=Batch(events, None)))
    scribe.close()
    assert scribe.error is None
    assert list(store.rows) == ["stacks", "allocs"]
    assert store.rows["stacks"] == [
        {"stack_id": 0, "frame": 0, "function": "f", "file": "a.py", "line": 1},
        {"stack_id": 0, "frame": 1, "function": "g", "file": "b.py", "line": 2},
    ]
    assert [row["stack_id"] for row in store.rows["allocs"]] == [0, None, 0, None]


def test_the_name_of_a_node_is_not_written_into_the_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a torch that knows the node of a frame, and one that has no such function."""

    def name_nodes(frames: list[dict[str, Any]]) -> None:
        frames[0]["fx_node_name"] = "add_1"

    frames = [{"name": "forward", "filename": "fx_generated_ab.py", "line": 1}]
    for known, function in ((name_nodes, "forward [add_1]"), (None, "forward")):
        monkeypatch.setattr("ray_memprof.recorder.stacks._add_nodes", known)
        store = FakeStore()
        stacks = Stacks(store)  # type: ignore[arg-type]
        assert stacks.number(event("alloc", 1, 7, frames=frames)) == 0
        stacks.flush()
        assert [row["function"] for row in store.rows["stacks"]] == [function]
    assert frames == [{"name": "forward", "filename": "fx_generated_ab.py", "line": 1}]


def test_an_error_of_the_store_ends_the_writing_and_is_kept() -> None:
    store = FakeStore(room=1)
    scribe = Scribe(store, Replay(), categories={})  # type: ignore[arg-type]
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
    scribe = Scribe(FakeStore(), Replay(), categories={})  # type: ignore[arg-type]
    scribe.close()
    assert str(scribe.error) == "no room for the last part"


def silent_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that does not answer until this is set."""
    answers, plain = threading.Event(), FakeStore.append

    def append(store: FakeStore, *args: Any) -> None:
        assert answers.wait(20)
        plain(store, *args)

    monkeypatch.setattr(FakeStore, "append", append)
    return answers


def test_whoever_delivers_more_than_may_wait_waits_and_what_waits_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = silent_disk(monkeypatch)
    scribe = Scribe(FakeStore(), Replay(), categories={})  # type: ignore[arg-type]
    parcels = [Parcel(batch=Batch([event("alloc", number, 7)], None)) for number in range(QUEUE_LENGTH + 2)]

    def deliver() -> None:
        for parcel in parcels:
            scribe.deliver(parcel)

    thread = threading.Thread(target=deliver)
    thread.start()
    # WHEN one parcel is being written and as many as allowed are waiting THEN the caller with the next one waits
    thread.join(0.5)
    assert thread.is_alive()
    answers.set()
    thread.join(20)
    scribe.close()
    assert scribe.error is None
    assert (scribe.most_waiting_events, scribe.replay.num_allocs) == (QUEUE_LENGTH + 1, QUEUE_LENGTH + 2)


def test_whoever_delivers_more_events_than_may_wait_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING_EVENTS", 10)
    answers, delivered = silent_disk(monkeypatch), []
    scribe = Scribe(FakeStore(), Replay(), categories={})  # type: ignore[arg-type]

    def deliver() -> None:
        for first in range(0, 36, 6):
            scribe.deliver(Parcel(batch=Batch([event("alloc", first + n, 7) for n in range(6)], None)))
            delivered.append(first)
        scribe.deliver(Parcel(batch=Batch([event("alloc", 100 + n, 7) for n in range(20)], None)))

    thread = threading.Thread(target=deliver)
    thread.start()
    thread.join(0.5)
    assert delivered == [0]
    answers.set()
    thread.join(20)
    scribe.close()
    # A parcel larger than all that may wait is taken when no other one waits.
    assert (scribe.most_waiting_events, scribe.replay.num_allocs) == (20, 56)


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
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        rests.clear()
        scribe, store = written(
            Parcel(batch=Batch([dict(one) for one in events], None)), replay=BlockReplay()
        )
        assert [(row["seq"], row["span_id"], row["size_bytes"]) for row in store.rows["allocs"]] == expected
        # Two more: before owners are looked up, and before rows are written.
        assert (rests, scribe.problems.texts) == ([len(events)] * (num_rests + 2), ())


class Endless:
    """Rests that last until the test is over, unless somebody hurries or waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(restraint, "IDLE", 1e12)
        monkeypatch.setattr(restraint, "LONGEST_REST_S", 1000.0)
        monkeypatch.setattr(restraint, "MOST_RELAXED_S", 1000.0)
        monkeypatch.setattr(module, "AT_ONCE", 2)
        self.scribe = Scribe(FakeStore(), BlockReplay(), categories={})  # type: ignore[arg-type]

    def deliver(self, num_events: int) -> None:
        events = [event("segment_alloc", number * MIB, 512) for number in range(num_events)]
        self.scribe.deliver(Parcel(batch=Batch(events, None)))


def test_who_delivers_more_than_may_wait_is_not_kept_by_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING_EVENTS", 10)
    endless = Endless(monkeypatch)
    for _ in range(5):
        endless.deliver(9)
    endless.scribe.close()
    assert endless.scribe.replay.num_events == 45


def test_many_small_parcels_are_not_kept_by_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless(monkeypatch)
    for _ in range(4 * module.QUEUE_LENGTH):
        endless.deliver(7)
    endless.scribe.close()
    assert endless.scribe.replay.num_events == 28 * module.QUEUE_LENGTH


def test_the_end_of_a_recording_ends_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless(monkeypatch)
    endless.deliver(9)
    endless.scribe.hurry()
    endless.scribe.close()
    assert endless.scribe.replay.num_events == 9
