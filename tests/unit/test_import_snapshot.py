"""Snapshots of torch's allocator become a run whose peaks are the truth; whatever is no snapshot is refused."""

import errno
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from snapshots import FRAMES, Simulation, snapshot, write
from typer.testing import CliRunner

from ray_memprof import db
from ray_memprof.cli import app
from ray_memprof.errors import DiskFull
from ray_memprof.importers.beginning import Witness
from ray_memprof.importers.pickle_stream import NotASnapshot, PickleStream
from ray_memprof.importers.torch_snapshot import import_snapshots, ranks_of
from ray_memprof.replay import BlockReplay
from ray_memprof.store import table_dir

MIB = 2**20


def event(
    action: str, address: int, size: int, time_us: int = 1, text: str = "", **more: Any
) -> dict[str, Any]:
    return {
        "action": action, "addr": address, "size": size, "stream": 0, "time_us": time_us, "user_metadata": text, **more
    }  # fmt: skip


def segment(address: int, *blocks: tuple[int, str]) -> dict[str, Any]:
    placed, at = [], address
    for size, state in blocks:
        placed.append({"address": at, "size": size, "requested_size": size, "state": state})
        at += size
    return {"device": 0, "address": address, "total_size": at - address, "stream": 0, "blocks": placed}


def rows(run_dir: Path, table: str, rank: int = 0, *columns: str) -> list[tuple[Any, ...]]:
    found = pq.read_table(table_dir(run_dir, table, rank), partitioning=None, columns=list(columns) or None)
    return [tuple(row.values()) for row in found.to_pylist()]


def peaks(run_dir: Path) -> list[tuple[int, int, int]]:
    """Of each rank: the largest of its spans."""
    with db.open_run(run_dir) as connection:
        return connection.execute(  # type: ignore[no-any-return]
            "SELECT MAX(allocated_peak_bytes), MAX(reserved_peak_bytes), MAX(active_peak_bytes) "
            "FROM spans GROUP BY rank ORDER BY rank"
        ).fetchall()


def read(data: bytes) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
    events: list[tuple[int, dict[str, Any]]] = []
    found = PickleStream(
        io.BytesIO(data), "x.pickle", lambda device, one: events.append((device, dict(one)))
    ).read()
    return found, events


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

    assert import_snapshots([path], tmp_path / "run", "mine") == []

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
    check = db.query(tmp_path / "run", "replay_check").to_pylist()
    assert [(row["rank"], row["is_exact"], row["max_error_bytes"]) for row in check] == [
        (0, True, 0),
        # Without segments that grow, a block freed early may have kept more than it asked for.
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


def test_an_oom_and_a_handle_of_64_bits(tmp_path: Path) -> None:
    out = {"action": "oom", "size": 5 * MIB, "device_free": 3, "stream": 2**64 - 1, "time_us": 1}
    path = write(tmp_path / "a.pickle", snapshot([out], []))
    import_snapshots([path], tmp_path / "run", "x")
    assert rows(tmp_path / "run", "allocs") == [
        (0, 1000, "oom", 5 * MIB, 5 * MIB, 0, 2**64 - 1, 1, None, None)
    ]


def test_the_device_with_most_events_is_the_ranks(tmp_path: Path) -> None:
    content = snapshot([event("segment_alloc", 0, 2 * MIB)], [])
    content["device_traces"].append([event("segment_alloc", 0, 20 * MIB), event("alloc", 0, 2 * MIB)])
    content["segments"] = [{**segment(0, (2 * MIB, "inactive")), "device": 0}]
    content["segments"].append(
        {**segment(0, (2 * MIB, "active_allocated"), (18 * MIB, "inactive")), "device": 1}
    )
    path = write(tmp_path / "rank0.pickle", content)

    assert import_snapshots([path], tmp_path / "run", "x") == [
        f"rank 0: {path} has 1 events of cuda:0 too; left out, cuda:1 has more"
    ]
    assert peaks(tmp_path / "run") == [(2 * MIB, 20 * MIB, 2 * MIB)]


def test_events_that_do_not_lead_to_the_segments_are_told(tmp_path: Path) -> None:
    events = [event("segment_alloc", 0, 2 * MIB), event("alloc", 0, 512)]
    path = write(tmp_path / "rank0.pickle", snapshot(events, [segment(0, (2 * MIB, "inactive"))]))
    line, *_ = import_snapshots([path], tmp_path / "run", "x")
    assert "end 512 bytes away from its segments" in line
    assert db.query(tmp_path / "run", "replay_check").to_pylist()[0]["max_error_bytes"] == 512


def test_settings_decide_the_sizes_of_blocks(tmp_path: Path) -> None:
    content = snapshot([event("segment_alloc", 0, 20 * MIB), event("alloc", 0, 5 * MIB)], [])
    content["allocator_settings"]["roundup_power2_divisions"] = {str(2**power): 2 for power in range(16)}
    import_snapshots([write(tmp_path / "a.pickle", content)], tmp_path / "run", "x")
    assert peaks(tmp_path / "run") == [(6 * MIB, 20 * MIB, 6 * MIB)]  # 4, 6 and 8 MiB are the steps


@pytest.mark.parametrize(
    ("names", "ranks"),
    [
        (["b", "a"], ["b", "a"]),
        (["r1", "r0"], ["r0", "r1"]),
        (["step10_rank1", "step10_rank0"], ["step10_rank0", "step10_rank1"]),
        (["run2", "run3"], ["run2", "run3"]),  # not from 0: their order counts
        (["rank0", "x"], ["rank0", "x"]),
    ],
)
def test_ranks_by_name(names: list[str], ranks: list[str]) -> None:
    files = ranks_of([Path(f"{name}.pickle") for name in names])
    assert files == {rank: Path(f"{name}.pickle") for rank, name in enumerate(ranks)}


def test_a_file_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotASnapshot, match="listed twice"):
        ranks_of([tmp_path / "a", tmp_path / "b" / ".." / "a"])


# --------------------------------------------------------------------------------
# The beginning


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_the_beginning_is_found_wherever_recording_began(seed: int, expandable: bool) -> None:
    simulation = Simulation(seed, expandable=expandable)
    num_exact = 0
    for cut, truth in simulation.moments[::25]:
        events, rules, witness = (
            simulation.events[cut:],
            BlockReplay(expandable_segments=expandable),
            Witness(),
        )
        witness.see(*([one[key] for one in events] for key in ("action", "addr", "size")))
        found = witness.segments_at_start(simulation.moments[-1][1], rules)
        if witness.doubt_bytes == 0:
            assert _shape(found) == _shape(truth)
            num_exact += 1
        rules.prime(found, 0)
        lack = simulation.counters[cut][0] - rules.allocated
        assert 0 <= lack <= witness.doubt_bytes
        rules.feed(events)
        peaks_found = [rules.allocated_peak, rules.reserved_peak, rules.active_peak]
        lacks = [true - here for true, here in zip(simulation.truth(cut), peaks_found, strict=True)]
        assert all(0 <= lack <= witness.doubt_bytes for lack in lacks)
    assert num_exact == len(simulation.moments[::25]) or not expandable


def _shape(segments: Any) -> list[tuple[int, int, list[tuple[int, int, str]]]]:
    return sorted(
        (one["address"], one["total_size"], [(b["address"], b["size"], b["state"]) for b in one["blocks"]])
        for one in segments
    )


def test_a_block_that_kept_more_than_it_asked_for_is_known_by_what_follows() -> None:
    # GIVEN a segment of 8 MiB: a block that asked for 3.5 MiB and kept 4, and free space behind it
    events = [
        event("alloc", 4 * MIB, 4 * MIB),  # it begins where the first one ends: so much that one took
        event("free_requested", 0, 7 * MIB // 2),
        event("free_completed", 0, 7 * MIB // 2),
    ]
    witness = Witness()
    witness.see(*([one[key] for one in events] for key in ("action", "addr", "size")))
    final = [segment(0, (4 * MIB, "inactive"), (4 * MIB, "active_allocated"))]
    (found,) = witness.segments_at_start(final, BlockReplay())
    assert [(b["address"], b["size"], b["state"]) for b in found["blocks"]] == [
        (0, 4 * MIB, "active_allocated"), (4 * MIB, 4 * MIB, "inactive")
    ]  # fmt: skip
    assert witness.doubt_bytes == 0


# --------------------------------------------------------------------------------
# The stream


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_stream_reads_what_pickle_wrote(protocol: int) -> None:
    content = Simulation(3, expandable=False, operations=1200).snapshot()
    content["device_traces"] = [
        [],
        content["device_traces"][0],
        [event("alloc", 2**63, 2**33, text="\u00e9" * 300)],
    ]
    expected = [(device, one) for device, trace in enumerate(content["device_traces"]) for one in trace]
    assert len(expected) > 1000  # more than one batch

    found, events = read(pickle.dumps(content, protocol=protocol))

    assert events == expected
    assert found == {**content, "device_traces": [[], [], []]}


def test_a_list_that_the_file_refers_to_from_elsewhere_is_read_too() -> None:
    traces = [[event("alloc", 0, 512)]]
    found, events = read(pickle.dumps({"before": traces, "device_traces": traces}))
    assert events == [(0, traces[0][0])]


def test_events_do_not_stay_in_memory(tmp_path: Path) -> None:
    """What stays is the window and the memo's table; pickle would keep five times the file."""
    made = tmp_path / "rank0.pickle"
    events = [
        event(("alloc", "free_completed")[i % 2], 2**40 + i % 64, 2**20 + i, 2**50 + i) for i in range(60_000)
    ]
    write(made, snapshot(events, []))
    del events
    code = (
        "import sys, tracemalloc; from ray_memprof.importers.pickle_stream import PickleStream\n"
        "tracemalloc.start()\n"
        "stream = PickleStream(open(sys.argv[1], 'rb'), 'x', lambda device, event: None)\n"
        "stream.read(); print(tracemalloc.get_traced_memory()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True, text=True, check=True)
    assert made.stat().st_size > 2 * MIB
    assert int(done.stdout) < made.stat().st_size * 0.6 + 3 * MIB


# --------------------------------------------------------------------------------
# What is refused


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def _deep(levels: int) -> bytes:
    return b"\x80\x04" + b"](" * levels + b"e" * levels + b"."


_GOOD = pickle.dumps(snapshot([event("alloc", 0, 512)], []))
_TOUCH = f"touch {os.devnull}.never"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is cut off after 0 bytes"),
        (b"garbage, all of it", "is no pickle of protocol 2 or later"),
        (b"\x80\x06N.", "is a pickle of protocol 6; 2 to 5 are known"),
        (pickle.dumps({}, protocol=0), "is no pickle of protocol 2 or later"),
        (pickle.dumps(None), "has no device_traces"),
        (pickle.dumps([1, 2]), "has no device_traces"),
        (pickle.dumps({"segments": []}), "has no device_traces"),
        (pickle.dumps({"device_traces": 3}), "has no device_traces"),
        (pickle.dumps({"device_traces": [[7]]}), "has a int where an event should be"),
        (_GOOD[:-1], "is cut off after"),
        (_GOOD[: len(_GOOD) // 2], "is cut off after"),
        (_GOOD[:40], "is cut off after"),
        (pickle.dumps(_Call(os.system, _TOUCH)), "asks for 'posix.system'"),
        (pickle.dumps(_Call(os.system, _TOUCH), protocol=2), "asks for 'posix.system'"),
        (pickle.dumps({"device_traces": [[_Call(eval, "1")]]}), "asks for 'builtins.eval'"),
        (pickle.dumps({"device_traces": [[event("alloc", 0, _Call(eval, "1"))]]}), "asks for 'builtins.eval'"),
        (pickle.dumps({"device_traces": [], "x": _Call(getattr, "", "join")}), "asks for 'builtins.getattr'"),
        (b"\x80\x02(S'ls'\nios\nsystem\n.", "has opcode 0x53"),
        (b"\x80\x02(ios\nsystem\n.", "asks for 'os.system'"),
        (b"\x80\x04K\x01\x81.", "asks for 'an object (opcode NEWOBJ)'"),
        (b"\x80\x04K\x01R.", "asks for 'an object (opcode REDUCE)'"),
        (b"\x80\x04K\x01Q.", "asks for 'an object (opcode BINPERSID)'"),
        (b"\x80\x04\x82\x01.", "asks for 'an object (opcode EXT1)'"),
        (b"\x80\x04}}b.", "asks for 'an object (opcode BUILD)'"),
        (pickle.dumps(b"bytes"), "has opcode 0x43"),
        (pickle.dumps({1, 2}), "has opcode 0x8f"),
        (_deep(100_000), "is nested more than 64 deep"),
        (b"\x80\x04" + b"]" * 100 + b"a" * 99 + b".", "has no device_traces"),
        (b"\x80\x04" + b"K\x01" * 3_000_000, "is nested or filled as no snapshot is"),
        (b"\x80\x04K\x01" + b"\x94" * 3_000_000, "refers to more objects than a snapshot has"),
        (b"\x80\x02K\x01r\xff\xff\xff\xff.", "refers to more objects than a snapshot has"),
        (b"\x80\x04h\x05.", "is damaged"),
        (b"\x80\x04X\xff\xff\xff\xff", "has a text or number of 4,294,967,295 bytes"),
        (b"\x80\x04\x8c\x02\xff\xfe.", "is damaged"),
        (b"\x80\x04}(]K\x01u.", "is damaged: unhashable"),
        (b"\x80\x04}(K\x01u.", "is damaged"),
        (b"\x80\x04K\x01K\x02a.", "is damaged: it adds to a int"),
        (b"\x80\x04(.", "is damaged: it stops inside a list"),
        (b"\x80\x04e.", "is damaged"),
        (b"\x80\x04.", "is damaged"),
    ],
)  # fmt: skip
def test_refused(data: bytes, told: str) -> None:
    with pytest.raises(NotASnapshot) as caught:
        read(data)
    assert f"x.pickle {told}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize("cut", range(2, len(_GOOD), 7))
def test_a_file_that_ends_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(NotASnapshot, match="cut off"):
        read(_GOOD[:cut])


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


@pytest.mark.parametrize("segments", [[3], [{"device": 0}], [segment(0) | {"blocks": [{"size": "x"}]}], 7])
def test_segments_that_are_none_are_refused(tmp_path: Path, segments: Any) -> None:
    path = write(tmp_path / "rank0.pickle", snapshot([event("alloc", 0, 512)], segments))
    with pytest.raises(NotASnapshot, match="damaged segment"):
        import_snapshots([path], tmp_path / "run", "x")


def test_the_command_names_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = write(Path("rank0.pickle"), snapshot([event("alloc", 0, 512)], []))
    Path("rank1.pickle").write_bytes(pickle.dumps(_Call(os.system, f"touch {tmp_path}/pwned")))

    result = CliRunner().invoke(app, ["import", str(good), "rank1.pickle", "--name", "theirs"])

    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "error: rank1.pickle asks for 'posix.system': a snapshot holds data only; nothing of it was run",
        "hint: import only what torch.cuda.memory._dump_snapshot or `ray-memprof export --format snapshot` wrote",
    ]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "profiler_logs",
        "rank0.pickle",
        "rank1.pickle",
    ]


@pytest.mark.parametrize("written_by", ["a table", "the run itself"])
def test_a_full_disk_is_told_with_what_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_by: str
) -> None:
    path = write(tmp_path / "rank0.pickle", snapshot([event("alloc", 0, 512)], []))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if written_by == "a table":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFull, match="No space left on device") as caught:
        import_snapshots([path], tmp_path / "runs" / "x", "x")
    assert caught.value.hint == "make room on that disk, or name a folder on another one: --output-dir"
    assert not (tmp_path / "runs").exists()


def test_the_command_makes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("rank0.pickle"), Simulation(1, expandable=False).snapshot())

    result = CliRunner().invoke(app, ["import", "rank0.pickle", "--name", "theirs"])

    assert result.exit_code == 0, result.output
    latest = tmp_path / "profiler_logs" / "theirs" / "latest"
    assert result.output == f"report: {latest.resolve() / 'report.html'}\n"
    assert (latest / "run.duckdb").exists()


def test_a_file_that_cannot_be_read_is_told_as_such() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(NotASnapshot, match=r"^a\.pickle cannot be read: Input/output error$"):
        PickleStream(Broken(), "a.pickle", lambda device, event: None).read()
