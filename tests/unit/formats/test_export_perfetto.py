"""A trace for Perfetto has every span as a slice, and counters that lose no peak."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from run_tables import blank, make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.errors import ConfigError
from ray_memprof.formats import perfetto
from ray_memprof.formats.perfetto import write_perfetto


def exported(run_dir: Path, path: Path, rank: int | None = None) -> list[dict[str, Any]]:
    write_perfetto(run_dir, path, rank)
    read = gzip.decompress if path.suffix == ".gz" else bytes
    content = json.loads(read(path.read_bytes()))
    assert content["displayTimeUnit"] == "ms"
    return content["traceEvents"]  # type: ignore[no-any-return]


def counters(events: list[dict[str, Any]], name: str, rank: int = 0) -> list[tuple[float, int]]:
    return [
        (event["ts"], event["args"]["bytes"])
        for event in events
        if event["ph"] == "C" and event["name"] == name and event["pid"] == rank
    ]


def test_nothing_was_recorded(tmp_path: Path) -> None:
    run_dir = make_ranks(make_run(tmp_path / "run", {}))
    with pytest.raises(ConfigError, match="has no spans"):
        write_perfetto(run_dir, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_spans_and_counters(tmp_path: Path) -> None:
    outer = span(
        1, "denoise", (1_000_000, 1_009_000),
        allocated=(1, 2, 90), reserved=(100, 200, 200), device_used=(150, 260, 260), step=3, num_allocs=7,
    )  # fmt: skip
    inner = span(
        2, "denoise/dit.block", (1_002_000, 1_006_000), parent_id=1,
        allocated=(5, 6, 90), reserved=(100, 200, 200), device_used=(150, 260, 260),
        step=3, block=11, component="dit", failed=True,
    )  # fmt: skip
    sample = blank("samples", t_ns=1_003_000, allocated_bytes=40, reserved_bytes=170, device_used_bytes=230)
    run_dir = make_run(tmp_path / "run", {0: {"spans": [outer, inner], "samples": [sample]}})
    make_ranks(run_dir, {"host": "h1", "gpu_name": "H200"})

    events = exported(run_dir, tmp_path / "out" / "x.json.gz")

    assert [event for event in events if event["ph"] == "M"] == [
        {"ph": "M", "name": "process_name", "pid": 0, "tid": 1, "args": {"name": "rank 0 (h1, H200)"}},
        {"ph": "M", "name": "process_sort_index", "pid": 0, "tid": 1, "args": {"sort_index": 0}},
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": 1, "args": {"name": "spans"}},
    ]
    peaks = {"allocated_peak_bytes": 90, "reserved_peak_bytes": 200, "device_used_peak_bytes": 260}
    assert [event for event in events if event["ph"] == "X"] == [
        {
            "ph": "X", "cat": "span", "name": "denoise step=3", "pid": 0, "tid": 1, "ts": 0.0, "dur": 9.0,
            "args": {"span_id": 1, "path": "denoise", "step": 3, "failed": False, **peaks, "num_allocs": 7},
        },
        {
            "ph": "X", "cat": "dit", "name": "dit.block step=3 block=11", "pid": 0, "tid": 1, "ts": 2.0, "dur": 4.0,
            "args": {
                "span_id": 2, "path": "denoise/dit.block", "component": "dit", "step": 3, "block": 11, "failed": True,
                **peaks, "num_allocs": 0,
            },
        },
    ]  # fmt: skip
    # The peak of both spans is the inner one's: in its middle.
    assert counters(events, "allocated") == [(0.0, 1), (2.0, 5), (3.0, 40), (4.0, 90), (6.0, 6), (9.0, 2)]
    # One that a span ends with is where that was measured.
    assert counters(events, "reserved") == [(0.0, 100), (2.0, 100), (3.0, 170), (6.0, 200), (9.0, 200)]
    assert counters(events, "device_used") == [(0.0, 150), (2.0, 150), (3.0, 230), (6.0, 260), (9.0, 260)]
    assert counters(events, "unexplained") == [(0.0, 50), (2.0, 50), (3.0, 60), (6.0, 60), (9.0, 60)]


def test_few_points_and_every_peak(tmp_path: Path) -> None:
    # GIVEN 50,000 samples, of which one is the highest and one the lowest
    values = [1000 + index % 97 for index in range(50_000)]
    values[31_234], values[7_777] = 10**9, 3
    one = blank("samples", reserved_bytes=5)
    samples = [{**one, "t_ns": index, "allocated_bytes": value} for index, value in enumerate(values)]
    whole = span(1, "denoise", (0, 49_999), allocated=(1000, 1000, 10**9), reserved=(5, 5, 5))
    run_dir = make_run(tmp_path / "run", {0: {"spans": [whole], "samples": samples}})

    points = counters(exported(run_dir, tmp_path / "x.json"), "allocated")

    assert len(points) <= 4 * perfetto.SLICES + 3
    assert (31.234, 10**9) in points and (7.777, 3) in points
    assert points == sorted(points)
    assert len(counters(exported(run_dir, tmp_path / "x.json"), "reserved")) <= 4 * perfetto.SLICES


def test_one_rank_of_several(tmp_path: Path) -> None:
    spans = {rank: {"spans": [span(1, "denoise", (rank * 1000, 5000))]} for rank in range(3)}
    run_dir = make_run(tmp_path / "run", spans)
    assert {event["pid"] for event in exported(run_dir, tmp_path / "x.json")} == {0, 1, 2}
    events = exported(run_dir, tmp_path / "x.json", 2)
    assert {event["pid"] for event in events} == {2}
    assert [event["ts"] for event in events if event["ph"] == "X"] == [2.0]  # ranks keep one clock
    with pytest.raises(ConfigError, match="no spans of rank 3") as caught:
        write_perfetto(run_dir, tmp_path / "y.json", 3)
    assert caught.value.hint == "ranks of this run: 0, 1, 2"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "profiler_logs" / "base" / "r1", {0: {"spans": [span(1, "denoise", (0, 1))]}})
    result = CliRunner().invoke(app, ["export", "latest", "--format", "perfetto"])
    assert (result.exit_code, result.output) == (0, "base-r1.trace.json.gz\n")
    assert gzip.decompress(Path("base-r1.trace.json.gz").read_bytes())


def test_peaks_that_may_lie_before_the_first_event_say_so(tmp_path: Path) -> None:
    spans = {"spans": [span(1, "denoise", (0, 10), allocated=(0, 0, 90))]}
    run_dir = make_ranks(make_run(tmp_path / "run", {0: spans, 1: spans}), {}, {"peak_at_least": True})
    events = exported(run_dir, tmp_path / "x.json")
    assert {one["pid"]: one["args"].get("peak_at_least") for one in events if one["ph"] == "X"} == {
        0: None,
        1: True,
    }
    assert [(one["pid"], one["args"]["labels"]) for one in events if one["name"] == "process_labels"] == [
        (1, "peaks are at least what is shown: they may lie before the first event")
    ]
