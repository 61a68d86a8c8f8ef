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

from ray_memprof.allocator.replay import BlockReplay, Replay
from ray_memprof.recorder.meters.host import HostMeter
from ray_memprof.recorder.meters.meter import Batch, Meter, Reading
from ray_memprof.recorder.meters.nvml import open_device
from ray_memprof.recorder.recorder import DRAIN_EVENTS, Recorder
from ray_memprof.recorder.rows import Parcel
from ray_memprof.recorder.scribe import Scribe
from ray_memprof.recorder.spans import listening, span
from ray_memprof.store.rank_store import RankStore

MIB = 2**20
WORK = 400_000
"""Small operations of the thread that shows how long others hold the lock: about two seconds."""
RATES = (5_000, 20_000, 45_000)
"""Events per second; the decoder of a video makes as many as the last."""


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
        scribe = Scribe(RankStore(Path(folder), 0), Replay(), categories={})
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


def time_events(num_events: int) -> tuple[float, int]:
    """Microseconds of the scribe's thread per event, and events that waited at most."""
    with tempfile.TemporaryDirectory() as folder:
        scribe = Scribe(RankStore(Path(folder), 0), BlockReplay(), categories={})
        spent_s = 0.0
        for events in batches(num_events):
            # One batch at a time, so that what is timed is the scribe alone.
            began = time.perf_counter()
            scribe.deliver(Parcel(batch=Batch(events, None)))
            while scribe.num_waiting_events:
                time.sleep(0.0002)
            spent_s += time.perf_counter() - began
        scribe.close()
        if scribe.error is not None:
            raise scribe.error
        return spent_s / num_events * 1e6, scribe.most_waiting_events


def wait(deliver: Iterator[list[dict[str, Any]]], rate: int, scribe: Scribe | None) -> float:
    """The share of its time that a thread of small operations waits, while it delivers `rate` events a second."""
    left, right = torch.zeros(16), torch.ones(16)
    began, began_cpu, num = time.perf_counter(), time.thread_time(), 0
    for number in range(WORK):
        torch.add(left, right)
        if number % 1000 == 0 and time.perf_counter() - began > num / rate:
            events = next(deliver)
            num += len(events)
            if scribe is not None:
                scribe.deliver(Parcel(batch=Batch(events, None)))
    took = time.perf_counter() - began
    return 1.0 - (time.thread_time() - began_cpu) / took


def time_beside(rate: int) -> tuple[float, float, float]:
    """That share without a scribe, and with one that writes these events; and the seconds that its end then takes."""
    made = list(batches(6 * rate))
    alone, beside, ends = [], [], []
    for _ in range(5):
        alone.append(wait(iter(made), rate, None))
        with tempfile.TemporaryDirectory() as folder:
            scribe = Scribe(RankStore(Path(folder), 0), BlockReplay(), categories={})
            beside.append(wait(iter(made), rate, scribe))
            began = time.perf_counter()
            scribe.close()
            ends.append(time.perf_counter() - began)
    return statistics.median(alone), statistics.median(beside), statistics.median(ends)


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
        scribe = Scribe(RankStore(Path(folder), 0), Replay(), categories={})
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
    cost_us, most = time_events(arguments.events)
    beside = [(rate, *time_beside(rate)) for rate in RATES]
    waiting_bytes = resident_growth(min(arguments.events, 200_000))
    print("| meter | level | us per span |\n|---|---|---|")
    for name, level, span_us in rows:
        print(f"| {name} | {level} | {span_us:.2f} |")
    print("\n| events | us per event (scribe) | waiting at most | bytes per waiting event | MiB of buffers |")
    print("|---|---|---|---|---|")
    buffers_mib = most * waiting_bytes / MIB
    print(f"| {arguments.events:,} | {cost_us:.2f} | {most:,} | {waiting_bytes:.0f} | {buffers_mib:.1f} |")
    print("\n| events/s | a busy thread waits: alone | beside the scribe | s to write the rest at the end |")
    print("|---|---|---|---|")
    for rate, alone, share, end_s in beside:
        print(f"| {rate:,} | {alone:.2%} | {share:.2%} | {end_s:.2f} |")


if __name__ == "__main__":
    main()
