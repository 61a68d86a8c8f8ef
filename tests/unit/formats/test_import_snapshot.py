"""Snapshots of torch's allocator become a run whose peaks are the truth; whatever is no snapshot is refused."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import FRAMES, MIB, Simulation, event, peaks, segment, snapshot, write

from ray_memprof.allocator.before_trace import BeforeTrace
from ray_memprof.allocator.replay import BlockReplay
from ray_memprof.allocator.rules import Rules
from ray_memprof.analysis.diagnosis.diagnose import findings
from ray_memprof.formats.torch_snapshot.pickle_window import NotASnapshot
from ray_memprof.formats.torch_snapshot.read import import_file, import_snapshots
from ray_memprof.formats.torch_snapshot.write import write_snapshot
from ray_memprof.query import database
from ray_memprof.report.derive import derive
from ray_memprof.store.run_files import table_dir


def rows(run_dir: Path, table: str, rank: int = 0, *columns: str) -> list[tuple[Any, ...]]:
    found = pq.read_table(table_dir(run_dir, table, rank), partitioning=None, columns=list(columns) or None)
    return [tuple(row.values()) for row in found.to_pylist()]


# --------------------------------------------------------------------------------
# A run of a snapshot


def test_nothing_was_recorded(tmp_path: Path) -> None:
    path = write(tmp_path / "rank0.pickle", snapshot([], [segment(0, (512, "active_allocated"))]))
    with pytest.raises(NotASnapshot, match="has no events: nothing was recorded") as caught:
        import_snapshots([path], tmp_path / "runs" / "x", "x")
    assert caught.value.exit_code == 2
    assert "_record_memory_history" in caught.value.hint
    assert not (tmp_path / "runs" / "x").exists()


def test_one_allocation_is_a_run(tmp_path: Path) -> None:
    events = [event("segment_alloc", 0, 2 * MIB, 5), event("alloc", 0, 700, 7)]
    segments = [segment(0, (1024, "active_allocated"), (2 * MIB - 1024, "inactive"))]
    path = write(tmp_path / "rank0.pickle", snapshot(events, segments))

    assert import_snapshots([path], tmp_path / "run", "mine", derive=derive) == []

    assert rows(tmp_path / "run", "allocs") == [
        (0, 5000, "segment_alloc", 2 * MIB, 2 * MIB, 0, 0, 1, None, None),
        (1, 7000, "alloc", 1024, 700, 0, 0, 1, "activation", None),
    ]
    assert rows(
        tmp_path / "run", "spans", 0, "path", "stage", "start_ns", "end_ns", "num_allocs", "num_segments"
    ) == [("imported", "imported", 5000, 7000, 1, 1)]
    assert peaks(tmp_path / "run") == [(1024, 2 * MIB, 1024)]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {key: run[key] for key in ("name", "source", "workload", "num_ranks", "status", "problems")} == {
        "name": "mine", "source": "cuda", "workload": "script", "num_ranks": 1, "status": "ok", "problems": []
    }  # fmt: skip
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("expandable", [False, True])
def test_peaks_of_ranks_that_were_recorded_late_are_the_truth(tmp_path: Path, expandable: bool) -> None:
    simulations = [Simulation(seed, expandable=expandable) for seed in range(2)]
    cuts = [0, len(simulations[1].events) // 3]
    paths = [
        write(tmp_path / f"rank{rank}.pickle", simulation.snapshot(cut, stacks=True))
        for rank, (simulation, cut) in enumerate(zip(simulations, cuts, strict=True))
    ]
    import_snapshots(paths, tmp_path / "run", "x")

    assert [list(row) for row in peaks(tmp_path / "run")] == [
        simulation.truth(cut) for simulation, cut in zip(simulations, cuts, strict=True)
    ]
    check = database.query(tmp_path / "run", "replay_check").to_pylist()
    assert [(row["rank"], row["is_exact"], row["max_error_bytes"]) for row in check] == [
        (0, True, 0),
        # Recorded late: what some blocks of before took, nothing tells, unless segments grow.
        (1, expandable, 0),
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_stretches_of_the_same_text_are_spans(tmp_path: Path, nested: bool) -> None:
    events = [event("segment_alloc", 0, 2 * MIB, 1)]
    for index, text in enumerate(("load/a", "load/b", "load", "", "step", "step")):
        events.append(event("alloc", 512 * index, 512, 10 + index, text))
    content = snapshot(events, [segment(0, (6 * 512, "active_allocated"), (2 * MIB - 6 * 512, "inactive"))])
    if nested:
        content["ray_memprof"] = {"rank": 0}
    import_snapshots([write(tmp_path / "rank0.pickle", content)], tmp_path / "run", "x")

    columns = ("span_id", "parent_id", "path", "stage", "start_ns", "end_ns", "allocated_peak_bytes")
    flat = [
        (1, 0, "imported", "imported", 1000, 1000, 0),
        (2, 0, "load/a", "load/a", 10_000, 10_000, 512),
        (3, 0, "load/b", "load/b", 11_000, 11_000, 1024),
        (4, 0, "load", "load", 12_000, 12_000, 1536),
        (5, 0, "imported", "imported", 13_000, 13_000, 2048),
        (6, 0, "step", "step", 14_000, 15_000, 3072),
    ]
    tree = [
        (1, 0, "imported", "imported", 1000, 1000, 0),
        (2, 0, "load", "load", 10_000, 12_000, 1536),
        (3, 2, "load/a", "load", 10_000, 10_000, 512),
        (4, 2, "load/b", "load", 11_000, 11_000, 1024),
        (5, 0, "imported", "imported", 13_000, 13_000, 2048),
        (6, 0, "step", "step", 14_000, 15_000, 3072),
    ]
    assert sorted(rows(tmp_path / "run", "spans", 0, *columns)) == (tree if nested else flat)


def test_stacks_are_written_once(tmp_path: Path) -> None:
    # GIVEN four allocations from two places, the frames each time made anew as torch does
    events = [event("segment_alloc", 0, 2 * MIB, frames=[])]
    for index in range(4):
        frames = [dict(frame) for frame in FRAMES[index % 2]]
        events.append(event("alloc", 512 * index, 512, frames=frames))
    path = write(tmp_path / "rank0.pickle", snapshot(events, []))

    import_snapshots([path], tmp_path / "run", "x")

    assert [row[0] for row in rows(tmp_path / "run", "allocs", 0, "stack_id")] == [None, 0, 1, 0, 1]
    assert rows(tmp_path / "run", "stacks") == [
        (0, 0, "forward", "model.py", 3), (0, 1, "main", "train.py", 9), (1, 0, "step", "adam.py", 7)
    ]  # fmt: skip


def test_a_stack_may_have_more_frames_than_16_bits_count(tmp_path: Path) -> None:
    frames = [{"name": "f", "filename": "a.py", "line": line} for line in range(33_000)]
    events = [event("segment_alloc", 0, 2 * MIB, frames=[]), event("alloc", 0, 512, frames=frames)]

    import_snapshots([write(tmp_path / "rank0.pickle", snapshot(events, []))], tmp_path / "run", "x")

    assert rows(tmp_path / "run", "stacks")[-1] == (0, 32_999, "f", "a.py", 32_999)


def test_a_frame_of_compiled_code_has_the_name_of_its_node(tmp_path: Path) -> None:
    # GIVEN frames as augment_with_fx_traces leaves them, and some whose node is no name
    frame = {"name": "forward", "filename": "fx_generated_ab.py", "line": 3, "fx_node_op": "call_function"}
    nodes: list[Any] = ["linear_1", "add", None, 7, "n" * 2000, ""]
    frames = [[{**frame, "fx_node_name": node, "fx_original_trace": "x = a + b"}] for node in nodes]
    events = [event("segment_alloc", 0, 2 * MIB, frames=[])]
    events += [event("alloc", 512 * number, 512, frames=one) for number, one in enumerate(frames)]

    import_snapshots([write(tmp_path / "rank0.pickle", snapshot(events, []))], tmp_path / "run", "x")

    # THEN a node tells lines apart, and what is no name changes nothing
    assert [row[2] for row in rows(tmp_path / "run", "stacks")] == [
        "forward [linear_1]", "forward [add]", "forward"
    ]  # fmt: skip
    assert [row[0] for row in rows(tmp_path / "run", "allocs", 0, "stack_id")] == [None, 0, 1, 2, 2, 2, 2]


def test_an_oom_and_a_handle_of_64_bits(tmp_path: Path) -> None:
    out = {"action": "oom", "size": 5 * MIB, "device_free": 3, "stream": 2**64 - 1, "time_us": 1}
    path = write(tmp_path / "a.pickle", snapshot([out], []))
    import_snapshots([path], tmp_path / "run", "x")
    assert rows(tmp_path / "run", "allocs") == [
        (0, 1000, "oom", 5 * MIB, 5 * MIB, 3, 2**64 - 1, 1, None, None)
    ]


def test_gaps_between_ranks_stay(tmp_path: Path) -> None:
    # GIVEN files of ranks 3 and 7, in folders that say so, of different sizes
    paths = []
    for rank, size in ((7, 8 * MIB), (3, 4 * MIB)):
        (tmp_path / f"rank_{rank}").mkdir()
        content = snapshot([event("segment_alloc", 0, size)], [segment(0, (size, "inactive"))])
        paths.append(write(tmp_path / f"rank_{rank}" / "dump.pickle", content))
    lines: list[str] = []

    assert import_snapshots(paths, tmp_path / "run", "x", lines.append, derive=derive) == []

    assert lines == [
        f"rank 3: {paths[1]}, cuda:0", f"rank 7: {paths[0]}, cuda:0", "there is no file of rank 0-2, 4-6"
    ]  # fmt: skip
    with database.open_run(tmp_path / "run") as connection:
        found = connection.execute("SELECT rank, reserved_peak_bytes FROM ranks ORDER BY rank").fetchall()
    assert found == [(3, 4 * MIB), (7, 8 * MIB)]
    imbalance = database.query(tmp_path / "run", "imbalance").to_pylist()
    assert {row["num_ranks"] for row in imbalance} == {2}
    assert "rank 7" in (tmp_path / "run" / "report.html").read_text()


def test_two_high_addresses_are_one_block(tmp_path: Path) -> None:
    """An address above 2^63, in the segments as in the events, and as C++ writes it: negative."""
    high = 2**64 - 2**40
    for number, address in enumerate((high, high - 2**64)):
        events = [event("free_requested", address, 2 * MIB), event("free_completed", address, 2 * MIB)]
        path = write(tmp_path / f"{number}.pickle", snapshot(events, [segment(high, (20 * MIB, "inactive"))]))
        import_snapshots([path], tmp_path / f"run{number}", "x")
        assert peaks(tmp_path / f"run{number}") == [(2 * MIB, 20 * MIB, 2 * MIB)]
        (check,) = database.query(tmp_path / f"run{number}", "replay_check").to_pylist()
        assert check["max_error_bytes"] == 0


def oom(asked: int, free: int, time_us: int, text: str = "") -> dict[str, Any]:
    return {
        "action": "oom", "size": asked, "device_free": free, "stream": 0, "time_us": time_us, "user_metadata": text
    }  # fmt: skip


def test_a_rank_that_ran_out_of_memory(tmp_path: Path) -> None:
    # GIVEN two ranks; the second one is refused a request, twice, and goes on after the second time
    begin = [event("segment_alloc", 0, 20 * MIB, 1), event("alloc", 0, 8 * MIB, 2)]
    end = [event("alloc", 8 * MIB, 2 * MIB, 9), event("alloc", 10 * MIB, 2 * MIB, 10)]
    full = [
        segment(0, (8 * MIB, "active_allocated"), (2 * MIB, "active_allocated"), (2 * MIB, "active_allocated"),
                (8 * MIB, "inactive"))
    ]  # fmt: skip
    refused = [oom(2**50, 5 * MIB, 3, "step 0"), oom(3 * 2**30, 7 * MIB, 4, "step 1")]
    paths = [
        write(tmp_path / "rank0.pickle", snapshot(begin + end, full)),
        write(tmp_path / "rank1.pickle", snapshot(begin + refused + end, full)),
    ]

    told: list[str] = []
    import_snapshots(paths, tmp_path / "run", "x", say=told.append)

    run = json.loads((tmp_path / "run" / "run.json").read_text())
    reason = (
        "device out of memory in step 1: asked for 3.00 GiB (3,221,225,472 bytes), 7.00 MiB (7,340,032 bytes) "
        "free on cuda:0; it ran out 2 times, this is the last; the program went on after it, with 2 more allocations"
    )
    assert (run["status"], run["exit_code"], run["reason"]) == ("oom", 11, f"rank 1: {reason}")
    assert told == [
        f"rank 0: {paths[0]}, cuda:0",
        f"rank 1: {paths[1]}, cuda:0",
        f"rank 1: {reason}",
    ]
    with database.open_run(tmp_path / "run") as connection:
        ranks = connection.execute("SELECT status, exit_code, reason, path FROM ranks ORDER BY rank")
        assert ranks.fetchall() == [("ok", 0, "", ""), ("oom", 11, reason, "step 1")]
        (finding,) = [one for one in findings(connection) if one.rule == "out_of_memory"]
    assert (
        "Rank 1 ran out of device memory in step 1: it asked for 3.00 GiB where 7.00 MiB were free"
        in finding.sentence
    )


@pytest.mark.parametrize("free", [{}, {"device_free": -5}])
def test_what_was_free_at_an_oom_is_not_made_up(tmp_path: Path, free: dict[str, int]) -> None:
    asked = {"action": "oom", "size": 5 * MIB, "stream": 0, "time_us": 3, **free}
    events = [event("segment_alloc", 0, 20 * MIB, 1), event("alloc", 0, 8 * MIB, 2), asked]
    path = write(
        tmp_path / "rank0.pickle",
        snapshot(events, [segment(0, (8 * MIB, "active_allocated"), (12 * MIB, "inactive"))]),
    )

    import_snapshots([path], tmp_path / "run", "x")

    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["reason"] == (
        "rank 0: device out of memory in imported: asked for 5.00 MiB (5,242,880 bytes), what was free on cuda:0 is "
        "not known"
    )
    with database.open_run(tmp_path / "run") as connection:
        (finding,) = [one for one in findings(connection) if one.rule == "out_of_memory"]
    assert "it asked for 5.00 MiB, and held 8.00 MiB in tensors" in finding.sentence
    # It stays unknown on the way out and back.
    exported = write_snapshot(tmp_path / "run", 0, tmp_path / "again.pickle")
    import_snapshots([exported], tmp_path / "back", "x")
    assert json.loads((tmp_path / "back" / "run.json").read_text())["reason"] == run["reason"]


def test_files_of_two_kinds_are_no_run(tmp_path: Path) -> None:
    content = snapshot([event("alloc", 0, 512)], [])
    paths = [write(tmp_path / "a.pickle", content)]
    paths.append(write(tmp_path / "b.pickle", {**content, "ray_memprof": {"source": "cpu"}}))
    with pytest.raises(NotASnapshot, match="are of runs on cpu and on cuda: one run cannot be both"):
        import_snapshots(paths, tmp_path / "run", "x")


def test_a_file_that_is_empty_is_named_before_any_is_read(tmp_path: Path) -> None:
    good = write(tmp_path / "rank0.pickle", snapshot([event("alloc", 0, 512)], []))
    empty = tmp_path / "rank1.pickle"
    empty.touch()
    with pytest.raises(NotASnapshot) as caught:
        import_snapshots([good, empty], tmp_path / "run", "x")
    assert str(caught.value) == f"{empty} is empty (0 bytes): nothing was written to it"
    assert caught.value.hint == "dump it again, or leave it out: the other files keep their ranks"


def test_events_that_do_not_lead_to_the_segments_are_told(tmp_path: Path) -> None:
    events = [event("segment_alloc", 0, 2 * MIB), event("alloc", 0, 512)]
    path = write(tmp_path / "rank0.pickle", snapshot(events, [segment(0, (2 * MIB, "inactive"))]))
    line, *_ = import_snapshots([path], tmp_path / "run", "x")
    assert "end 512 bytes away from its segments" in line
    assert database.query(tmp_path / "run", "replay_check").to_pylist()[0]["max_error_bytes"] == 512


def test_settings_decide_the_sizes_of_blocks(tmp_path: Path) -> None:
    content = snapshot([event("segment_alloc", 0, 20 * MIB), event("alloc", 0, 5 * MIB)], [])
    content["allocator_settings"]["roundup_power2_divisions"] = {str(2**power): 2 for power in range(16)}
    import_snapshots([write(tmp_path / "a.pickle", content)], tmp_path / "run", "x")
    assert peaks(tmp_path / "run") == [(6 * MIB, 20 * MIB, 6 * MIB)]  # 4, 6 and 8 MiB are the steps


# --------------------------------------------------------------------------------
# The beginning


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_the_beginning_is_found_wherever_recording_began(seed: int, expandable: bool) -> None:
    simulation = Simulation(seed, expandable=expandable)
    num_exact = 0
    for cut, truth in simulation.moments[::25]:
        events, replay, witness = (
            simulation.events[cut:],
            BlockReplay(rules=Rules(expandable_segments=expandable)),
            BeforeTrace(),
        )
        witness.see(*([one[key] for one in events] for key in ("action", "addr", "size")))
        found = witness.segments_at_start(simulation.moments[-1][1], replay.rules)
        if witness.doubt_bytes == 0:
            assert _shape(found) == _shape(truth)
            num_exact += 1
        replay.prime(found, 0)
        lack = simulation.counters[cut][0] - replay.allocated
        assert 0 <= lack <= witness.doubt_bytes
        replay.feed(events)
        peaks_found = [replay.allocated_peak, replay.reserved_peak, replay.active_peak]
        lacks = [true - here for true, here in zip(simulation.truth(cut), peaks_found, strict=True)]
        assert all(0 <= lack <= witness.doubt_bytes for lack in lacks)
    assert num_exact == len(simulation.moments[::25]) or not expandable


def _shape(segments: Any) -> list[tuple[int, int, list[tuple[int, int, str]]]]:
    return sorted(
        (one["address"], one["total_size"], [(b["address"], b["size"], b["state"]) for b in one["blocks"]])
        for one in segments
    )


def test_a_block_that_kept_more_than_it_asked_for_is_known_by_what_follows() -> None:
    # GIVEN a segment of 8 MiB: a block that asked for 3.50 MiB and kept 4, and free space behind it
    events = [
        event("alloc", 4 * MIB, 4 * MIB),  # it begins where the first one ends: so much that one took
        event("free_requested", 0, 7 * MIB // 2),
        event("free_completed", 0, 7 * MIB // 2),
    ]
    witness = BeforeTrace()
    witness.see(*([one[key] for one in events] for key in ("action", "addr", "size")))
    final = [segment(0, (4 * MIB, "inactive"), (4 * MIB, "active_allocated"))]
    (found,) = witness.segments_at_start(final, Rules())
    assert [(b["address"], b["size"], b["state"]) for b in found["blocks"]] == [
        (0, 4 * MIB, "active_allocated"), (4 * MIB, 4 * MIB, "inactive")
    ]  # fmt: skip
    assert witness.doubt_bytes == 0


@pytest.mark.parametrize("streams", [(), (3, 5, 6, 6, 2)])
def test_a_segment_that_the_end_does_not_have_is_of_the_stream_of_its_last_event(
    streams: tuple[int, ...],
) -> None:
    """Where events name no stream, it is the default one."""
    witness = BeforeTrace()
    actions = ["free_completed", "segment_free", "segment_unmap", "segment_unmap", "segment_alloc"]
    addresses = [0, 0, 32 * MIB, 30 * MIB, 50 * MIB]
    witness.see(actions, addresses, [MIB, *[2 * MIB] * 4], (), streams)
    final = segment(8 * MIB, (4 * MIB, "active_allocated")) | {"stream": 7}
    late = segment(50 * MIB, (2 * MIB, "inactive"))
    found = witness.segments_at_start([final, late], Rules())
    assert [(one["address"], one["total_size"], one["stream"]) for one in found] == [
        (0, 2 * MIB, 5 if streams else 0),
        (8 * MIB, 4 * MIB, 7),
        (30 * MIB, 4 * MIB, 6 if streams else 0),
    ]


# --------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": "many"}, "values of wrong types"),
        ({"size": -1}, "has size -1"),
        ({"action": 3}, "values of wrong types"),
        ({"user_metadata": [1]}, "values of wrong types"),
        ({"time_us": None}, "values of wrong types"),
        ({"frames": [{"name": "f"}]}, "frames without name, filename and line"),
        ({"frames": [3]}, "frames without name, filename and line"),
    ],
)
def test_events_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = write(tmp_path / "rank0.pickle", snapshot([{**event("alloc", 0, 512), **change}], []))
    with pytest.raises(NotASnapshot) as caught:
        import_snapshots([path], tmp_path / "run", "x")
    assert told in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / "run").exists()


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every member of every list and dictionary inside of it: who has it, and under which key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places_in(value[key]))]


_ODD: tuple[Any, ...] = (
    -1, 0, 2**31, 2**62, 2**63, 2**64, 2**200, -(2**63), -(2**64), 1.5, "x", "\ud800", None, True, (1, 2), [], {}, [[]],
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.booleans(), st.sampled_from((2, 4)), st.data())
def test_a_snapshot_with_any_value_anywhere_is_a_run_or_none(
    tmp_path_factory: pytest.TempPathFactory, expandable: bool, protocol: int, data: st.DataObject
) -> None:
    content = Simulation(4, expandable=expandable, operations=20).snapshot(3, ["a", "b"], stacks=True)
    content = pickle.loads(pickle.dumps(content))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places_in(content)))
        # A copy, for a list that is put into itself has no end.
        container[key] = copy.deepcopy(data.draw(st.sampled_from(_ODD)))
    folder = tmp_path_factory.mktemp("any")
    path = folder / "rank0.pickle"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    try:
        imported = import_file(path, folder / "tables")
    except NotASnapshot as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 700
    else:
        assert all(one.written.num_events > 0 for one in imported)


def test_a_path_of_many_levels_is_a_hundred_spans(tmp_path: Path) -> None:
    """Each span has its path: without an end the paths of 40,000 levels would take gigabytes."""
    deep = "/".join("a" * 40_000)
    content = snapshot([event("alloc", 0, 512, text=deep), event("alloc", 512, 512, 2, "a")], [])
    path = write(tmp_path / "rank0.pickle", {**content, "ray_memprof": {"rank": 0}})
    import_file(path, tmp_path / "tables")
    found = rows(tmp_path / "tables", "spans", 0, "depth", "name")
    assert len(found) == 100
    assert max(found) == (99, "/".join("a" * (40_000 - 99)))


@pytest.mark.parametrize("segments", [[3], [{"device": 0}], [segment(0) | {"blocks": [{"size": "x"}]}], 7])
def test_segments_that_are_none_are_refused(tmp_path: Path, segments: Any) -> None:
    path = write(tmp_path / "rank0.pickle", snapshot([event("alloc", 0, 512)], segments))
    with pytest.raises(NotASnapshot, match="damaged segment"):
        import_snapshots([path], tmp_path / "run", "x")
