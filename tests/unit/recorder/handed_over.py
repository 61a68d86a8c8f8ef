"""What a recorder hands over to be written: readings, spans, events, whole parcels. Without torch."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from ray_memprof.recorder.clock import WallTimes
from ray_memprof.recorder.flag import Flag
from ray_memprof.recorder.meters.meter import Batch, Reading
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.rows import (
    Claim,
    Collective,
    Communicator,
    Entry,
    Owner,
    Parcel,
    Sample,
    SpanRecord,
)
from ray_memprof.recorder.writer import WriterPlan

MIB = 2**20
PATHS = os.pathsep.join(sys.path)
"""Where programs find the modules of these tests."""


def reading(allocated: int = 0, *, used: int = 0, t_ns: int = 1, num_allocs: int = 0) -> Reading:
    return Reading(t_ns, allocated, allocated, allocated, used, 5, -1, -1, -1, num_allocs, 0, 0)


def record(span_id: int, parent_id: int = 0, *, start: Reading, end: Reading) -> SpanRecord:
    return SpanRecord(
        span_id=span_id, parent_id=parent_id, name="decode", path="decode", stage="decode", component="vae",
        module=None, step=None, block=None, branch=None, depth=0, start=start, end=end,
    )  # fmt: skip


def event(action: str, address: int, size: int, span: str = "0", **more: Any) -> dict[str, Any]:
    return {
        "action": action, "addr": address, "size": size, "stream": 0, "time_us": 1, "user_metadata": span, **more
    }  # fmt: skip


def no_rest() -> None:
    """Nobody needs Python's lock meanwhile."""


def plan(folder: Path) -> WriterPlan:
    options = RecordingOptions(run_dir=folder, device="cuda:0", device_total_bytes=100 * MIB)
    return WriterPlan(options=options, has_blocks=True)


def parcels(num: int, per_parcel: int = 300) -> Iterator[Parcel]:
    """What a recorder hands over: events of spans, what is held before them, claims, every kind of row."""
    random, live = Random(7), dict[int, int]()
    block = {"address": 0, "size": MIB, "requested_size": 7, "state": "active_allocated"}
    segments = [
        {"address": 0, "total_size": 64 * MIB, "stream": 0, "is_expandable": False, "segment_pool_id": (0, 1),
         "blocks": [block, {"address": MIB, "size": 63 * MIB, "state": "inactive"}]}
    ]  # fmt: skip
    owner = Owner("GPT.lm_head.weight", "GPT", "weight", "float32")
    for number in range(num):
        events = []
        for place in range(per_parcel):
            address = MIB * (1 + place % 50)
            if address in live:
                size = live.pop(address)
                events += [
                    event("free_requested", address, size, ""),
                    event("free_completed", address, size, ""),
                ]
            live[address] = random.randrange(1, MIB)
            events.append(
                event("alloc", address, live[address], str(number + 1), compile_context="N/A", frames=[])
            )
        for count, one in enumerate(events):
            one["time_us"] = 1_000_000 * (number + 1) + count
        batch = Batch(
            events, reading(t_ns=5, num_allocs=9), -1, {"expandable_segments": False}, number, None, segments
        )
        if number % 2:
            batch = Batch(events, None, times=WallTimes(10**18, 10**18 + 5, 1.0, 0))
        yield Parcel(
            base=segments if number == 0 else [],
            base_ns=3,
            batch=batch if number % 5 != 4 else None,
            stamps=[(1_000_000 * (number + 1), number + 1)],
            claims=[Claim(1_000_000 * (number + 1) + len(events), MIB, live[MIB], owner)],
            categories={number + 1: "output"},
            spans=[record(number + 1, start=reading(1), end=reading(2, used=3, t_ns=9))],
            ledger=[Entry(number, 1, "nccl", 3)],
            collectives=[Collective(1, 2, 3, "all_reduce", 4, "default", 2, 5)],
            communicators=[Communicator(1, "default", "nccl", 2, "0,1", 3, None, 4, "growth")],
            samples=[Sample(1, 2, None, 4, 5, 6, 7, 0.5)],
            seal=number == 3,
            done=Flag() if number == 3 else None,
        )
