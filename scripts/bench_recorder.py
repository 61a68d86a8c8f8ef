#!/usr/bin/env python3
"""What a span and an event cost the recorder, by level and meter, and what its buffers hold at a million events.

    python scripts/bench_recorder.py                          # the host meter, and the CUDA meter where there is a GPU
    python scripts/bench_recorder.py --spans 2000 --events 100000
    python scripts/bench_recorder.py --recording 50000000     # only this: a whole recording, with a fake allocator

Spans are empty and two deep, so that nothing but the recorder is timed; their cost is what the thread that runs the
model loses. Events are timed through the scribe's thread, from a batch to rows in the store. How long that thread holds
Python's lock is measured on another thread, which calls small operations and never waits. The last lines are tables of
docs/benchmarks.md. What recording costs a whole video: bench_overhead.py.
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import torch

from ray_memprof.allocator.replay import Replay
from ray_memprof.recorder.meters.host import HostMeter
from ray_memprof.recorder.meters.meter import Batch, Meter, Reading
from ray_memprof.recorder.meters.nvml import open_device
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.recorder import DRAIN_EVENTS, Recorder
from ray_memprof.recorder.rows import Parcel
from ray_memprof.recorder.scribe import Scribe
from ray_memprof.recorder.spans import listening, span
from ray_memprof.recorder.writer import Writer, WriterPlan, Writes, writer_of
from ray_memprof.recorder.writer_process import WriterProcess
from ray_memprof.store.rank_store import RankStore

MIB = 2**20
BUSY_S = 8.0
"""How long a thread of small operations shows how long others hold the lock: longer than events may wait."""
RATES = (5_000, 20_000, 60_000)
"""Events per second; training of a small model makes as many as the last, the decoder of a video 45,000."""
ROUNDS = 3


def meters(*, events: bool) -> Iterator[tuple[str, Meter]]:
    """Every meter that this machine can run."""
    yield "host", HostMeter(events=events)
    if torch.cuda.is_available():
        from ray_memprof.recorder.meters.cuda import CudaMeter

        torch.cuda.init()
        with open_device(index=0) as device:
            yield "cuda", CudaMeter(0, events=events, device=device)


def time_spans(meter: Meter, num_spans: int) -> float:
    """Microseconds that one span costs the thread that opens it."""
    with tempfile.TemporaryDirectory() as folder:
        scribe = Scribe(Writer(RankStore(Path(folder), 0), Replay(), categories={}))
        recorder = Recorder(0, meter, scribe)
        recorder.start()
        with listening(recorder), span("warm.up"):
            pass
        began = time.perf_counter()
        with listening(recorder):
            for number in range(num_spans // 2):
                with span("denoise", step=number), span("dit.block", index=0):
                    pass
        cost_s = time.perf_counter() - began
        recorder.close()
    return cost_s / num_spans * 1e6


def time_silent(num_spans: int) -> float:
    """Microseconds of a span that nobody hears."""
    began = time.perf_counter()
    for number in range(num_spans // 2):
        with span("denoise", step=number), span("dit.block", index=0):
            pass
    return (time.perf_counter() - began) / num_spans * 1e6


def batches(num_events: int) -> Iterator[list[dict[str, Any]]]:
    """Events of blocks that come and go inside one segment, as torch gives them, each batch made when asked for."""
    yield [event("segment_alloc", 0, 64 * MIB)]
    for first in range(0, num_events, DRAIN_EVENTS):
        made = []
        for number in range(first // 3, (first + DRAIN_EVENTS) // 3):
            address, size = number % 16 * 4 * MIB, 512 * (1 + number % 1000)
            made += [event(action, address, size) for action in ("alloc", "free_requested", "free_completed")]
        yield made


def event(action: str, address: int, size: int) -> dict[str, Any]:
    """One of torch's device_traces."""
    return {
        "action": action, "addr": address, "size": size, "stream": 0, "time_us": time.time_ns() // 1000,
        "user_metadata": str(address % 100), "compile_context": "N/A",
    }  # fmt: skip


def writers(folder: Path) -> Iterator[tuple[str, Writes]]:
    """Every way to write, each in a folder of its own."""
    for name, kind in (("in the program", writer_of), ("in a process of its own", WriterProcess)):
        options = RecordingOptions(run_dir=folder / name, device="cuda:0")
        plan = WriterPlan(options=options, has_blocks=True)
        yield name, kind(plan, Problems())


def time_events(writer: Writes, num_events: int) -> tuple[float, float, int]:
    """Microseconds per event, those in which this process works; and events that waited at most."""
    scribe = Scribe(writer)
    spent_s = worked_s = 0.0
    scribe.deliver(Parcel())  # waits until a process has started
    for events in batches(num_events):
        # One batch at a time, so that what is timed is the scribe alone.
        began, began_work = time.perf_counter(), time.process_time()
        scribe.deliver(Parcel(batch=Batch(events, None)))
        while scribe.num_waiting_events:
            time.sleep(0.001)
        spent_s += time.perf_counter() - began
        worked_s += time.process_time() - began_work
    scribe.close()
    _check(scribe)
    return spent_s / num_events * 1e6, worked_s / num_events * 1e6, scribe.most_waiting_events


def _check(scribe: Scribe) -> None:
    if scribe.error is not None:
        raise scribe.error
    assert scribe.problems.texts == ()


def wait(deliver: Iterator[list[dict[str, Any]]], rate: int, scribe: Scribe | None) -> tuple[float, float]:
    """What a thread of small operations loses while it delivers `rate` events a second.

    Returns:
        The share of its time that it waits, and its operations a second.
    """
    left, right = torch.zeros(16), torch.ones(16)
    began, began_cpu, num, num_done = time.perf_counter(), time.thread_time(), 0, 0
    while (took := time.perf_counter() - began) < BUSY_S:
        for _ in range(100):
            torch.add(left, right)
        num_done += 100
        if took > num / rate:
            events = next(deliver)
            num += len(events)
            if scribe is not None:
                scribe.deliver(Parcel(batch=Batch(events, None)))
    return 1.0 - (time.thread_time() - began_cpu) / took, num_done / took


def time_beside(rate: int) -> dict[str, tuple[float, float, float]]:
    """What a busy thread loses, alone and beside each way to write, in turn; medians.

    Returns:
        By way: as wait() gives it, and the seconds that the writing takes on after the last event.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(ROUNDS):
        found.setdefault("alone", []).append((*wait(batches(2 * int(BUSY_S) * rate), rate, None), 0.0))
        with tempfile.TemporaryDirectory() as folder:
            for name, writer in writers(Path(folder)):
                scribe = Scribe(writer)
                share = wait(batches(2 * int(BUSY_S) * rate), rate, scribe)
                began = time.perf_counter()
                scribe.close()
                found.setdefault(name, []).append((*share, time.perf_counter() - began))
                _check(scribe)
    return {
        name: (statistics.median(a), statistics.median(b), statistics.median(c))
        for name, one in found.items()
        for a, b, c in [zip(*one, strict=True)]
    }


def resident_growth(num_events: int) -> float:
    """Bytes by which the process grows for each event that waits in a batch."""
    gc.collect()
    process = psutil.Process(os.getpid())
    before: int = process.memory_info().rss
    held = list(batches(num_events))
    grown: int = process.memory_info().rss - before
    return grown / sum(map(len, held))


class FakeAllocator:
    """A meter that repeats the blocks of a training step: they are allocated, and freed in another order.

    Args:
        num_live: blocks that a step holds at most.
    """

    source, has_events, is_on = "cpu", True, True

    def __init__(self, num_live: int = 600) -> None:
        random = Random(0)
        self._sizes = [512 * random.randrange(1, 40_000) for _ in range(num_live)]
        self._order = random.sample(range(num_live), num_live)
        self._events: list[dict[str, Any]] = []
        self._held = self._top = self._num_allocs = 0
        self._stamp = "0"

    def step(self) -> int:
        """Allocate and free all blocks once; returns the number of events."""
        for address, size in enumerate(self._sizes):
            self._note("alloc", address, size)
            self._held += size
        self._num_allocs += len(self._sizes)
        self._top = max(self._top, self._held)
        for address in self._order:
            self._note("free_requested", address, self._sizes[address])
            self._note("free_completed", address, self._sizes[address])
            self._held -= self._sizes[address]
        return 3 * len(self._sizes)

    def _note(self, action: str, address: int, size: int) -> None:
        self._events.append(
            {
                "action": action, "addr": 0x7F00_0000_0000 + address * 2**25, "size": size, "stream": 0,
                "time_us": time.time_ns() // 1000, "user_metadata": self._stamp,
            }
        )  # fmt: skip

    def start(self) -> None:
        """As a meter does."""

    def stop(self) -> None:
        """As a meter does."""

    def read(self) -> Reading:
        """What is held."""
        return Reading(
            time.time_ns(),
            self._held,
            self._held,
            self._held,
            self._held,
            0,
            -1,
            -1,
            -1,
            self._num_allocs,
            0,
            0,
        )

    peek = read

    def answers(self) -> bool:
        """Always."""
        return True

    def stamp(self, span_id: int) -> None:
        """As a meter does."""
        self._stamp = str(span_id)

    def pending(self, reading: Reading) -> int:
        """Events that wait."""
        return len(self._events)

    def drain(self) -> Batch:
        """Take them."""
        events, self._events = self._events, []
        return Batch(events, self.read(), self._num_allocs)

    def base_segments(self) -> list[Any]:
        """Nothing."""
        return []

    def peaks(self) -> tuple[int, int]:
        """The peaks of all that was held."""
        return self._top, self._top


def record(num_events: int) -> None:
    """Record `num_events` events, one span per step, and print what that took."""
    gc.collect()
    process = psutil.Process(os.getpid())
    with tempfile.TemporaryDirectory() as folder:
        scribe = Scribe(Writer(RankStore(Path(folder), 0), Replay(), categories={}))
        meter = FakeAllocator()
        recorder = Recorder(0, meter, scribe)
        recorder.start()
        before = process.memory_info().rss
        done, step, grown = 0, 0, []
        began = time.perf_counter()
        with listening(recorder):
            while done < num_events:
                with span("train_step", step=step):
                    done += meter.step()
                step += 1
                if step % 100 == 0:
                    grown.append(process.memory_info().rss - before)
        recorder.close()
        took_s = time.perf_counter() - began
        written = sum(path.stat().st_size for path in Path(folder).glob("tables/allocs/**/*.parquet"))
    check = recorder.check()
    assert check is not None
    is_exact = (check.max_error_bytes, check.num_lost_events) == (0, 0) and (
        check.allocated_peak_bytes == check.replayed_allocated_peak_bytes
    )
    half = len(grown) // 2
    print(
        "| events | seconds | MiB grown, first half / second half / at most | bytes an event on disk | replay |"
    )
    print("|---|---|---|---|---|")
    print(
        f"| {check.num_events:,} | {took_s:.0f} | {max(grown[:half]) / MIB:.0f} / {max(grown[half:]) / MIB:.0f} / "
        f"{max(grown) / MIB:.0f} | {written / check.num_events:.2f} | {'exact' if is_exact else 'not exact'} |"
    )


def main() -> None:
    """Measure, then print two tables, or one of a whole recording."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spans", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument(
        "--recording", type=int, default=0, help="measure only a whole recording, of so many events"
    )
    arguments = parser.parse_args()
    if arguments.recording:
        record(arguments.recording)
        return
    rows = [("none", "-", time_silent(arguments.spans))]
    for level in ("stage", "event"):
        for name, meter in meters(events=level == "event"):
            rows.append((name, level, time_spans(meter, arguments.spans)))  # noqa: PERF401 - it runs a recording
            print(f"{name} meter, level {level}: done", file=sys.stderr)
    print("| meter | level | us per span |\n|---|---|---|")
    for name, level, span_us in rows:
        print(f"| {name} | {level} | {span_us:.2f} |")
    _print_events(arguments.events)
    _print_beside()


def _print_events(num_events: int) -> None:
    waiting_bytes = resident_growth(min(num_events, 200_000))
    print("\n| written | us per event | of these in the program | waiting at most | MiB of buffers |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, writer in writers(Path(folder)):
            cost_us, own_us, most = time_events(writer, num_events)
            print(f"| {name} | {cost_us:.2f} | {own_us:.2f} | {most:,} | {most * waiting_bytes / MIB:.1f} |")


def _print_beside() -> None:
    print(
        "\n| events/s | written | a busy thread waits | its operations, of those alone | s to write the rest |"
    )
    print("|---|---|---|---|---|")
    for rate in RATES:
        found = time_beside(rate)
        for name, (share, per_s, end_s) in found.items():
            print(f"| {rate:,} | {name} | {share:.2%} | {per_s / found['alone'][1]:.1%} | {end_s:.2f} |")


if __name__ == "__main__":
    main()
