"""Recording on a device where others work beside the model's thread: autograd, threads, the program's own history.

Each run is a process of its own. RECORD_S sets the seconds of the long ones.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_recorder_gpu import ROOT, assert_exact, recorded, rows_of

pytestmark = pytest.mark.gpu

RECORD_S = float(os.environ.get("RECORD_S", "10"))

TRAINING = """
from torch import nn
layer = lambda: nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, dropout=0.0)
with span("script"):
    model = nn.Sequential(*(layer() for _ in range(6)), nn.Linear(256, 8000)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(3):
        with span("train_step", step=step):
            with span("forward"):
                loss = torch.logsumexp(model(torch.randn(8, 512, 256, device="cuda")), -1).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
"""
LONG = """
import threading, time
def other():
    while not done.is_set():
        torch.empty(5_000, device="cuda")
        time.sleep(0.002)
done = threading.Event()
with span("device.init"):
    torch.zeros(1, device="cuda")
threads = [threading.Thread(target=other) for _ in range(THREADS)]
for thread in threads:
    thread.start()
with span("script"):
    began, count = time.monotonic(), 0
    while time.monotonic() - began < SECONDS:
        kept = [torch.empty(1000 * (1 + number % 7), device="cuda") for number in range(100)]
        count += 100
        del kept
        ahead = count * 3 / RATE - (time.monotonic() - began)
        if ahead > 0:
            time.sleep(ahead)
done.set()
for thread in threads:
    thread.join()
"""
MANY_SPANS = """
import threading
done = threading.Event()
def other():
    while not done.is_set():
        torch.empty(5_000, device="cuda")
with span("device.init"):
    torch.zeros(1, device="cuda")
threads = [threading.Thread(target=other) for _ in range(2)]
for thread in threads:
    thread.start()
for step in range(4000):
    with span("denoise", step=step):
        kept = [torch.empty(1000 * (1 + number % 7), device="cuda") for number in range(20)]
done.set()
for thread in threads:
    thread.join()
"""
OWN_HISTORY = """
import os, pickle
from pathlib import Path
with span("device.init"):
    torch.zeros(1, device="cuda")
torch.cuda.memory._record_memory_history(max_entries=100_000)
torch.cuda.memory._set_memory_metadata("mine")
kept = []
for step in range(600):
    with span("denoise", step=step):
        x = [torch.empty(1000 * (1 + number % 7), device="cuda") for number in range(18)]
        if step % 100 == 0:
            kept.append(torch.empty(20_000_000, device="cuda"))
torch.cuda.memory._dump_snapshot(os.environ["DUMP"])
torch.cuda.memory._record_memory_history(enabled=None)
for step in range(100):
    with span("decode"):
        x = [torch.empty(1000 * (1 + number % 7), device="cuda") for number in range(18)]
"""
DIRECT = """
torch.cuda.init()
torch.zeros(1, device="cuda")
torch._C._cuda_memorySnapshot(None)
"""


def say(what: str, told: dict[str, Any]) -> None:
    check = told["check"]
    print(
        f"TABLE {what}: {check['num_events']:,} events, {check['num_lost_events']} lost, largest error "
        f"{check['max_error_bytes']} B in {check['num_checks']} checks, longest pause "
        f"{check['longest_pause_ns'] / 1e6:.1f} ms, recording {check['recorder_ns'] / 1e9:.2f} s, {told['problems']}"
    )


def test_what_autograd_allocates_is_in_the_span_that_is_open(tmp_path: Path) -> None:
    told = recorded(tmp_path, TRAINING)
    say("autograd", told)
    assert_exact(told)
    spans = rows_of(tmp_path, "spans")
    assert max(row["allocated_peak_bytes"] for row in spans) == told["allocated"]
    by_id = {row["span_id"]: row["name"] for row in spans}
    owners = [by_id.get(row["span_id"]) for row in rows_of(tmp_path, "allocs") if row["action"] == "alloc"]
    print("TABLE autograd: allocations by span", {name: owners.count(name) for name in set(owners)})
    assert owners.count("train_step") > owners.count("forward") > 0
    assert None not in owners
    steps = [row for row in spans if row["name"] == "train_step"]
    assert max(row["allocated_peak_bytes"] for row in steps) == told["allocated"]


@pytest.mark.timeout(3 * RECORD_S + 120)
@pytest.mark.parametrize(
    ("rate", "threads", "level"),
    [(15_000, 0, "event"), (15_000, 2, "event"), (60_000, 0, "event"), (3_000, 1, "stack")],
)
def test_a_long_span_loses_nothing(tmp_path: Path, rate: int, threads: int, level: str) -> None:
    seconds = RECORD_S if rate == 15_000 and not threads else min(RECORD_S, 10)
    work = LONG.replace("SECONDS", str(seconds)).replace("RATE", str(rate)).replace("THREADS", str(threads))
    told = recorded(tmp_path, work, level=level, timeout_s=2 * seconds + 110)
    say(f"one span, {rate:,} events/s, {threads} threads, {level}, {seconds:.0f} s", told)
    assert_exact(told)
    assert told["problems"] == []
    spans = {row["span_id"]: row["name"] for row in rows_of(tmp_path, "spans")}
    found = {spans.get(row["span_id"]) for row in rows_of(tmp_path, "allocs") if row["action"] == "alloc"}
    assert "script" in found


def test_spans_beside_threads_that_allocate_lose_nothing(tmp_path: Path) -> None:
    told = recorded(tmp_path, MANY_SPANS)
    say("4,000 spans beside two threads", told)
    assert told["check"]["num_lost_events"] == 0
    assert told["check"]["replayed_allocated_peak_bytes"] == told["allocated"]
    assert told["problems"] == []


def dumped(path: Path) -> list[tuple[str, int, str, bool]]:
    trace = pickle.loads(path.read_bytes())["device_traces"][0]
    return [
        (event["action"], event["size"], event["user_metadata"], bool(event.get("frames"))) for event in trace
    ]


def test_a_program_that_records_history_itself_has_it_whole_and_so_have_we(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUMP", str(tmp_path / "alone.pickle"))
    program = "import torch\nfrom ray_memprof.recorder.spans import span\n" + OWN_HISTORY
    settings = {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=110, env={**os.environ, **settings}
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = dumped(tmp_path / "alone.pickle")
    for level in ("event", "stack"):
        folder = tmp_path / level
        folder.mkdir()
        monkeypatch.setenv("DUMP", str(folder / "dump.pickle"))
        told = recorded(folder, OWN_HISTORY, level=level)
        say(f"own history, {level}", told)
        assert_exact(told)
        assert told["problems"] == []
        own = dumped(folder / "dump.pickle")
        print(f"TABLE own history, {level}: dump has {len(own):,} events, alone {len(alone):,}")
        assert own == alone
        rows = [row for row in rows_of(folder, "allocs") if row["action"] == "alloc"]
        assert len(rows) >= 700 * 18
    assert len(alone) > 600 * 18 * 3 - 200


def test_who_calls_torch_c_itself_is_told(tmp_path: Path) -> None:
    told = recorded(tmp_path, DIRECT)
    say("direct", told)
    assert len(told["problems"]) == 1
    assert "_cuda_memorySnapshot" in told["problems"][0]


def test_another_allocator_is_told_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import test_recorder_gpu as module

    monkeypatch.setattr(
        module.subprocess,
        "run",
        lambda *arguments, run=subprocess.run, **options: run(
            *arguments,
            **{**options, "env": {**options["env"], "PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}},
        ),
    )
    told = recorded(tmp_path, 'with span("denoise"):\n    kept = torch.zeros(10_000_000, device="cuda")')
    say("cudaMallocAsync", told)
    assert told["problems"] == [
        "the allocator (cudaMallocAsync) reports no events, only its counters are recorded"
    ]
    (row,) = rows_of(tmp_path, "spans")
    assert row["allocated_peak_bytes"] >= 40_000_000


def test_a_worker_that_is_forked_after_cuda_has_started_ends(tmp_path: Path) -> None:
    work = """
from torch.utils.data import DataLoader, TensorDataset
with span("script"):
    torch.zeros(1, device="cuda")
    loader = DataLoader(TensorDataset(torch.arange(100.0)), num_workers=2, multiprocessing_context="fork", timeout=30)
    assert sum(1 for _ in loader) == 100
"""
    told = recorded(tmp_path, work)
    say("forked workers", told)
    assert (told["error"], told["problems"]) == ("", [])
    assert json.dumps(told["check"])
