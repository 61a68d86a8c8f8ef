"""The writer: parcels in, rows out, peaks handed from a span to the one around it."""

from typing import Any

import pytest
from handed_over import event, no_rest, reading, record
from recorder_fakes import FakeStore

from ray_memprof.allocator.replay import BlockReplay, Replay
from ray_memprof.recorder.meters.meter import Batch
from ray_memprof.recorder.rows import Collective, Entry, Parcel, Sample
from ray_memprof.recorder.stacks import Stacks
from ray_memprof.recorder.writer import Writer

MIB = 2**20


def checks(writer: Writer) -> tuple[int, int, int]:
    followed = writer.followed()
    return followed.num_checks, followed.max_error_bytes, followed.num_lost_events


def written(*parcels: Parcel, replay: Replay | None = None, total: int = 0) -> tuple[Writer, FakeStore]:
    store = FakeStore()
    writer = Writer(
        store,  # type: ignore[arg-type]
        replay or Replay(),
        categories={},
        device_total_bytes=total,
    )
    for parcel in parcels:
        writer.write(parcel, no_rest)
    writer.close()
    assert (writer.error, writer.problems.texts) == (None, ())
    return writer, store


def test_nothing_delivered_is_nothing_written() -> None:
    writer, store = written()
    assert (store.rows, store.is_closed, store.num_seals) == ({}, True, 0)
    assert checks(writer) == (0, 0, 0)


def test_what_was_held_when_recording_began_has_rows_before_the_events() -> None:
    block = {"address": 0, "size": MIB, "requested_size": 7, "state": "active_allocated"}
    rest = {"address": MIB, "size": MIB, "state": "inactive"}
    base = [
        {"address": 0, "total_size": 2 * MIB, "stream": 0, "is_expandable": False, "blocks": [block, rest]}
    ]
    first = Parcel(base=base, base_ns=40, batch=Batch([event("alloc", MIB, 700)], None))
    writer, store = written(first, replay=BlockReplay())
    rows = store.rows["allocs"]
    names = ("seq", "t_ns", "action", "size_bytes", "requested_bytes", "category")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (-2, 40, "segment_alloc", 2 * MIB, 2 * MIB, "before"),
        (-1, 40, "alloc", MIB, 7, "before"),
        (0, 1000, "alloc", 1024, 700, "activation"),
    ]
    assert (writer.replay.num_events, writer.replay.allocated_peak) == (1, MIB + 1024)


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
    writer = Writer(FakeStore(), Replay(), categories={1: "output", 2: "cache"})  # type: ignore[arg-type]
    batch = Batch([event("alloc", 1, 7, "2")], None)
    spans = [record(2, 1, start=reading(), end=reading()), record(1, start=reading(), end=reading())]
    writer.write(Parcel(batch=batch, spans=spans), no_rest)
    writer.close()
    assert (writer.error, writer.categories, writer.replay.peaks, writer._inherited) == (None, {}, {}, {})


def test_the_replay_is_laid_beside_the_counters_where_there_are_any() -> None:
    writer, _ = written(
        Parcel(batch=Batch([event("alloc", 1, 7)], reading(7), 1)),
        Parcel(batch=Batch([event("alloc", 2, 7)], None, 2)),
        Parcel(batch=Batch([event("alloc", 3, 7)], reading(19), 5)),
    )
    assert checks(writer) == (2, 2, 2)


def test_the_rule_of_splitting_is_that_of_the_batch() -> None:
    events = [event("segment_map", 0, 2 * MIB), event("alloc", 0, 2 * MIB - 512)]
    writer, _ = written(
        Parcel(batch=Batch(events, None, settings={"expandable_segments": True})), replay=BlockReplay()
    )
    assert writer.replay.allocated == 2 * MIB - 512


def test_stacks_are_written_once_and_before_who_needs_them() -> None:
    store = FakeStore()
    stacks = Stacks(store)  # type: ignore[arg-type]
    writer = Writer(store, Replay(stack_of=stacks.number), categories={}, stacks=stacks)  # type: ignore[arg-type]
    frames = [{"name": "f", "filename": "a.py", "line": 1}, {"name": "g", "filename": "b.py", "line": 2}]
    for address in (1, 2):
        events = [event("alloc", address, 7, frames=frames), event("free_requested", address, 7)]
        writer.write(Parcel(batch=Batch(events, None)), no_rest)
    writer.close()
    assert writer.error is None
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
