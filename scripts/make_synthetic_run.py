"""Makes a run folder as ranks would leave it, of any size, without a GPU: for benchmarks, tests and trials.

    python scripts/make_synthetic_run.py --out profiler_logs/synthetic/a --ranks 8 --events 1000000 --finish

synthetic_player.py plays a text-to-video run through an allocator with free lists; here the steps of its denoise loop
are repeated, with about 60 events a span. Every figure in spans follows from the events, so that a replay agrees with
them to the byte. Rank 0 decodes, the others do not. The same arguments make the same rows. `--finish` does what the
driver does at the end of a run. `--pools` plays CUDA graphs and a torch.cuda.MemPool, for the question `pools`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from synthetic_player import ACTIONS, MIB, PLAIN, Variant, play
from synthetic_player import Skew as Skew  # for those who want a Variant with one

from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.run_files import table_dir
from ray_memprof.store.schema import CATEGORIES, stack_columns

START_NS = 1_800_000_000_000_000_000
DEVICE_BYTES = 139 * 1024 * MIB
SAMPLE_US = 100_000
BATCH_ROWS = 16_384
POOLS = Variant(num_graphs=2, graph_bytes=6 * 1024 * MIB, shared_bytes=512 * MIB)
"""With --pools: the peak is where the graphs are."""
PEAKS = ("allocated_peak_bytes", "reserved_peak_bytes")
WORDS = ("path", "name", "stage", "component", "branch")


class Rows:
    """What a rank recorded: the second step of play() repeated, and the figures of spans summed from the events."""

    def __init__(self, rank: int, events: int, blocks: int, variant: Variant = PLAIN) -> None:
        player, step, spans, (start_us, end_us) = play(rank, blocks, variant)
        length = step.stop - step.start
        repeats = max(1, 1 + (events - len(player.events["size"])) // length)
        columns = {name: np.array(values) for name, values in player.events.items()}
        index, copy = _repeat(len(columns["size"]), step, repeats)
        self.events = {name: values[index] for name, values in columns.items()}
        noise = np.random.default_rng(rank).exponential(10, len(index)).astype(np.int64)
        noise[self.events["action"] == ACTIONS.index("free_completed")] = 0
        self._late_us = np.concatenate([[0], np.cumsum(noise)])
        self.events["time_us"] += copy * (end_us - start_us) + self._late_us[1:]
        inside = self.events["span_id"] > 0
        self.events["span_id"] += np.where(inside, copy * (spans.stop - spans.start), 0)
        action, size = self.events["action"], self.events["size"]
        signs = {"allocated": (0, 1), "reserved": (3, 4), "active": (0, 2)}
        self.curves = {
            what: np.cumsum(size * (action == plus) - size * (action == minus), dtype=np.int64)
            for what, (plus, minus) in signs.items()
        }
        self._pools = player.pools
        self.ledger, self._growths = player.ledger, player.growths
        self._spans = player.spans
        self._at, self._copy = _repeat(len(player.spans), spans, repeats)
        self._length, self._count = length, spans.stop - spans.start
        self._step_us = end_us - start_us

    def spans(self) -> dict[str, Any]:
        """Columns of the table spans."""
        at, copy = self._at, self._copy
        get = {
            key: np.array([row[key] for row in self._spans])[at] for key in self._spans[0] if key not in WORDS
        }
        first, last = (get[key].astype(np.int64) + copy * self._length for key in ("first", "last"))
        columns: dict[str, Any] = {"span_id": get["span_id"] + copy * self._count}
        columns["parent_id"] = np.where(get["depth"] > 0, get["parent_id"] + copy * self._count, 0)
        for key in WORDS:
            columns[key] = (
                pa.array([row[key] for row in self._spans], pa.string()).dictionary_encode().take(at)
            )
        steps = [row["step"] for row in self._spans]
        columns["step"] = [
            None if steps[i] is None else steps[i] + int(c) for i, c in zip(at.tolist(), copy, strict=True)
        ]
        columns["block"] = pa.array([row["block"] for row in self._spans], pa.int32()).take(at)
        columns["depth"] = get["depth"].astype(np.int16)
        for key, event in (("start", first), ("end", last)):
            time_us = get[f"{key}_us"] + copy * self._step_us + self._late_us[event]
            columns[f"{key}_ns"] = START_NS + 1000 * time_us
        columns["failed"] = np.zeros(len(at), bool)
        for what, curve in self.curves.items():
            columns.update(_figures(what, curve, first, last))
        outside = {"start": get["outside_start"], "end": get["outside_end"]}
        for end, size in outside.items():
            columns[f"device_used_{end}_bytes"] = columns[f"reserved_{end}_bytes"] + size
        columns |= self._measured(columns, np.maximum(outside["start"], outside["end"]))
        for end in ("start", "end", "peak"):
            columns[f"host_rss_{end}_bytes"] = np.full(len(at), 4096 * MIB)
        for name, kind in (("num_allocs", 0), ("num_segments", 3)):
            counts = np.concatenate([[0], np.cumsum(self.events["action"] == kind)])
            columns[name] = counts[last] - counts[first]
        return {**columns, "num_retries": np.zeros(len(at), int), "recorder_ns": np.full(len(at), 1500)}

    def _measured(self, spans: dict[str, Any], outside: Any) -> dict[str, Any]:
        """The device memory that samples saw inside each span, and the upper bound of it."""
        samples = self.samples()
        first = np.searchsorted(samples["t_ns"], spans["start_ns"], side="left")
        last = np.searchsorted(samples["t_ns"], spans["end_ns"], side="right")
        ends = np.maximum(spans["device_used_start_bytes"], spans["device_used_end_bytes"])
        # For an empty stretch reduceat gives the value at its beginning, so its result counts only where there is a
        # sample.
        bounds = np.stack([first, last], axis=1).ravel()
        seen = np.maximum.reduceat(np.append(samples["device_used_bytes"], [0, 0]), bounds)[::2]
        peak = np.where(last > first, np.maximum(ends, seen), ends)
        return {
            "num_samples": last - first,
            "device_used_peak_bytes": peak,
            "device_used_bound_bytes": np.maximum(peak, spans["reserved_peak_bytes"] + outside),
        }

    def allocs(self) -> dict[str, Any]:
        """Columns of the table allocs."""
        events = self.events
        num = len(events["size"])
        category = pa.array(
            np.where(events["category"] < 0, 0, events["category"]), pa.int16(), mask=events["category"] < 0
        )
        return {
            "seq": np.arange(num),
            "t_ns": START_NS + 1000 * events["time_us"],
            "action": pa.DictionaryArray.from_arrays(pa.array(events["action"], pa.int16()), list(ACTIONS)),
            "size_bytes": events["size"],
            "requested_bytes": events["size"] - events["size"] % 1000 // 4,
            "address": events["address"],
            "stream": np.zeros(num, np.int64),
            "span_id": events["span_id"],
            "category": pa.DictionaryArray.from_arrays(category, list(CATEGORIES)),
        }  # fmt: skip

    def segment_pools(self) -> dict[str, Any]:
        """Columns of the table segment_pools; without other pools than the default one, it has no rows."""
        is_of_segment = self.events["action"] >= ACTIONS.index("segment_alloc")
        (seq,) = np.nonzero(is_of_segment & (self.events["pool"] > 0))
        return {"seq": seq, "pool": [self._pools[number] for number in self.events["pool"][seq].tolist()]}

    def samples(self) -> dict[str, Any]:
        """Columns of the table samples."""
        times = np.arange(0, self.events["time_us"][-1], SAMPLE_US)
        at = np.searchsorted(self.events["time_us"], times, side="right") - 1
        curves = {what: np.where(at < 0, 0, curve[at]) for what, curve in self.curves.items()}
        return {
            "t_ns": START_NS + 1000 * times,
            "device_used_bytes": curves["reserved"] + self._outside(times),
            "allocated_bytes": curves["allocated"],
            "reserved_bytes": curves["reserved"],
            "host_rss_bytes": np.full(len(times), 4096 * MIB),
            "utilisation_fraction": np.full(len(times), 0.97, np.float32),
        }

    def _outside(self, times_us: Any) -> Any:
        """Device memory outside the allocator at these times; it grows before the part that is repeated."""
        event, grown_us, size = zip(*self._growths, strict=True)
        at = np.array(grown_us) + self._late_us[list(event)]
        return np.append(0, np.cumsum(size))[np.searchsorted(at, times_us, side="right")]

    def ledger_rows(self) -> dict[str, Any]:
        """Columns of the table ledger; its rows are older than the part that is repeated."""
        event, time_us, span_id, account, size = zip(*self.ledger, strict=True)
        times = START_NS + 1000 * (np.array(time_us) + self._late_us[list(event)])
        return {"t_ns": times, "span_id": span_id, "account": account, "bytes": size}

    def collectives(self, spans: dict[str, Any], ranks: int) -> dict[str, Any]:
        """Columns of the table collectives: one all-to-all for each transformer block."""
        inside = np.array([name == "dit.block" for name in spans["name"].to_pylist()])
        start, span_id = spans["start_ns"][inside], spans["span_id"][inside]
        num = len(start)
        return {
            "start_ns": start + 1000,
            "end_ns": start + 2000,
            "span_id": span_id,
            "op": ["all_to_all_single"] * num,
            "bytes": np.full(num, 24 * MIB),
            "group": ["ulysses"] * num,
            "group_size": np.full(num, ranks),
            "non_torch_growth_bytes": np.zeros(num, int),
        }

    def communicators(self, num_calls: int, ranks: int) -> dict[str, Any]:
        """Columns of the table communicators: one group, which holds what is booked to NCCL."""
        times = [time_us for _, time_us, _, account, _ in self.ledger if account == "nccl"]
        held = sum(size for *_, account, size in self.ledger if account == "nccl")
        return {
            "t_ns": [START_NS + 1000 * int(max(times, default=0))],
            "group": ["ulysses"],
            "backend": ["nccl"],
            "group_size": [ranks],
            "ranks": [f"0-{ranks - 1}"],
            "num_calls": [num_calls],
            "bytes": [held],
            "shared_bytes": [0],
            "how_known": ["growth"],
        }


def _repeat(length: int, part: slice, times: int) -> tuple[Any, Any]:
    """Indices that repeat `part`, and for each the number of repeats before it."""
    before, inside, after = (
        np.arange(*bounds) for bounds in ((part.start,), (part.start, part.stop), (part.stop, length))
    )
    index = np.concatenate([before, np.tile(inside, times), after])
    copies = np.repeat(np.arange(times), len(inside))
    return index, np.concatenate([np.zeros_like(before), copies, np.full_like(after, times - 1)])


def _figures(what: str, curve: Any, first: Any, last: Any) -> dict[str, Any]:
    """A curve at both ends of every span, and its peak inside."""
    padded = np.concatenate([[0], curve])
    bounds = np.stack([first, last + 1], axis=1).ravel()
    # reduceat takes the pairs one after the other; the value in front of the first event counts too.
    peaks = np.maximum.reduceat(np.append(padded, 0), bounds)[::2]
    return {
        f"{what}_start_bytes": padded[first],
        f"{what}_end_bytes": padded[last],
        f"{what}_peak_bytes": peaks,
    }


def _stacks(spans: dict[str, Any], allocs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The stack of each event, and the table stacks: a stack for each path, with a frame for each span in it."""
    paths = spans["path"].dictionary.to_pylist()
    of_span = dict(zip(spans["span_id"].tolist(), spans["path"].indices.to_pylist(), strict=True))
    is_alloc = pc.equal(allocs["action"].cast(pa.string()), "alloc").to_pylist()
    stack_ids = [
        of_span.get(span_id) if taken else None
        for span_id, taken in zip(allocs["span_id"].tolist(), is_alloc, strict=True)
    ]
    rows = [
        (stack_id, frame, name, f"wan/{name.split('.')[0]}.py", 100 - 10 * frame)
        for stack_id, path in enumerate(paths)
        for frame, name in enumerate(reversed(path.split("/")))
    ]
    return pa.array(stack_ids, pa.int32()), stack_columns(rows)


def make_rank(
    run_dir: Path,
    rank: int,
    ranks: int,
    events: int,
    *,
    blocks: int = 30,
    dies: bool = False,
    variant: Variant = PLAIN,
    level: str = "event",
) -> None:
    """The store of one rank; one that dies leaves its last rows in open streams.

    Level stage keeps no events, level stack keeps a stack of each allocation too.
    """
    rows = Rows(rank, events, blocks, variant)
    spans = rows.spans()
    tables = {"spans": spans, "samples": rows.samples(), "ledger": rows.ledger_rows()}
    if level != "stage":
        tables["allocs"] = rows.allocs()
        tables["segment_pools"] = rows.segment_pools()
    if level == "stack":
        tables["allocs"]["stack_id"], tables["stacks"] = _stacks(spans, tables["allocs"])
    if ranks > 1:
        tables["collectives"] = rows.collectives(spans, ranks)
        tables["communicators"] = rows.communicators(len(tables["collectives"]["op"]), ranks)
    store = RankStore(run_dir, rank)
    for name, columns in tables.items():
        for start in range(0, len(next(iter(columns.values()))), BATCH_ROWS):
            store.append(name, {key: values[start : start + BATCH_ROWS] for key, values in columns.items()})
    if not dies:
        store.close()


def make(
    run_dir: Path,
    ranks: int,
    events: int,
    *,
    blocks: int = 30,
    variant: Variant = PLAIN,
    level: str = "event",
) -> None:
    """The folders of `ranks` ranks with about `events` allocator events each."""
    for rank in range(ranks):
        make_rank(run_dir, rank, ranks, events, blocks=blocks, variant=variant, level=level)


def driver_rows(run_dir: Path, ranks: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rows of the tables runs and ranks that fit this run."""
    run = {
        "run_id": run_dir.name,
        "name": "synthetic",
        "source": "cuda",
        "workload": "wan",
        "num_ranks": ranks,
        "config": "{}",
        "environment": "{}",
        "git_commit": "",
        "versions": '{"synthetic": "not a measurement"}',
        "start_ns": START_NS,
        "end_ns": START_NS + 60_000_000_000,
        "status": "ok",
        "exit_code": 0,
        "reason": "",
    }
    return run, [driver_rank(run_dir, rank) for rank in range(ranks)]


def driver_rank(run_dir: Path, rank: int) -> dict[str, Any]:
    """A row of the table ranks; the counters of an allocator are taken from the table spans."""
    spans = pq.read_table(
        table_dir(run_dir, "spans", rank), columns=["num_allocs", "depth", *PEAKS], partitioning=None
    )
    allocated, reserved = (pc.max(spans[name]).as_py() for name in PEAKS)
    return {
        **{"rank": rank, "node": 0, "node_id": "synthetic", "host": "synthetic", "clock_offset_ns": 0},
        **{"pid": 1000 + rank},
        **{"local_rank": rank, "gpu_index": rank, "gpu_uuid": f"GPU-{rank}", "gpu_name": "synthetic"},
        **{
            "device_total_bytes": DEVICE_BYTES,
            "clock_offset_ns": 0,
            "inexact_bytes": 0,
            "peak_at_least": False,
        },
        **{"ulysses": rank, "ring": 0, "cfg": 0, "fsdp": 0},
        **{"status": "ok", "exit_code": 0, "reason": "", "path": "", "step": -1},
        **{"num_events": 3 * pc.sum(spans.filter(pc.field("depth") == 0)["num_allocs"]).as_py()},
        **{"num_lost_events": 0, "num_checks": spans.num_rows, "max_error_bytes": 0},
        **{"allocated_peak_bytes": allocated, "replayed_allocated_peak_bytes": allocated},
        **{"reserved_peak_bytes": reserved, "replayed_reserved_peak_bytes": reserved},
        **{"recorder_ns": 1500 * spans.num_rows, "longest_pause_ns": 1500, "recorder_bytes": 0},
    }


def finish(run_dir: Path, ranks: int) -> None:
    """What the driver does once the ranks have ended."""
    from ray_memprof.formats.memory_events import write_memory_events
    from ray_memprof.query import database
    from ray_memprof.report.run_page import write_run_page
    from ray_memprof.store import gather, run_tables

    gather.gather(run_dir, range(ranks))
    run_tables.write_driver_tables(run_dir, *driver_rows(run_dir, ranks))
    database.build(run_dir)
    write_memory_events(run_dir)
    write_run_page(run_dir)


def main() -> None:
    """Parse the command line, make the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the run folder; must not exist")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--events", type=int, default=100_000, help="a rank, roughly")
    parser.add_argument(
        "--blocks", type=int, default=30, help="of the transformer: 120 events a block and step"
    )
    parser.add_argument(
        "--level",
        choices=["stage", "event", "stack"],
        default="event",
        help="stage: spans without events; stack: events with stacks",
    )
    parser.add_argument("--pools", action="store_true", help="with CUDA graphs and a torch.cuda.MemPool")
    parser.add_argument("--finish", action="store_true", help="gather, build run.duckdb, write the report")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    start = time.perf_counter()
    variant = POOLS if args.pools else PLAIN
    make(args.out, args.ranks, args.events, blocks=args.blocks, variant=variant, level=args.level)
    if args.finish:
        finish(args.out, args.ranks)
    print(f"{args.out}: {time.perf_counter() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
