"""Which numbers of a run are bounds: peaks that may have been higher, and replays that may be inexact.

    caveats(connection)                   # lines for people
    is_lower_bound(row, "reserved")       # `row` is a row of rank_peaks()

Takes rows of rank_peaks() and of the question replay_check; leaves nothing.
"""

from typing import Any

import duckdb

from ray_memprof.query.questions import fetched, rows_of
from ray_memprof.wording import rank_text


def is_unsampled(row: dict[str, Any]) -> bool:
    """Whether the device was measured only at the boundaries of spans: its peak may lie between them."""
    return bool(row["num_samples"] == 0 and row["device_used_peak_bytes"] > 0)


def is_lower_bound(row: dict[str, Any], measure: str) -> bool:
    """Whether the peak of a rank (allocated, reserved, device_used ...) may have been higher than the known one."""
    return (
        is_unsampled(row)
        if measure == "device_used"
        else measure != "host_rss" and bool(row["peak_at_least"])
    )


def caveats(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Lines that say which peaks of a run are lower bounds and why, and how far the replay of a rank may be wrong."""
    rows = fetched(connection, "FROM rank_peaks() ORDER BY rank")
    inexact = [row for row in rows_of(connection, "replay_check") if row["is_within"]]
    return [*lower_bounds(rows), *map(inexact_text, inexact)]


def lower_bounds(rows: list[dict[str, Any]], device_used: str = "device used") -> list[str]:
    """Lines that say why some peaks are shown as "at least"; `device_used` is what a reader calls this measure."""
    early = [row["rank"] for row in rows if row["peak_at_least"]]
    between = [row["rank"] for row in rows if is_unsampled(row)]
    lines = []
    if early:
        lines.append(
            f"peaks of {rank_text(early)} are lower bounds: what was held before the first event is not known, and the "
            "peak may lie there"
        )
    if between:
        lines.append(
            f"{device_used} of {rank_text(between)} is a lower bound: no sample was taken between the boundaries of "
            "spans"
        )
    return lines


def inexact_text(row: dict[str, Any]) -> str:
    """How far the replay of a rank may be wrong; `row` is a row of replay_check."""
    who = f"rank {row['rank']}"
    if row["is_within"]:
        return f"{who} is right within {row['inexact_bytes']:,} bytes: a rule of the allocator is not known there"
    return (
        f"{who} is off by up to {row['max_error_bytes']:,} bytes, {row['num_lost_events']:,} events were lost"
    )
