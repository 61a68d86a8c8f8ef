"""An exported snapshot is what torch's tools and the public viewer read, and comes back as the rows it was made of."""

import json
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from run_tables import blank, make_ranks, make_run, span
from snapshots import Simulation, write
from torch.cuda import _memory_viz
from typer.testing import CliRunner

from ray_memprof.allocator.rules import SETTINGS_VARIABLES
from ray_memprof.analysis.recorded_rank import recorded_ranks
from ray_memprof.cli import app
from ray_memprof.errors import ConfigError
from ray_memprof.formats.torch_snapshot.read import import_snapshots
from ray_memprof.formats.torch_snapshot.write import write_snapshot
from ray_memprof.query import database
from ray_memprof.store.run_files import table_dir
from ray_memprof.store.schema import SCHEMA_VERSION
from wan.levers import ALLOCATOR_SETTINGS

MIB = 2**20
VIEWER = frozenset(
    "APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPUT BINUNICODE DICT EMPTY_DICT EMPTY_LIST EMPTY_TUPLE "
    "FRAME LIST LONG1 LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE PROTO SETITEM SETITEMS "
    "SHORT_BINUNICODE STOP TUPLE TUPLE1 TUPLE2 TUPLE3".split()
)
"""Opcodes that torch/utils/viz/MemoryViz.js reads."""


def alloc(seq: int, action: str, size: int, address: int, **more: Any) -> dict[str, Any]:
    more.setdefault("requested_bytes", size - 12)
    return blank(
        "allocs", seq=seq, t_ns=seq * 1000, action=action, size_bytes=size, 
        address=address, **more,
    )  # fmt: skip


def recorded(tmp_path: Path) -> Path:
    """A run of two spans: a tensor that stays, one that goes, one that waits for another stream."""
    spans = [span(1, "denoise", (0, 9000)), span(2, "denoise/dit.block", (1000, 8000), parent_id=1)]
    rows = [
        alloc(0, "segment_alloc", 2 * MIB, 4 * MIB, span_id=1, requested_bytes=2 * MIB),
        alloc(1, "alloc", 1024, 4 * MIB, span_id=2, stack_id=0),
        alloc(2, "alloc", 512, 4 * MIB + 1024, span_id=2, stack_id=0),
        alloc(3, "free_requested", 512, 4 * MIB + 1024, span_id=2),
        alloc(4, "free_completed", 512, 4 * MIB + 1024, span_id=1),
        alloc(5, "alloc", 2048, 4 * MIB + 1024, span_id=1, stream=2**64 - 1),
        alloc(6, "free_requested", 2048, 4 * MIB + 1024),
    ]
    stacks = [
        blank("stacks", stack_id=0, frame=0, function="forward", file="model.py", line=3),
        blank("stacks", stack_id=0, frame=1, function="main", file="run.py", line=9),
    ]
    run_dir = make_run(tmp_path / "run", {0: {"spans": spans, "allocs": rows, "stacks": stacks}})
    return make_ranks(
        run_dir, {"local_rank": 1}, config="{}", environment='{"PYTORCH_CUDA_ALLOC_CONF": "x:1"}'
    )


def test_a_rank_without_events_is_told(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", {0: {"spans": [span(1, "denoise", (0, 1))]}})
    with pytest.raises(ConfigError, match="no allocator events of rank 0") as caught:
        write_snapshot(run_dir, 0, tmp_path / "x.pickle")
    assert caught.value.hint == "logging.level event or stack records them; ranks of this run: 0"
    with pytest.raises(ConfigError, match="no allocator events"):
        recorded_ranks(run_dir)
    assert not (tmp_path / "x.pickle").exists()


def test_what_is_written(tmp_path: Path) -> None:
    path = write_snapshot(recorded(tmp_path), 0, tmp_path / "out" / "rank0.pickle")
    found = pickle.loads(path.read_bytes())

    stack = [
        {"name": "forward", "filename": "model.py", "line": 3},
        {"name": "main", "filename": "run.py", "line": 9},
    ]
    inner = [
        {"name": "dit.block", "filename": "<span>", "line": 0},
        {"name": "denoise", "filename": "<span>", "line": 0},
    ]
    outer = inner[1:]
    first, second, high = 4 * MIB, 4 * MIB + 1024, 2**64 - 1
    expected = [
        ("segment_alloc", first, 2 * MIB, 0, 0, "denoise", outer),
        ("alloc", first, 1012, 0, 1, "denoise/dit.block", stack),
        ("alloc", second, 500, 0, 2, "denoise/dit.block", stack),
        ("free_requested", second, 500, 0, 3, "denoise/dit.block", inner),
        ("free_completed", second, 500, 0, 4, "denoise", outer),
        ("alloc", second, 2036, high, 5, "denoise", outer),
        ("free_requested", second, 2036, 0, 6, "", []),
    ]
    names = ("action", "addr", "size", "stream", "time_us", "user_metadata", "frames")
    assert found["device_traces"] == [
        [],
        [dict(zip(names, values, strict=True)) | {"compile_context": "N/A"} for values in expected],
    ]
    (segment,) = found["segments"]
    blocks = segment.pop("blocks")
    assert segment == {
        "device": 1, "segment_pool_id": (0, 0), "address": first, "total_size": 2 * MIB, "stream": 0,
        "segment_type": "small", "allocated_size": 1024, "requested_size": 1012, "active_size": 3072,
        "is_expandable": False, "frames": [],
    }  # fmt: skip
    assert [(b["address"], b["size"], b["requested_size"], b["state"], b["frames"]) for b in blocks] == [
        (first, 1024, 1012, "active_allocated", stack),
        (second, 2048, 2036, "active_pending_free", outer),
        (first + 3072, 2 * MIB - 3072, 0, "inactive", []),
    ]
    assert found["allocator_settings"] == {
        "PYTORCH_CUDA_ALLOC_CONF": "x:1", "max_split_size": -1, "expandable_segments": False,
        "roundup_power2_divisions": {str(2**power): 0 for power in range(16)},
    }  # fmt: skip
    assert found["external_annotations"] == []
    assert found["ray_memprof"] == {
        "schema_version": SCHEMA_VERSION, "run_id": "", "rank": 0, "source": ""
    }  # fmt: skip


def test_of_both_variables_the_one_that_torch_reads_gives_the_settings(tmp_path: Path) -> None:
    given = dict(
        zip(reversed(SETTINGS_VARIABLES), ("max_split_size_mb:1", "max_split_size_mb:2"), strict=True)
    )
    run_dir = make_ranks(recorded(tmp_path), {}, config="{}", environment=json.dumps(given))
    found = pickle.loads(write_snapshot(run_dir, 0, tmp_path / "rank0.pickle").read_bytes())
    assert found["allocator_settings"]["max_split_size"] == 2 * MIB


def test_the_order_of_the_variables_is_that_of_wan() -> None:
    assert SETTINGS_VARIABLES == ALLOCATOR_SETTINGS


def simulated(tmp_path: Path, seed: int, *, expandable: bool, operations: int = 400) -> Path:
    simulation = Simulation(seed, expandable=expandable, operations=operations)
    texts = [
        ("load", "load/dit", "", "denoise/dit.block")[index // 40 % 4]
        for index in range(len(simulation.events))
    ]
    content = simulation.snapshot(0, texts, stacks=True)
    content["ray_memprof"] = {}
    import_snapshots([write(tmp_path / "rank0.pickle", content)], tmp_path / "runs" / "first", "first")
    return tmp_path / "runs" / "first"


@pytest.mark.parametrize("expandable", [False, True])
def test_export_and_import_again_gives_equal_rows(tmp_path: Path, expandable: bool) -> None:
    # GIVEN a run of more events than fit into one batch, with stacks, nested spans and stretches without one
    first = simulated(tmp_path, 5, expandable=expandable, operations=1200)
    path = write_snapshot(first, 0, tmp_path / "again" / "rank0.pickle")
    # WHEN it is exported and imported
    second = tmp_path / "runs" / "second"
    assert import_snapshots([path], second, "second") == []
    # THEN not a row differs
    for table in ("allocs", "spans", "stacks"):
        one, two = (
            pq.read_table(table_dir(run, table, 0), partitioning=None).to_pylist() for run in (first, second)
        )
        assert len(one) > 0 and one == two
    checks = [database.query(run, "replay_check").to_pylist() for run in (first, second)]
    assert checks[0] == checks[1] and checks[0][0]["is_exact"]


@pytest.mark.parametrize("expandable", [False, True])
def test_the_segments_are_those_of_the_allocator(tmp_path: Path, expandable: bool) -> None:
    first = simulated(tmp_path, 6, expandable=expandable)
    found = pickle.loads(write_snapshot(first, 0, tmp_path / "x.pickle").read_bytes())
    truth = pickle.loads((tmp_path / "rank0.pickle").read_bytes())
    shapes = [
        sorted(
            (
                one["address"],
                one["total_size"],
                [(b["address"], b["size"], b["state"]) for b in one["blocks"]],
            )
            for one in snapshot["segments"]
        )
        for snapshot in (found, truth)
    ]
    assert shapes[0] == shapes[1]


def test_a_run_of_the_cpu_comes_back(tmp_path: Path) -> None:
    """GIVEN host tensors as the host meter tells them: numbers, exact bytes, one of them resized, no segments."""
    told = [
        ("alloc", 1000, 1), ("alloc", 3, 2), ("free_requested", 3, 2), ("free_completed", 3, 2), ("alloc", 70_000, 2),
        ("free_requested", 1000, 1), ("free_completed", 1000, 1), ("alloc", 5, 3),
    ]  # fmt: skip
    spans = [span(1, "denoise", (0, 9000))]
    rows = [
        alloc(seq, action, size, number, span_id=1, requested_bytes=size)
        for seq, (action, size, number) in enumerate(told)
    ]
    first = make_run(tmp_path / "run", {0: {"spans": spans, "allocs": rows}})
    make_ranks(first, {}, config="{}", environment="{}", source="cpu")

    path = write_snapshot(first, 0, tmp_path / "rank0.pickle")
    assert import_snapshots([path], tmp_path / "second", "second") == []

    found = pq.read_table(table_dir(tmp_path / "second", "allocs", 0), partitioning=None).to_pylist()
    assert [(row["action"], row["size_bytes"], row["requested_bytes"]) for row in found] == [
        (action, size, size) for action, size, _ in told
    ]
    with database.open_run(tmp_path / "second") as connection:
        peaks = "allocated_peak_bytes, replayed_allocated_peak_bytes, reserved_peak_bytes, max_error_bytes"
        (row,) = connection.execute(f"SELECT {peaks} FROM ranks").fetchall()
        (source,) = connection.execute("SELECT source FROM runs").fetchall()
    assert (row, source) == ((71_000, 71_000, 71_000, 0), ("cpu",))
    # Its segments are what torch's tools read as well: every block lies in one.
    exported = pickle.loads(path.read_bytes())
    assert len(outline(exported, 0)) == len(told) + 1
    (segment,) = exported["segments"]
    assert segment["total_size"] == 1024 + 512 + 70_144  # the last one lies where the second was


def test_what_was_free_when_memory_ran_out_is_kept(tmp_path: Path) -> None:
    rows = [alloc(0, "oom", 5 * MIB, 3 * MIB, span_id=1)]
    run_dir = make_run(tmp_path / "run", {0: {"spans": [span(1, "denoise", (0, 9000))], "allocs": rows}})
    make_ranks(run_dir, {}, config="{}", environment="{}")
    found = pickle.loads(write_snapshot(run_dir, 0, tmp_path / "x.pickle").read_bytes())
    (event,) = found["device_traces"][0]
    assert (event["device_free"], "addr" in event) == (3 * MIB, False)


# --------------------------------------------------------------------------------
# Readers


def test_only_opcodes_that_the_viewer_knows(tmp_path: Path) -> None:
    path = write_snapshot(simulated(tmp_path, 7, expandable=True), 0, tmp_path / "x.pickle")
    data = path.read_bytes()
    assert {opcode.name for opcode, _, _ in pickletools.genops(data)} <= VIEWER
    assert data[:2] == b"\x80\x04"


@pytest.mark.parametrize("expandable", [False, True])
def test_torch_reads_it(tmp_path: Path, expandable: bool) -> None:
    path = write_snapshot(simulated(tmp_path, 8, expandable=expandable), 0, tmp_path / "x.pickle")
    found = pickle.loads(path.read_bytes())

    summary = _memory_viz.segsum(found)  # it adds up every block and raises where a byte is missing
    assert f"segments: {len(found['segments'])}\n" in summary
    (num_events,) = [line for line in _memory_viz.trace(found).splitlines() if line.endswith(" entries")]
    assert num_events == f"{len(found['device_traces'][0])} entries"
    for plot in (_memory_viz.trace_plot, _memory_viz.segment_plot):
        assert "snapshot.pickle" in plot(found)
    lines: list[str] = []
    _memory_viz.memory(found, lines.extend)
    flame = "".join(lines)
    held = sum(b["requested_size"] for one in found["segments"] for b in one["blocks"])
    assert held > 0
    assert "main" in flame or "<span>" in flame


def outline(found: dict[str, Any], device: int) -> list[int]:
    """Bytes on the viewer's timeline after each event, told from its end as the viewer tells them."""
    blocks = {
        block["address"]: block["requested_size"]
        for segment in found["segments"]
        for block in segment["blocks"]
        if segment["device"] == device and block["state"] != "inactive"
    }
    ranges = [(one["address"], one["address"] + one["total_size"]) for one in found["segments"]]
    curve = [sum(blocks.values())]
    for event in reversed(found["device_traces"][device]):
        if event["action"] == "alloc":
            # Each block must lie in a segment when it is drawn: else the viewer stops with an error.
            assert any(start <= event["addr"] < end for start, end in ranges), event
            del blocks[event["addr"]]
        elif event["action"] == "free_completed":
            assert any(start <= event["addr"] < end for start, end in ranges), event
            blocks[event["addr"]] = event["size"]
        elif event["action"] == "segment_free":
            ranges.append((event["addr"], event["addr"] + event["size"]))
        elif event["action"] == "segment_unmap":
            ranges.append((event["addr"], event["addr"] + event["size"]))
        curve.append(sum(blocks.values()))
    return curve[::-1]


@pytest.mark.parametrize("expandable", [False, True])
def test_the_viewer_finds_each_block_in_a_segment_when_recording_began_late(
    tmp_path: Path, expandable: bool
) -> None:
    simulation = Simulation(9, expandable=expandable)
    cut = len(simulation.events) // 2
    import_snapshots([write(tmp_path / "rank0.pickle", simulation.snapshot(cut))], tmp_path / "run", "x")
    found = pickle.loads(write_snapshot(tmp_path / "run", 0, tmp_path / "x.pickle").read_bytes())
    assert len(outline(found, 0)) == len(simulation.events) - cut + 1


def test_the_timeline_of_the_viewer_begins_and_ends_at_what_was_held(tmp_path: Path) -> None:
    found = pickle.loads(
        write_snapshot(simulated(tmp_path, 10, expandable=False), 0, tmp_path / "x.pickle").read_bytes()
    )
    curve = outline(found, 0)
    assert curve[0] == 0 and max(curve) > 50 * MIB


def test_the_command_writes_a_file_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = recorded(tmp_path)
    result = CliRunner().invoke(app, ["export", str(run_dir), "--format", "snapshot", "--out", "dump"])
    assert (result.exit_code, result.output) == (0, "dump/rank0.pickle\n")
    result = CliRunner().invoke(
        app, ["export", str(run_dir), "--format", "snapshot", "--rank", "0", "--out", "a.pickle"]
    )
    assert (result.exit_code, result.output) == (0, "a.pickle\n")
    assert Path("a.pickle").read_bytes() == Path("dump/rank0.pickle").read_bytes()
    result = CliRunner().invoke(app, ["export", str(run_dir), "--format", "snapshot", "--rank", "4"])
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {run_dir} has no allocator events of rank 4\nhint: ")


def test_damaged_events_are_told_of_the_run_and_not_of_the_file_to_write(tmp_path: Path) -> None:
    """GIVEN a part with a whole footer, and pages that are not."""
    run_dir = recorded(tmp_path)
    (part,) = table_dir(run_dir, "allocs", 0).glob("*.parquet")
    whole = part.read_bytes()
    pages = len(whole) - 8 - pq.read_metadata(part).serialized_size - 4
    part.write_bytes(whole[:4] + b"\xff" * pages + whole[4 + pages :])
    with pytest.raises(ConfigError, match=rf"^{part} cannot be read: \S"):
        write_snapshot(run_dir, 0, tmp_path / "x.pickle")
    assert not (tmp_path / "x.pickle").exists()
