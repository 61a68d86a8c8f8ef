"""recording(options) around a tiny video on the CPU: what lies on the disk afterwards is whole and adds up."""

import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from ray_memprof.errors import DiskFull
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.recording import recording
from ray_memprof.recorder.spans import Relay, listening, span
from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.run_files import manifest_path, table_dir
from wan import spans as wan_spans
from wan.config import TASKS
from wan.pipeline import Pipeline, Request


def options_of(folder: Path, **changes: Any) -> RecordingOptions:
    return RecordingOptions(run_dir=folder, device="cpu", **changes)


def make_video() -> None:
    pipeline = Pipeline(TASKS["t2v-tiny"], ckpt_dir=None, device="cpu", precision="fp32")
    with wan_spans.listening(Relay()):
        pipeline.generate(Request(prompt="a fox", steps=2))


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    parts = sorted(table_dir(folder, table, 0).glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()]


class Heard:
    """Paths of spans, in the order in which they end."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._open: list[str] = []

    def enter(self, name: str, attributes: object) -> None:
        self._open.append(name)

    def exit(self, name: str, failed: bool) -> None:
        self.paths.append("/".join(self._open))
        self._open.pop()


def test_a_tiny_video_is_recorded_whole(tmp_path: Path) -> None:
    heard = Heard()
    with listening(heard), recording(options_of(tmp_path)) as recorder:
        make_video()
    check = recorder.check()
    assert check is not None
    assert (check.max_error_bytes, check.num_lost_events) == (0, 0)
    assert check.num_checks > 0
    assert check.allocated_peak_bytes == check.replayed_allocated_peak_bytes > 2**20

    spans = rows_of(tmp_path, "spans")
    assert [row["path"] for row in spans] == heard.paths
    assert {"encode.text", "denoise", "decode"} <= {row["stage"] for row in spans}
    assert {"load.t5", "load.dit", "load.vae", "t5.block", "dit.block"} <= {row["name"] for row in spans}
    assert {row["step"] for row in spans if row["stage"] == "denoise"} == {0, 1}
    assert max(row["allocated_peak_bytes"] for row in spans) == check.allocated_peak_bytes
    assert not any(row["failed"] for row in spans)
    by_id = {row["span_id"]: row for row in spans}
    for row in spans:
        assert row["allocated_peak_bytes"] >= max(row["allocated_start_bytes"], row["allocated_end_bytes"])
        if row["parent_id"]:
            assert by_id[row["parent_id"]]["allocated_peak_bytes"] >= row["allocated_peak_bytes"]

    events = rows_of(tmp_path, "allocs")
    assert [row["seq"] for row in events] == list(range(check.num_events))
    assert {row["span_id"] for row in events} - {0} <= by_id.keys()
    assert {"weight", "activation", "output"} <= {row["category"] for row in events}
    signs = {"alloc": 1, "free_requested": -1, "free_completed": 0}
    live = [0]
    for row in events:
        live.append(live[-1] + signs[row["action"]] * row["size_bytes"])
    assert max(live) == check.allocated_peak_bytes


def test_levels_see_the_same_peaks(tmp_path: Path) -> None:
    peaks = {}
    for level in ("stage", "event"):
        folder = tmp_path / level
        folder.mkdir()
        with recording(options_of(folder, level=level)) as recorder:
            make_video()
        peaks[level] = [(row["path"], row["allocated_peak_bytes"]) for row in rows_of(folder, "spans")]
        assert bool(rows_of(folder, "allocs")) == (level == "event")
        assert recorder.check() is not None
    assert peaks["stage"] == peaks["event"]


def test_level_stack_names_the_lines_that_allocate_on_the_cpu_too(tmp_path: Path) -> None:
    with recording(options_of(tmp_path, level="stack")) as recorder, span("decode"):
        kept = [torch.zeros(256) for _ in range(3)]
        kept.append(torch.ones(512))
    allocs = [row for row in rows_of(tmp_path, "allocs") if row["action"] == "alloc"]
    frames = {
        (row["stack_id"], row["frame"]): (row["function"], row["file"]) for row in rows_of(tmp_path, "stacks")
    }
    numbers = [row["stack_id"] for row in allocs]
    assert [row["size_bytes"] for row in allocs] == [1024, 1024, 1024, 2048]
    assert len(set(numbers[:3])) == 1 != len(set(numbers))
    assert {file for (_, frame), (_, file) in frames.items() if frame == 0} == {__file__}
    assert frames[numbers[3], 0][0] == "test_level_stack_names_the_lines_that_allocate_on_the_cpu_too"
    assert all(row["stack_id"] is None for row in rows_of(tmp_path, "allocs") if row["action"] != "alloc")
    assert recorder.problems == ()


def test_level_stack_names_the_node_of_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.fx.experimental._config.enrich_profiler_metadata", True)
    graph = torch.fx.symbolic_trace(Doubled())
    with recording(options_of(tmp_path, level="stack")), span("decode"):
        kept = graph(torch.ones(256))
    functions = [row["function"] for row in rows_of(tmp_path, "stacks") if "fx_generated" in row["file"]]
    assert functions == ["forward [add]", "forward [relu]"]
    assert kept.shape == (256,)


class Doubled(torch.nn.Module):
    """A graph of two nodes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape as `x`."""
        return torch.relu(x + x)


def test_what_threads_allocate_belongs_to_the_span_that_is_open(tmp_path: Path) -> None:
    held: list[torch.Tensor] = []
    with recording(options_of(tmp_path)), span("script"), span("train_step"):
        thread = threading.Thread(target=lambda: held.append(torch.zeros(1024)))
        thread.start()
        thread.join()
    assert {row["path"]: row["allocated_peak_bytes"] for row in rows_of(tmp_path, "spans")} == {
        "script/train_step": 4096, "script": 4096
    }  # fmt: skip


def test_without_profiling_there_are_beats_and_no_files(tmp_path: Path) -> None:
    with recording(options_of(tmp_path, keeps_rows=False)) as recorder:
        with span("denoise", step=1):
            assert recorder.beat().path == "denoise"
        recorder.seal()
    assert (recorder.check(), [path.name for path in tmp_path.iterdir()]) == (None, [])


def test_an_error_of_the_model_passes_through_and_leaves_a_valid_recording(tmp_path: Path) -> None:
    with pytest.raises(KeyError), recording(options_of(tmp_path)) as recorder, span("denoise", step=1):
        raise KeyError
    (row,) = rows_of(tmp_path, "spans")
    assert (row["path"], row["failed"], recorder.failure()) == ("denoise", True, ("denoise", 1, 0, 0))


def test_a_full_disk_ends_a_recording_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def append(store: RankStore, table: str, columns: object) -> None:
        raise DiskFull("rank 0: No space left on device")

    monkeypatch.setattr(RankStore, "append", append)
    with pytest.raises(DiskFull), recording(options_of(tmp_path)) as recorder:
        make_video()
    assert recorder.check() is not None
    assert manifest_path(tmp_path, 0).read_text() == ""


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_step_of_the_wall_clock_in_the_middle_changes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: int
) -> None:
    """GIVEN NTP, or a person, who sets the clock THEN no span is shorter than nothing, and none takes an hour."""
    plain, began_ns = time.time_ns, time.time_ns()
    with recording(options_of(tmp_path, sample_interval_s=0.01)):
        with span("denoise", step=0):
            kept = [torch.ones(1000)]
            monkeypatch.setattr(time, "time_ns", lambda: plain() + step_s * 10**9)
            kept.append(torch.ones(2000))
            time.sleep(0.05)
        with span("decode"):
            kept.append(torch.ones(3000))
    ended_ns = plain()
    first, second = rows_of(tmp_path, "spans")
    times = [first["start_ns"], first["end_ns"], second["start_ns"], second["end_ns"]]
    assert times == sorted(times)
    assert began_ns - 10**7 < times[0] and times[-1] < ended_ns + 10**7
    inside = [row["t_ns"] for row in rows_of(tmp_path, "allocs") if row["span_id"] == first["span_id"]]
    assert inside == sorted(inside)
    # torch reports the times of events in microseconds.
    assert all(first["start_ns"] - 1000 <= t_ns <= first["end_ns"] for t_ns in inside)
    samples = [row["t_ns"] for row in rows_of(tmp_path, "samples")]
    assert samples == sorted(samples)
    assert first["num_samples"] == sum(first["start_ns"] <= t_ns <= first["end_ns"] for t_ns in samples) > 0


def test_what_the_hosts_clock_is_ahead_is_taken_out_of_every_time(tmp_path: Path) -> None:
    began_ns = time.time_ns()
    with recording(options_of(tmp_path, sample_interval_s=0.01, clock_offset_ns=10**12)):
        with span("decode"):
            torch.ones(1000)
            time.sleep(0.05)
    (row,) = rows_of(tmp_path, "spans")
    times = [
        row["start_ns"],
        *(one["t_ns"] for table in ("allocs", "samples") for one in rows_of(tmp_path, table)),
    ]
    assert len(times) >= 4
    assert all(-(10**12) - 10**7 < t_ns - began_ns < -(10**12) + 60 * 10**9 for t_ns in times)
