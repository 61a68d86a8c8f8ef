"""A recorded run under other settings of torch's allocator, or on another device: its peak, and whether it fits.

    asked = Asked(expandable_segments=True, device_bytes=24 * GIB)
    rows = what_if(find_run("official"), asked)             # one per rank, as an Arrow table

Needs allocator events (level event or stack). Memory outside the allocator is what was recorded, at the time when it
was noticed; with a device that is named, other processes are left out of it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_memprof.allocator.rules import Rules
from ray_memprof.allocator.what_if import Outcome, play, smallest_device
from ray_memprof.analysis.recorded_rank import RecordedRank, recorded_ranks
from ray_memprof.errors import ConfigError
from ray_memprof.query.ask import ask
from ray_memprof.wording import span_text

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

    def rules(self, recorded: Rules) -> Rules:
        """Return the recorded rules with what is asked for.

        Raises:
            ConfigError: torch would refuse the limit of splitting.
        """
        rules, limit = recorded, self.max_split_bytes
        if self.expandable_segments is not None:
            rules = replace(rules, expandable_segments=self.expandable_segments)
        if limit is not None:
            least = recorded.large_segment_bytes
            if limit < least or limit % 2**20:
                raise ConfigError(
                    f"--max-split-size is {limit:,} bytes",
                    hint=f"torch takes whole MiB from {least // 2**20} MiB on",
                )
            rules = replace(rules, max_split_bytes=limit)
        return rules


def what_if(run_dir: Path, asked: Asked, rank: int | None = None) -> pa.Table:
    """Return a row for each rank, or for one.

    Raises:
        ConfigError: what is asked for cannot be, no such run or rank, or no allocator events of a GPU.
    """
    if asked.device_bytes == 0:
        raise ConfigError("--device-memory is 0 bytes", hint="give the memory of the device: 24 GiB")
    if ask("SELECT source FROM runs", [run_dir]).column(0).to_pylist() == ["cpu"]:
        raise ConfigError(f"{run_dir} ran without a GPU: torch's caching allocator has no part in it")
    recorded = recorded_ranks(run_dir)
    if rank is not None and rank not in recorded:
        raise ConfigError(
            f"{run_dir} has no allocator events of rank {rank}",
            hint=f"this run has them of: {', '.join(map(str, recorded))}",
        )
    wanted = recorded if rank is None else [rank]
    return pa.Table.from_pylist([_row(RecordedRank(run_dir, one), asked) for one in wanted], SCHEMA)


def _row(recorded: RecordedRank, asked: Asked) -> dict[str, Any]:
    rules, device = asked.rules(recorded.rules), asked.device_bytes or recorded.device_bytes
    outside = recorded.outside(with_others=asked.device_bytes is None)
    outcome = play(recorded.requests, outside, rules, device)
    return {
        "rank": recorded.rank,
        "recorded_reserved_bytes": recorded.reserved_peak,
        "reserved_bytes": outcome.reserved_peak,
        "device_used_bytes": outcome.device_peak,
        "device_bytes": device,
        "runs": outcome.fits,
        "fails_in": None if outcome.fits else _place(recorded, outcome),
        "fails_for_bytes": None if outcome.fits else outcome.wanted,
        "num_retries": outcome.num_retries,
        "smallest_device_bytes": smallest_device(recorded.requests, outside, rules),
        "note": "; ".join(_notes(recorded, outcome if asked == Asked() else None)) or None,
    }


def _place(recorded: RecordedRank, outcome: Outcome) -> str:
    """The span in which a request did not fit, and whose it was if not the program's own."""
    span = recorded.spans.get(recorded.events.span_id[outcome.event], {})
    place = span_text(span.get("path"), span.get("step"))
    return f"{place} (outside the allocator)" if outcome.is_outside else place


def _notes(recorded: RecordedRank, as_recorded: Outcome | None) -> list[str]:
    """What makes the answer unsure; `as_recorded`: what the model makes of the recording itself, if it was asked."""
    notes, requests, peak = [], recorded.requests, recorded.reserved_peak
    if as_recorded is None:
        outside = recorded.outside(with_others=True)
        as_recorded = play(requests, outside, recorded.rules, recorded.device_bytes)
    if recorded.is_late:
        notes.append("peaks are at least that: what was held before the first event is not known")
    if not peak:
        notes.append("no event tells of a segment")
    elif abs(as_recorded.reserved_peak - peak) > _MOST_OFF * peak:
        share = as_recorded.reserved_peak / peak - 1
        notes.append(f"under the recorded settings the model's peak is {share:+.1%} off")
    if as_recorded.fits == requests.ended_full:
        notes.append(f"on the recorded device the model {'fits' if as_recorded.fits else 'does not fit'}")
    if requests.is_cut_off:
        notes.append("a request failed when it was recorded: what came after it is not known")
    if recorded.rules.garbage_collection_fraction:
        notes.append(
            "collection above a threshold is not followed: how much the process may use was not recorded"
        )
    num_lost = recorded.num_lost + requests.num_strays
    if num_lost:
        notes.append(f"{num_lost:,} events are missing")
    return notes
