"""Time and memory of importing a snapshot of N events, and of reading it with pickle, side by side.

    python scripts/bench_import.py --events 1000000
    python scripts/bench_import.py --events 1000000 --stacks

Makes the snapshot (a caching allocator's habits: few sizes, the same addresses again and again, a training step that
repeats), then imports it and loads and replays it in processes of their own; prints a line for each. Exits with 1 if
the peaks differ by a byte.
"""

import argparse
import json
import pickle
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import in_process, proc_bytes

MIB = 2**20
LIVE = 400
"""Tensors that are alive at once, roughly."""
DEPTH = 30
CALLERS = 500
"""Different Python stacks."""


def make(path: Path, num_events: int, *, stacks: bool) -> None:
    """Write a snapshot as torch would dump it; LIVE tensors were there already when recording began."""
    chance = random.Random(0)
    sizes = [int(2 ** chance.uniform(9, 27)) for _ in range(60)]
    frames = [
        [
            {"name": f"call{level}_{caller % (level + 2)}", "filename": "model.py", "line": level}
            for level in range(DEPTH)
        ]
        for caller in range(CALLERS)
    ]
    free: dict[int, list[int]] = {}
    used: list[tuple[int, int]] = []
    events: list[dict[str, Any]] = []
    top, now_us = 0x7F00_0000_0000, 1_700_000_000_000_000

    def tell(action: str, address: int, size: int, caller: int = 0) -> None:
        nonlocal now_us
        now_us += chance.randrange(40)
        events.append(
            {"action": action, "addr": address, "size": size, "stream": 0, "time_us": now_us,
             "compile_context": "N/A" + "", "user_metadata": f"step {len(events) // 5000}",
             "frames": frames[caller] if stacks and action == "alloc" else []}
        )  # fmt: skip

    segments: dict[int, int] = {}
    while len(events) < num_events + 3 * LIVE:
        size = chance.choice(sizes)
        if not free.get(size):
            segment = -(-max(size, 2 * MIB) // (2 * MIB)) * 2 * MIB
            tell("segment_alloc", top, segment)
            segments[top] = segment
            free[size] = [top]
            top += segment
        address = free[size].pop()
        tell("alloc", address, size, chance.randrange(CALLERS))
        used.append((address, size))
        if len(used) > LIVE:
            address, size = used.pop(chance.randrange(LIVE))
            tell("free_requested", address, size)
            tell("free_completed", address, size)
            free[size].append(address)
    snapshot = {
        "segments": [_segment(start, size, dict(used)) for start, size in segments.items()],
        "device_traces": [events[-num_events:]],
        "allocator_settings": {
            "expandable_segments": False,
            "max_split_size": -1,
            "roundup_power2_divisions": {},
        },
        "external_annotations": [],
    }
    with open(path, "wb") as file:
        pickle.dump(snapshot, file, protocol=4)


def _segment(start: int, size: int, used: dict[int, int]) -> dict[str, Any]:
    blocks = []
    taken = 0
    if start in used:
        wanted = max(512, -(-used[start] // 512) * 512)
        rest = size - wanted
        taken = wanted if (rest >= 512 if wanted <= MIB else rest > MIB) else size
        blocks.append({"address": start, "size": taken, "state": "active_allocated"})
    if taken < size:
        blocks.append({"address": start + taken, "size": size - taken, "state": "inactive"})
    return {
        "device": 0,
        "address": start,
        "total_size": size,
        "stream": 0,
        "is_expandable": False,
        "blocks": blocks,
    }


def imported(path: Path, folder: Path) -> tuple[int, int]:
    """The peaks after an import."""
    from ray_memprof.formats.torch_snapshot.read import import_rank

    written = import_rank(path, folder, 0).written
    return written.allocated_peak, written.reserved_peak


def loaded(path: Path, folder: Path) -> tuple[int, int]:
    """The peaks by pickle and a replay that starts with the blocks that the import finds; nothing is written."""
    from ray_memprof.allocator.before_trace import BeforeTrace
    from ray_memprof.allocator.replay import BlockReplay

    with open(path, "rb") as file:
        snapshot = pickle.load(file)
    events, witness, replay = snapshot["device_traces"][0], BeforeTrace(), BlockReplay()
    witness.see(*([event[key] for event in events] for key in ("action", "addr", "size")))
    replay.prime(witness.segments_at_start(snapshot["segments"], replay.rules), 0)
    replay.feed(events)
    return replay.allocated_peak, replay.reserved_peak


def measure(way: str, path: Path, folder: Path) -> dict[str, Any]:
    """Run one of the two in a process of its own."""
    figures = in_process(__file__, "--measure", way, "--file", path, "--folder", folder)
    print(
        f"{way}: {figures['seconds']:.1f} s, {figures['rss'] / MIB:,.0f} MiB resident at most, "
        f"{figures['rss'] - figures['before']:,} bytes more than before "
        f"({(figures['rss'] - figures['before']) / path.stat().st_size:.2f} x the file), peaks {figures['peaks']}"
    )
    return figures


def main() -> int:
    """Parse the command line, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument(
        "--stacks", action="store_true", help=f"a Python stack of {DEPTH} frames an allocation"
    )
    parser.add_argument("--only", choices=("imported", "loaded"), help="leave the other one out")
    parser.add_argument("--measure", choices=("imported", "loaded"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        import ray_memprof.formats.torch_snapshot.read  # noqa: F401 - libraries are not what is measured

        before = proc_bytes()["VmHWM"]
        start = time.perf_counter()
        peaks = {"imported": imported, "loaded": loaded}[args.measure](args.file, args.folder)
        seconds = time.perf_counter() - start
        rss = proc_bytes()["VmHWM"]
        print(json.dumps({"seconds": seconds, "rss": rss, "before": before, "peaks": peaks}))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rank0.pickle")
        make(path, args.events, stacks=args.stacks)
        print(f"{args.events:,} events, {path.stat().st_size / MIB:,.0f} MiB")
        ways = [args.only] if args.only else ["imported", "loaded"]
        results = [measure(way, path, Path(folder))["peaks"] for way in ways]
    return 0 if results.count(results[0]) == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
