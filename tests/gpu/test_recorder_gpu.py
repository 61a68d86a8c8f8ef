"""Recording on a device: what is recorded adds up to the allocator's own counters, also where the program fails.

Each run is a process of its own: the allocator reads its settings once, and CUDA must not have started before.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_memprof.store.run_files import table_dir

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20

# What every program below is put into: it records `work()`, and prints what torch counted itself if asked to.
PROGRAM = """
import dataclasses, json, sys
from pathlib import Path

from ray_memprof.config.load import load_config
from ray_memprof.recorder.meters.nvml import open_device
from ray_memprof.recorder.recording import recording
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.spans import span

folder = Path(sys.argv[1])
with open_device(index=0) as device:
    options = RecordingOptions(
        run_dir=folder, device="cuda:0", level=sys.argv[2], gpu_uuid=device.uuid(), gpu_index=0,
        device_total_bytes=device.total_bytes(),
    )
import torch

def work():
    WORK

error = ""
with recording(options) as recorder:
    try:
        work()
    except Exception as caught:
        error = type(caught).__name__
    writer = type(recorder._scribe.writer).__name__
    told = {"error": error, "failure": recorder.failure(), "writer": writer}
    if sys.argv[3] == "True":
        told["allocated"] = torch.cuda.max_memory_allocated()
        told["reserved"] = torch.cuda.max_memory_reserved()
told["check"], told["problems"] = dataclasses.asdict(recorder.check()), recorder.problems
print(json.dumps(told))
"""

VIDEO = """
from wan.config import TASKS
from wan.pipeline import Pipeline, Request
with span("device.init"):
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
from ray_memprof.recorder.spans import Relay
from wan.spans import listening
pipeline = Pipeline(TASKS["t2v-tiny"], ckpt_dir=None, device="cuda", precision="bf16")
with listening(Relay()):
    pipeline.generate(Request(prompt="a fox", steps=2))
"""
# Shapes of one block of the 1.3B model at 480P, on two streams, with memory given back in between.
BLOCKS = """
import random
random.seed(0)
side, kept = torch.cuda.Stream(), []
for step in range(3):
    with span("denoise", step=step):
        for block in range(30):
            with span("dit.block", index=block):
                x = torch.empty(1, 32760, 1536, dtype=torch.bfloat16, device="cuda")
                y = torch.empty(1, 32760 // (block + 1), 8960, dtype=torch.bfloat16, device="cuda")
                y.record_stream(side)
                kept.append(torch.empty(random.randrange(1, 4_000_000), dtype=torch.uint8, device="cuda"))
                if block % 5 == 4:
                    kept.pop(random.randrange(len(kept)))
                del x, y
    torch.cuda.empty_cache()
"""
TOO_MUCH = """
with span("device.init"):
    torch.zeros(1, device="cuda")
with span("denoise", step=1), span("dit.block", index=2):
    kept = torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda")
    torch.empty(2**50, dtype=torch.uint8, device="cuda")
"""
FAULT = """
with span("denoise", step=1):
    table = torch.zeros(4, device="cuda")
    with span("dit.block", index=2):
        table[torch.tensor([9], device="cuda")]
        torch.cuda.synchronize()
"""


# A process beside this one takes 2 GiB while a span runs for the first time; then 4 GiB come and go inside a span.
NEIGHBOUR = """
import subprocess, time
with span("device.init"):
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
take = (
    "import torch; x = torch.empty(2**31, dtype=torch.uint8, device='cuda');"
    "print(torch.cuda.synchronize(), flush=True); input()"
)
child = subprocess.Popen([sys.executable, "-c", take], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
with span("denoise", step=0):
    child.stdout.readline()
child.communicate(chr(10))
with span("decode"):
    kept = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    time.sleep(1.0)
    del kept
    torch.cuda.empty_cache()
with span("save"):
    kept = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    del kept
    torch.cuda.empty_cache()
"""


def recorded(
    folder: Path,
    work: str,
    *,
    expandable: bool = True,
    level: str = "event",
    asks: bool = True,
    timeout_s: float = 110.0,
) -> dict[str, Any]:
    """Run `work` in a process that records it; what it says about itself."""
    program = PROGRAM.replace("WORK", work.strip().replace("\n", "\n    "))
    settings = {
        "PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:{expandable}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), level, str(asks)],
        capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **settings},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    parts = sorted(table_dir(folder, table, 0).glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()]


def assert_exact(told: dict[str, Any]) -> None:
    """Every event came, and they add up to what torch counts by itself."""
    check = told["check"]
    assert (check["max_error_bytes"], check["num_lost_events"]) == (0, 0)
    assert check["num_checks"] > 0
    assert check["replayed_allocated_peak_bytes"] == check["allocated_peak_bytes"] == told["allocated"] > 0
    assert check["replayed_reserved_peak_bytes"] == check["reserved_peak_bytes"] == told["reserved"] > 0


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("work", [VIDEO, BLOCKS], ids=["video", "blocks"])
def test_events_add_up_to_the_allocators_counters(tmp_path: Path, work: str, expandable: bool) -> None:
    told = recorded(tmp_path, work, expandable=expandable)
    assert (told["error"], told["writer"], told["problems"]) == ("", "WriterProcess", [])
    assert_exact(told)
    spans = rows_of(tmp_path, "spans")
    assert max(row["allocated_peak_bytes"] for row in spans) == told["allocated"]
    assert max(row["reserved_peak_bytes"] for row in spans) == told["reserved"]
    grown = "segment_map" if expandable else "segment_alloc"
    assert grown in {row["action"] for row in rows_of(tmp_path, "allocs")}


def test_stacks_are_taken_at_level_stack(tmp_path: Path) -> None:
    told = recorded(tmp_path, BLOCKS, level="stack")
    assert told["writer"] == "Writer"
    assert_exact(told)
    numbers = {row["stack_id"] for row in rows_of(tmp_path, "allocs")} - {None}
    assert numbers == {row["stack_id"] for row in rows_of(tmp_path, "stacks")} != set()


def test_level_stage_sees_the_peaks_of_level_event(tmp_path: Path) -> None:
    peaks = {}
    for level in ("stage", "event"):
        folder = tmp_path / level
        folder.mkdir()
        recorded(folder, BLOCKS, level=level)
        peaks[level] = [(row["path"], row["allocated_peak_bytes"]) for row in rows_of(folder, "spans")]
    assert peaks["stage"] == peaks["event"]


def test_the_context_has_an_entry_of_its_own(tmp_path: Path) -> None:
    recorded(tmp_path, VIDEO)
    entries = [row for row in rows_of(tmp_path, "ledger") if row["account"] == "context"]
    spans = {row["span_id"]: row["path"] for row in rows_of(tmp_path, "spans")}
    assert [spans[row["span_id"]] for row in entries] == ["device.init"]
    assert entries[0]["bytes"] > 100 * MIB


def test_running_out_of_memory_leaves_a_valid_recording(tmp_path: Path) -> None:
    told = recorded(tmp_path, TOO_MUCH)
    assert told["error"] == "OutOfMemoryError"
    assert_exact(told)
    path, step, allocated, reserved = told["failure"]
    assert (path, step) == ("denoise/dit.block", 1)
    assert 64 * MIB <= allocated <= reserved
    assert [row["requested_bytes"] for row in rows_of(tmp_path, "allocs") if row["action"] == "oom"] == [
        2**50
    ]
    failed = {row["path"]: row["failed"] for row in rows_of(tmp_path, "spans")}
    assert failed == {"device.init": False, "denoise/dit.block": True, "denoise": True}


def test_a_device_that_fails_leaves_a_valid_recording(tmp_path: Path) -> None:
    """After an assertion in a kernel every call to CUDA fails, the recorder's own included."""
    told = recorded(tmp_path, FAULT, asks=False)
    assert told["error"] == "AcceleratorError"
    assert told["failure"][:2] == ["denoise/dit.block", 1]
    failed = {row["path"]: row["failed"] for row in rows_of(tmp_path, "spans")}
    assert failed == {"denoise/dit.block": True, "denoise": True}


def test_what_another_process_takes_is_its_own_and_peaks_of_the_device_are_measured(tmp_path: Path) -> None:
    recorded(tmp_path, NEIGHBOUR, asks=False)
    spans = {row["name"]: row for row in rows_of(tmp_path, "spans")}
    denoise = spans["denoise"]["span_id"]
    grown: dict[str, int] = {}
    for row in rows_of(tmp_path, "ledger"):
        if row["span_id"] == denoise:
            grown[row["account"]] = grown.get(row["account"], 0) + row["bytes"]
    assert grown["others"] >= 2 * 2**30
    assert grown.get("libraries", 0) < 64 * MIB
    decode, save = spans["decode"], spans["save"]
    assert decode["num_samples"] >= 3
    assert 4 * 2**30 <= decode["device_used_peak_bytes"] <= decode["device_used_bound_bytes"] < 7 * 2**30
    assert save["device_used_bound_bytes"] >= 4 * 2**30
    if save["num_samples"] == 0:
        assert save["device_used_peak_bytes"] < 2 * 2**30
