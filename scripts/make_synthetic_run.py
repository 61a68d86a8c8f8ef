"""Makes a run folder as ranks would leave it, of any size, without a GPU: for benchmarks, tests and a look around.

    python scripts/make_synthetic_run.py --out profiler_logs/synthetic/a --ranks 8 --events 1000000 --finish

An allocator with free lists is played through a text-to-video run: T5, DiT and VAE come and go, the steps of the
denoise loop repeat with about 60 events a span, addresses and sizes recur as a caching allocator makes them recur.
Every figure in spans follows from the events, so that a replay agrees with them to the byte. Rank 0 decodes, the
others do not. The same arguments make the same rows. `--finish` does what the driver does at the end of a run.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_memprof.schema import CATEGORIES
from ray_memprof.store import RankStore, table_dir

MIB = 2**20
START_NS = 1_800_000_000_000_000_000
ACTIONS = ("alloc", "free_requested", "free_completed", "segment_alloc", "segment_free")
TENSORS_A_SPAN = 20  # three events each: alloc, free_requested, free_completed
BASE_ADDRESS = 0x7F00_0000_0000
DEVICE_BYTES = 139 * 1024 * MIB
SAMPLE_US = 100_000
BATCH_ROWS = 16_384
SIZES = np.outer(MIB * np.array([0.0005, 0.003, 0.06, 0.5, 1.25, 6, 24, 96]), [1, 1.25, 1.5, 2, 2.5]).ravel()
SHARES = np.repeat(np.array([0.24, 0.2, 0.14, 0.12, 0.1, 0.09, 0.06, 0.05]) / 5, 5)
PEAKS = ("allocated_peak_bytes", "reserved_peak_bytes")
WORDS = ("path", "name", "stage", "component", "branch")

Block = tuple[int, int, str]
"""Size, address and category of a tensor."""


@dataclass(frozen=True, slots=True)
class Skew:
    """Memory that one rank holds in one stage and no other rank does."""

    rank: int
    stage: str
    """encode.text, denoise or decode."""
    component: str
    """In whose span it is allocated."""
    bytes: int


@dataclass(frozen=True, slots=True)
class Variant:
    """What else a run may be like."""

    seed: int | None = None
    """Of the sizes and lifetimes of all ranks; None: each rank has its own."""
    is_shared: bool = False
    """Every rank decodes."""
    uneven_bytes: int = 0
    """Ranks hold up to so much more, each another share of it, from beginning to end."""
    skew: Skew | None = None


class Player:
    """Spans and events of one rank, in order; a block of a size comes from the free list of that size.

    Every block has a segment of its own: simpler than an allocator, with the same habits as seen from outside.
    """

    def __init__(self, seed: int) -> None:
        self.events: dict[str, list[int]] = {
            name: [] for name in ("action", "size", "address", "category", "span_id", "time_us")
        }
        self.spans: list[dict[str, Any]] = []
        self.ledger: list[tuple[int, int, int, str, int]] = []
        self.now_us = self.outside = 0
        self.seed, self._clock = seed, np.random.default_rng(seed)
        self.reseed()
        self._open: list[dict[str, Any]] = []
        self._free: dict[int, list[int]] = defaultdict(list)
        self._next = BASE_ADDRESS

    def reseed(self) -> None:
        """Play the same sizes and lifetimes again."""
        self._rng = np.random.default_rng(self.seed)

    @contextmanager
    def span(self, name: str, **attributes: Any) -> Iterator[None]:
        """What is played inside belongs to it."""
        around = self._open[-1] if self._open else None
        row: dict[str, Any] = {"component": None, "step": None, "block": None, "branch": None}
        if around is not None:
            row.update({key: around[key] for key in ("component", "step", "branch")})
        row.update(attributes, name=name, span_id=len(self.spans) + 1, depth=len(self._open))
        row["parent_id"] = around["span_id"] if around else 0
        row["path"] = f"{around['path']}/{name}" if around else name
        row["stage"] = around["stage"] if around else name
        row.update(first=len(self.events["size"]), start_us=self.now_us, outside_start=self.outside)
        self.spans.append(row)
        self._open.append(row)
        self.now_us += 3
        yield
        self.now_us += 3
        row.update(last=len(self.events["size"]), end_us=self.now_us, outside_end=self.outside)
        self._open.pop()

    def alloc(self, size: int, category: str) -> Block:
        """A tensor; a new segment where none of its size is free."""
        if not self._free[size]:
            self._event("segment_alloc", _segment(size), self._next, None)
            self._free[size].append(self._next)
            self._next += _segment(size)
        address = self._free[size].pop()
        self._event("alloc", size, address, category)
        return size, address, category

    def free(self, block: Block) -> None:
        """A tensor goes; its segment stays."""
        size, address, category = block
        self._event("free_requested", size, address, category)
        self._event("free_completed", size, address, category, pause=False)
        self._free[size].append(address)

    def empty_cache(self) -> None:
        """Segments without a tensor go back to the device."""
        for size, addresses in self._free.items():
            for address in addresses:
                self._event("segment_free", _segment(size), address, None)
            addresses.clear()

    def grow(self, account: str | None, size: int) -> None:
        """Device memory outside the allocator; without an account nobody knows whose it is."""
        self.outside += size
        if account is not None:
            where = len(self.events["size"]), self.now_us, self._open[-1]["span_id"]
            self.ledger.append((*where, account, size))

    def churn(self, tensors: int = TENSORS_A_SPAN, scale: int = 1) -> None:
        """Activations that come and go, each freed soon after the next few came."""
        sizes = (self._rng.choice(SIZES, tensors, p=SHARES).astype(np.int64) // 512 * 512).clip(512) * scale
        kinds = self._rng.choice(["activation", "activation", "workspace", "communication"], tensors)
        alive: list[Block] = []
        for size, kind in zip(sizes.tolist(), kinds.tolist(), strict=True):
            alive.append(self.alloc(size, kind))
            if len(alive) > 6:
                self.free(alive.pop(int(self._rng.integers(len(alive)))))
        for block in alive:
            self.free(block)

    def _event(
        self, action: str, size: int, address: int, category: str | None, *, pause: bool = True
    ) -> None:
        self.now_us += int(self._clock.exponential(20)) + 1 if pause else 0
        row = (
            ACTIONS.index(action),
            size,
            address,
            -1 if category is None else CATEGORIES.index(category),
            self._open[-1]["span_id"] if self._open else 0,
            self.now_us,
        )
        for values, value in zip(self.events.values(), row, strict=True):
            values.append(value)


def _segment(size: int) -> int:
    return -(-size // (2 * MIB)) * 2 * MIB


@contextmanager
def _resident(player: Player, component: str, parameter: int, count: int) -> Iterator[None]:
    """A component's weights, read to the device and given back at the end."""
    with player.span(f"load.{component}", component=component):
        weights = [player.alloc(parameter, "weight") for _ in range(count)]
    with player.span("residency.onload", component=component):
        pass
    yield
    with player.span("residency.offload", component=component):
        for block in weights:
            player.free(block)
        player.empty_cache()


@contextmanager
def _skewed(player: Player, rank: int, stage: str, skew: Skew | None) -> Iterator[None]:
    """A stage, with what this rank alone holds in it."""
    if skew is None or (skew.rank, skew.stage) != (rank, stage):
        yield
        return
    with player.span("module", component=skew.component):
        block = player.alloc(skew.bytes, "activation")
    yield
    player.free(block)


def _step(player: Player, step: int, blocks: int, rank: int, skew: Skew | None) -> None:
    player.reseed()  # steps are alike: the second one finds a block for each of its tensors
    with player.span("denoise", step=step, component="dit"), _skewed(player, rank, "denoise", skew):
        for branch in ("cond", "uncond"):
            with player.span("dit.forward", branch=branch):
                for index in range(blocks):
                    with player.span("dit.block", block=index):
                        player.churn()


def play(
    rank: int, blocks: int, variant: Variant = Variant()
) -> tuple[Player, slice, slice, tuple[int, int]]:
    """A run of two steps; events, spans and time of the second one, which may be repeated any number of times."""
    player = Player(seed=rank if variant.seed is None else variant.seed)
    skew = variant.skew
    with player.span("device.init"):
        player.grow("context", 560 * MIB)
        if variant.uneven_bytes:
            share = np.random.default_rng((player.seed, rank)).integers(variant.uneven_bytes // 512)
            player.alloc(512 * (1 + int(share)), "activation")
    with player.span("comm.init"):
        player.grow("nccl", 840 * MIB)
        player.grow(None, 6 * MIB)
    with (
        player.span("encode.text", component="t5"),
        _skewed(player, rank, "encode.text", skew),
        _resident(player, "t5", 48 * MIB, 226),
    ):
        for index in range(24):
            with player.span("t5.block", block=index, component="t5"):
                player.churn()
    with _resident(player, "dit", 12 * MIB, 225):
        latents = player.alloc(8 * MIB, "output")
        _step(player, 0, blocks, rank, skew)
        if rank == 0:
            with player.span("warmup"):
                player.grow("library", 64 * MIB)
        start = len(player.events["size"]), len(player.spans), player.now_us
        # Repeated below: what a step holds alone is in the first one.
        _step(player, 1, blocks, rank, None)
        end = len(player.events["size"]), len(player.spans), player.now_us
    if rank == 0 or variant.is_shared:
        with (
            player.span("decode", component="vae"),
            _skewed(player, rank, "decode", skew),
            _resident(player, "vae", 4 * MIB, 120),
        ):
            for index in range(21):
                with player.span("vae.chunk", block=index, component="vae"):
                    player.churn(scale=3)
    player.free(latents)
    return player, slice(start[0], end[0]), slice(start[1], end[1]), (start[2], end[2])


class Rows:
    """What a rank recorded: the second step of play() repeated, and the figures of spans summed from the events."""

    def __init__(self, rank: int, events: int, blocks: int, variant: Variant = Variant()) -> None:
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
        self.ledger = player.ledger
        self._spans, self._outside_end = player.spans, player.outside
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
        outside["peak"] = np.maximum(outside["start"], outside["end"])
        for end, size in outside.items():
            columns[f"device_used_{end}_bytes"] = columns[f"reserved_{end}_bytes"] + size
            columns[f"host_rss_{end}_bytes"] = np.full(len(at), 4096 * MIB)
        for name, kind in (("num_allocs", 0), ("num_segments", 3)):
            counts = np.concatenate([[0], np.cumsum(self.events["action"] == kind)])
            columns[name] = counts[last] - counts[first]
        return {**columns, "num_retries": np.zeros(len(at), int), "recorder_ns": np.full(len(at), 1500)}

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

    def samples(self) -> dict[str, Any]:
        """Columns of the table samples."""
        times = np.arange(0, self.events["time_us"][-1], SAMPLE_US)
        at = np.searchsorted(self.events["time_us"], times, side="right") - 1
        curves = {what: np.where(at < 0, 0, curve[at]) for what, curve in self.curves.items()}
        return {
            "t_ns": START_NS + 1000 * times,
            "device_used_bytes": curves["reserved"] + self._outside_end,
            "allocated_bytes": curves["allocated"],
            "reserved_bytes": curves["reserved"],
            "host_rss_bytes": np.full(len(times), 4096 * MIB),
            "utilisation_fraction": np.full(len(times), 0.97, np.float32),
        }

    def ledger_rows(self) -> dict[str, Any]:
        """Columns of the table ledger; its rows are older than what is repeated."""
        event, time_us, span_id, account, size = zip(*self.ledger, strict=True)
        times = START_NS + 1000 * (np.array(time_us) + self._late_us[list(event)])
        return {"t_ns": times, "span_id": span_id, "account": account, "bytes": size}

    def collectives(self, spans: dict[str, Any], ranks: int) -> dict[str, Any]:
        """Columns of the table collectives: an all-to-all a transformer block."""
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


def _repeat(length: int, part: slice, times: int) -> tuple[Any, Any]:
    """Indices that repeat `part`, and by how many repeats each comes later than in the original."""
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


def make_rank(
    run_dir: Path,
    rank: int,
    ranks: int,
    events: int,
    *,
    blocks: int = 30,
    dies: bool = False,
    variant: Variant = Variant(),
) -> None:
    """The store of one rank; one that dies leaves its last rows in open streams."""
    rows = Rows(rank, events, blocks, variant)
    spans = rows.spans()
    tables = {
        "allocs": rows.allocs(),
        "spans": spans,
        "samples": rows.samples(),
        "ledger": rows.ledger_rows(),
    }
    if ranks > 1:
        tables["collectives"] = rows.collectives(spans, ranks)
    store = RankStore(run_dir, rank)
    for name, columns in tables.items():
        for start in range(0, len(next(iter(columns.values()))), BATCH_ROWS):
            store.append(name, {key: values[start : start + BATCH_ROWS] for key, values in columns.items()})
    if not dies:
        store.close()


def make(run_dir: Path, ranks: int, events: int, *, blocks: int = 30, variant: Variant = Variant()) -> None:
    """The folders of `ranks` ranks with about `events` allocator events each."""
    for rank in range(ranks):
        make_rank(run_dir, rank, ranks, events, blocks=blocks, variant=variant)


def driver_rows(run_dir: Path, ranks: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rows of runs and ranks that fit."""
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
    """A row of ranks; what the counters of an allocator would say is what spans says."""
    spans = pq.read_table(
        table_dir(run_dir, "spans", rank), columns=["num_allocs", "depth", *PEAKS], partitioning=None
    )
    allocated, reserved = (pc.max(spans[name]).as_py() for name in PEAKS)
    return {
        **{"rank": rank, "node": 0, "node_id": "synthetic", "host": "synthetic", "pid": 1000 + rank},
        **{"local_rank": rank, "gpu_index": rank, "gpu_uuid": f"GPU-{rank}", "gpu_name": "synthetic"},
        **{"device_total_bytes": DEVICE_BYTES, "ulysses": rank, "ring": 0, "fsdp": 0},
        **{"status": "ok", "exit_code": 0, "reason": "", "path": "", "step": -1},
        **{"num_events": 3 * pc.sum(spans.filter(pc.field("depth") == 0)["num_allocs"]).as_py()},
        **{"num_lost_events": 0, "num_checks": spans.num_rows, "max_error_bytes": 0},
        **{"allocated_peak_bytes": allocated, "replayed_allocated_peak_bytes": allocated},
        **{"reserved_peak_bytes": reserved, "replayed_reserved_peak_bytes": reserved},
        **{"recorder_ns": 1500 * spans.num_rows, "longest_pause_ns": 1500, "recorder_bytes": 0},
    }


def finish(run_dir: Path, ranks: int) -> None:
    """What the driver does once the ranks have ended."""
    from ray_memprof import collect, db, report
    from ray_memprof.exporters import memory_events

    collect.gather(run_dir, range(ranks))
    collect.write_driver_tables(run_dir, *driver_rows(run_dir, ranks))
    db.build(run_dir)
    memory_events.write(run_dir)
    report.write(run_dir)


def main() -> None:
    """Parse the command line, make the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the run folder; must not exist")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--events", type=int, default=100_000, help="a rank, roughly")
    parser.add_argument("--finish", action="store_true", help="gather, build run.duckdb, write the report")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    start = time.perf_counter()
    make(args.out, args.ranks, args.events)
    if args.finish:
        finish(args.out, args.ranks)
    print(f"{args.out}: {time.perf_counter() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
