"""A recorded run under other settings of torch's allocator, or on another device: its peak, and whether it fits.

    asked = Asked(expandable_segments=True, device_bytes=24 * GIB)
    rows = what_if(find_run("official"), asked)             # one per rank, as an Arrow table

Needs allocator events (level event or stack). Memory outside the allocator is what was recorded, at the time when it
was noticed; with a device that is named, other processes are left out of it.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_memprof.allocator.requests import GROWTH, SHRINKAGE, Recorded, Requests
from ray_memprof.allocator.rules import LARGE_SEGMENT_BYTES, Rules
from ray_memprof.allocator.settings import recorded_rules
from ray_memprof.allocator.what_if import Outcome, play, smallest_device
from ray_memprof.errors import ConfigError
from ray_memprof.query.ask import ask

_EVENTS = """SELECT action, address, requested_bytes, stream, span_id, size_bytes, t_ns
FROM allocs WHERE rank = {} ORDER BY seq"""
_LEDGER = (
    "SELECT t_ns, SUM(bytes)::BIGINT AS bytes FROM ledger WHERE rank = {} {} GROUP BY t_ns ORDER BY t_ns"
)
_SPANS = "SELECT span_id, path, step, num_retries FROM spans WHERE rank = {}"
_RANKS = "SELECT rank, device_total_bytes, num_lost_events FROM ranks"
_MOST_OFF = 0.002
"""A share of the recorded peak: if the model differs from the recording by more, the answer is told to be unsure."""

SCHEMA = pa.schema(
    [
        ("rank", pa.int32()),
        ("recorded_reserved_bytes", pa.int64()),
        ("reserved_bytes", pa.int64()),
        ("device_used_bytes", pa.int64()),
        ("device_bytes", pa.int64()),
        ("runs", pa.bool_()),
        ("fails_in", pa.string()),
        ("fails_for_bytes", pa.int64()),
        ("num_retries", pa.int64()),
        ("smallest_device_bytes", pa.int64()),
        ("note", pa.string()),
    ]
)
"""Peaks of what the allocator holds as recorded and as asked, and of the device; the device asked for; whether the rank
would have run, and if not, the span in which and the bytes for which it fails; how often the device was full and got
the cache back; the smallest device on which it runs; and what makes the answer unsure."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be different; None: as recorded."""

    expandable_segments: bool | None = None
    max_split_bytes: int | None = None
    device_bytes: int | None = None

    def check(self) -> None:
        """Refuse what torch would refuse.

        Raises:
            ConfigError: it would, or the device has no bytes.
        """
        limit = self.max_split_bytes
        if limit is not None and (limit < LARGE_SEGMENT_BYTES or limit % 2**20):
            raise ConfigError(
                f"--max-split-size is {limit:,} bytes", hint="torch takes whole MiB from 20 MiB on"
            )
        if self.device_bytes == 0:
            raise ConfigError("--device-memory is 0 bytes", hint="give the memory of the device: 24 GiB")

    def rules(self, recorded: Rules) -> Rules:
        """Return the recorded rules with what is asked for."""
        rules = recorded
        if self.expandable_segments is not None:
            rules = replace(rules, expandable_segments=self.expandable_segments)
        if self.max_split_bytes is not None:
            rules = replace(rules, max_split_bytes=self.max_split_bytes)
        return rules


def what_if(run_dir: Path, asked: Asked, rank: int | None = None) -> pa.Table:
    """Return a row for each rank, or for one.

    Raises:
        ConfigError: what is asked for cannot be, no such run or rank, or no allocator events of a GPU.
    """
    asked.check()
    run = ask("SELECT config, environment, source FROM runs", [run_dir]).to_pylist()
    facts = run[0] if run else {"config": "{}", "environment": "{}", "source": "cuda"}
    if facts["source"] == "cpu":
        raise ConfigError(f"{run_dir} ran without a GPU: torch's caching allocator has no part in it")
    recorded = ask("SELECT DISTINCT rank FROM allocs ORDER BY rank", [run_dir]).column(0).to_pylist()
    if not recorded:
        raise ConfigError(
            f"{run_dir} has no allocator events", hint="logging.level event or stack records them"
        )
    if rank is not None and rank not in recorded:
        raise ConfigError(
            f"{run_dir} has no allocator events of rank {rank}",
            hint=f"this run has them of: {', '.join(map(str, recorded))}",
        )
    ranks = {row["rank"]: row for row in ask(_RANKS, [run_dir]).to_pylist()}
    wanted = recorded if rank is None else [rank]
    rows = [_Rank(run_dir, one, facts, ranks.get(one, {})).answer(asked) for one in wanted]
    return pa.Table.from_pylist(rows, SCHEMA)


class _Rank:
    """What was recorded of one rank."""

    def __init__(self, run_dir: Path, rank: int, run: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        self._run_dir, self._rank = run_dir, rank
        self._device_bytes: int | None = row.get("device_total_bytes") or None
        self._num_lost: int = row.get("num_lost_events") or 0
        self._rules = recorded_rules(json.loads(run["config"]), json.loads(run["environment"]), rank)
        columns = _columns(ask(_EVENTS.format(rank), [run_dir]))
        self._times, sizes = columns.pop("t_ns"), columns.pop("size_bytes")
        self._spans = {row["span_id"]: row for row in ask(_SPANS.format(rank), [run_dir]).to_pylist()}
        self._events = Recorded(**columns)
        retried = frozenset(span for span, row in self._spans.items() if row["num_retries"])
        self._requests = Requests.of(self._events, retried)
        self._reserved_peak = _reserved_peak(self._events.action, sizes)

    def answer(self, asked: Asked) -> dict[str, Any]:
        """Return the row."""
        rules, device = asked.rules(self._rules), asked.device_bytes or self._device_bytes
        outside = self._outside(with_others=asked.device_bytes is None)
        outcome = play(self._requests, outside, rules, device)
        return {
            "rank": self._rank,
            "recorded_reserved_bytes": self._reserved_peak,
            "reserved_bytes": outcome.reserved_peak,
            "device_used_bytes": outcome.device_peak,
            "device_bytes": device,
            "runs": outcome.fits,
            "fails_in": None if outcome.fits else self._place(outcome),
            "fails_for_bytes": None if outcome.fits else outcome.wanted,
            "num_retries": outcome.num_retries,
            "smallest_device_bytes": smallest_device(self._requests, outside, rules),
            "note": "; ".join(self._notes()) or None,
        }

    def _outside(self, *, with_others: bool) -> list[tuple[int, int]]:
        """Memory outside the allocator, by the number of the event from which on it was held."""
        others = "" if with_others else "AND account <> 'others'"
        held, found = 0, []
        for row in ask(_LEDGER.format(self._rank, others), [self._run_dir]).to_pylist():
            held += row["bytes"]
            found.append((bisect_left(self._times, row["t_ns"]), held))
        return found

    def _place(self, outcome: Outcome) -> str:
        """The span in which a request did not fit, and whose it was if not the program's own."""
        span = self._spans.get(self._events.span_id[outcome.event])
        path = "no span" if span is None else span["path"]
        if span is not None and span["step"] is not None:
            path += f" of step {span['step']}"
        return f"{path} (outside the allocator)" if outcome.is_outside else path

    def _notes(self) -> list[str]:
        """What makes the answer unsure."""
        notes = []
        as_recorded = play(self._requests, [], self._rules, None).reserved_peak
        if not self._reserved_peak:
            notes.append("no event tells of a segment")
        elif abs(as_recorded - self._reserved_peak) > _MOST_OFF * self._reserved_peak:
            share = as_recorded / self._reserved_peak - 1
            notes.append(f"under the recorded settings the model's peak is {share:+.1%} off")
        if self._requests.is_cut_off:
            notes.append("a request failed when it was recorded: what came after it is not known")
        num_lost = self._num_lost + self._requests.num_strays
        if num_lost:
            notes.append(f"{num_lost:,} events are missing")
        return notes


def _columns(table: pa.Table) -> dict[str, Any]:
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _reserved_peak(actions: Sequence[str], sizes: Sequence[int]) -> int:
    now = peak = 0
    for action, size in zip(actions, sizes, strict=True):
        if action in GROWTH:
            now += size
            peak = max(peak, now)
        elif action in SHRINKAGE:
            now -= size
    return peak
