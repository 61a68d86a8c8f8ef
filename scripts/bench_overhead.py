#!/usr/bin/env python3
"""What recording costs on one GPU: the same video without a recorder, at level stage and at level event, in turn.

    python scripts/bench_overhead.py                                    # t2v-1.3B 480P, a CUDA device
    python scripts/bench_overhead.py --task t2v-tiny --device cpu       # a rehearsal, its figures mean nothing

Every round makes the video once per level, in an order that changes from round to round. Each time is divided by the
one without a recorder in the same round, so that a chip that becomes hot or slow has no effect on the ratio. Then a
million events are recorded, to see what the recorder holds. The last lines are the table of docs/benchmarks.md.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.recording import recording
from ray_memprof.recorder.spans import Relay, span
from ray_memprof.recorder.status import ReplayCheck
from ray_memprof.store.level import Level
from wan.config import TASKS, sides_of
from wan.pipeline import Pipeline, Request
from wan.spans import listening

LEVELS = ("off", "stage", "event")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Run:
    """One video made."""

    wall_s: float
    longest_step_gap_s: float
    """Longest time between the end of one step and the beginning of the next."""
    check: ReplayCheck | None


def options_for(level: Level, folder: Path, device: str) -> RecordingOptions:
    """What is recorded of one rank, at `level` into `folder`."""
    if device == "cpu":
        return RecordingOptions(run_dir=folder, device=device, level=level)
    properties = torch.cuda.get_device_properties(0)
    return RecordingOptions(
        run_dir=folder, device="cuda:0", level=level, gpu_index=0, gpu_uuid=f"GPU-{properties.uuid}",
        device_total_bytes=properties.total_memory,
    )  # fmt: skip


def make(pipeline: Pipeline, request: Request, level: str, device: str) -> Run:
    """Make the video once, recorded at `level`."""
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        options = None if level == "off" else options_for(level, Path(folder), device)
        ends: list[float] = []
        relay = listening(Relay()) if options is not None else nullcontext()
        with recording(options) if options is not None else nullcontext() as recorder, relay:
            synchronize(device)
            began = time.perf_counter()
            pipeline.generate(request, on_step=lambda step, steps: ends.append(time.perf_counter()))
            synchronize(device)
            wall_s = time.perf_counter() - began
        return Run(wall_s, max((b - a for a, b in zip(ends, ends[1:], strict=False)), default=0.0),
                   recorder.check() if recorder else None)  # fmt: skip


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def compare(arguments: argparse.Namespace) -> None:
    """Alternating runs of all levels; prints the ratios."""
    task = TASKS[arguments.task]
    tiny = arguments.device == "cpu"
    pipeline = Pipeline(
        task, ckpt_dir=None, device=arguments.device, load_strategy="block", offload_model=False,
        precision="fp32" if tiny else "bf16",
    )  # fmt: skip
    request = Request(prompt="a red fox", steps=arguments.steps, size=sides_of(task.sizes[0]))
    make(pipeline, request, "off", arguments.device)
    ratios: dict[str, list[float]] = {level: [] for level in LEVELS[1:]}
    runs: dict[str, list[Run]] = {level: [] for level in LEVELS}
    for number in range(arguments.rounds):
        turned = LEVELS[number % 3 :] + LEVELS[: number % 3]
        here = {level: make(pipeline, request, level, arguments.device) for level in turned}
        for level, run in here.items():
            runs[level].append(run)
        for level in ratios:
            ratios[level].append(here[level].wall_s / here["off"].wall_s)
        say(f"round {number}: " + ", ".join(f"{level} {here[level].wall_s:.3f} s" for level in LEVELS))
    say(
        "| level | median wall s | paired ratio: median (least - most) | longest pause ms | events | largest error |"
    )
    for level in LEVELS:
        seconds = statistics.median(run.wall_s for run in runs[level])
        if level == "off":
            say(f"| off | {seconds:.3f} | 1 | - | - | - |")
            continue
        checks = [run.check for run in runs[level] if run.check is not None]
        say(
            f"| {level} | {seconds:.3f} | {statistics.median(ratios[level]):.4f} "
            f"({min(ratios[level]):.4f} - {max(ratios[level]):.4f}) "
            f"| {max(check.longest_pause_ns for check in checks) / 1e6:.1f} "
            f"| {checks[-1].num_events} | {max(check.max_error_bytes for check in checks)} B |"
        )


def fill(arguments: argparse.Namespace) -> None:
    """Record many events, and print by how much the process grew."""
    with tempfile.TemporaryDirectory() as folder:
        process = psutil.Process()
        before = most = process.memory_info().rss
        with recording(options_for("event", Path(folder), arguments.device)) as recorder:
            began = time.perf_counter()
            for number in range(arguments.events // 60):
                with span("fill", step=number):
                    for size in range(20):
                        torch.empty(4096 * (size + 1), dtype=torch.uint8, device=arguments.device)
                if number % 100 == 0:
                    most = max(most, process.memory_info().rss)
            wall_s = time.perf_counter() - began
            most = max(most, process.memory_info().rss)
        check = recorder.check()
        written = sum(file.stat().st_size for file in Path(folder).glob("tables/allocs/**/*.parquet"))
    assert check is not None
    say(
        f"{check.num_events} events in {wall_s:.1f} s: process grew by {(most - before) / MIB:.0f} MiB, "
        f"longest pause {check.longest_pause_ns / 1e6:.1f} ms, {written / max(1, check.num_events):.2f} bytes an event "
        f"on disk, {check.num_lost_events} lost, largest error {check.max_error_bytes} B"
    )


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Read the flags and run both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="t2v-1.3B", choices=list(TASKS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args()
    say(f"torch {torch.__version__}, {torch.cuda.get_device_name() if arguments.device == 'cuda' else 'CPU'}")
    compare(arguments)
    fill(arguments)


if __name__ == "__main__":
    main()
