"""The last lines of a run on the console: peak per rank, imbalance, whether books and replay are right, findings.

    for line in summary_lines(run_dir): ...

Takes the tables of a run, finished or failed; leaves nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from ray_memprof import db, diagnosis
from ray_memprof.wording import at_least, place, rank_text, size_text

MOST_RANKS = 16
"""Of a larger run, the fullest ranks are listed."""
MOST_FINDINGS = 2
"""The weightiest; `ray-memprof diagnose` and the report have all."""
KILLED = ("died", "hung", "lost", "interrupted")
"""Ways to end in which nothing more could be checked."""


def summary_lines(run_dir: Path) -> list[str]:
    """What a reader of the console wants to know when a run has ended.

    Raises:
        ConfigError: `run_dir` is no run.
    """
    with db.open_run(run_dir) as connection:
        return figure_lines(connection, diagnosis.findings(connection))


def figure_lines(connection: duckdb.DuckDBPyConnection, found: Sequence[diagnosis.Finding]) -> list[str]:
    """The same of a run that is open, whose findings are known."""
    return [
        *_peaks(connection),
        *_imbalance(connection),
        *_books(connection),
        *_replay(connection),
        *_findings(found),
    ]


def _ask(connection: duckdb.DuckDBPyConnection, name: str) -> list[dict[str, Any]]:
    return connection.sql(db.question(name)).to_arrow_table().to_pylist()  # type: ignore[no-any-return]


def _peaks(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = _ask(connection, "peak_by_rank")
    if not rows:
        return ["peak: no span was recorded"]
    shown = rows
    if len(rows) > MOST_RANKS:
        fullest = sorted(rows, key=lambda row: row["device_used_peak_bytes"], reverse=True)
        shown = sorted(fullest[:MOST_RANKS], key=lambda row: int(row["rank"]))
    lines = [_peak(row) for row in shown]
    if len(rows) > len(shown):
        lines.append(
            f"the {len(shown)} fullest of {len(rows)} ranks; all of them: peak_by_rank in run.duckdb"
        )
    return [*lines, *_bounds(rows)]


def _peak(row: dict[str, Any]) -> str:
    used, total = row["device_used_peak_bytes"], row["device_total_bytes"]
    share = f" ({used / total:.0%} of {size_text(total)})" if total else ""
    tensors, reserved = (
        at_least(size_text(row[f"{what}_peak_bytes"]), row["peak_at_least"])
        for what in ("allocated", "reserved")
    )
    return (
        f"rank {row['rank']}: peak allocated {tensors}, reserved {reserved}, "
        f"device used {at_least(size_text(used), is_unsampled(row))}{share}, in {place(row['path'], row['step'])}"
    )


def is_unsampled(row: dict[str, Any]) -> bool:
    """Whether the device was looked at only at the boundaries of spans: its peak may lie between them."""
    return bool(row["num_samples"] == 0 and row["device_used_peak_bytes"] > 0)


def is_lower_bound(row: dict[str, Any], measure: str) -> bool:
    """Whether the peak of a rank (allocated, reserved, device_used ...) may have been more than is known."""
    return (
        is_unsampled(row)
        if measure == "device_used"
        else measure != "host_rss" and bool(row["peak_at_least"])
    )


def caveats(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Which peaks of a run are lower bounds, and why, and which may be off by how much, a line each."""
    rows = connection.sql("FROM rank_peaks() ORDER BY rank").to_arrow_table().to_pylist()
    inexact = [row for row in _ask(connection, "replay_check") if row["num_checks"] and is_within(row)]
    return [*_bounds(rows), *map(_inexact, inexact)]


def _bounds(rows: list[dict[str, Any]]) -> list[str]:
    """Why peaks are told as "at least"."""
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
            f"device used of {rank_text(between)} is a lower bound: no sample was taken between the boundaries of spans"
        )
    return lines


def _imbalance(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = [row for row in _ask(connection, "imbalance") if row["stage"] is None and row["num_ranks"] > 1]
    return [
        f"imbalance: rank {row['max_rank']} peaks at {row['max_over_mean']:.2f} x the mean of {row['measure']}"
        for row in rows
        if row["measure"] in ("allocated", "device_used") and row["max_over_mean"] is not None
    ]


def _books(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = [row for row in _ask(connection, "books_at_peak") if row["account"] == "unexplained"]
    known = [row for row in rows if row["share_fraction"] is not None]
    if not known:
        return []
    worst = max(known, key=lambda row: abs(row["share_fraction"]))
    return [
        f"books at the peak: unexplained at most {size_text(worst['bytes'])}, {worst['share_fraction']:.2%} of what is "
        f"used on the device (rank {worst['rank']})"
    ]


def _replay(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = _ask(connection, "replay_check")
    checked = [row for row in rows if row["num_checks"]]
    if not rows:
        return []
    if not checked:
        # The check is made when a rank ends of itself, with whatever result.
        killed = any(row["status"] in KILLED for row in rows)
        why = "no rank came to its end" if killed else "no allocator events were recorded"
        return [f"replay: not checked: {why}"]
    lines = []
    if exact := [row["rank"] for row in checked if row["is_exact"]]:
        whose = f"{len(exact)} of {len(rows)} ranks" if len(checked) == len(rows) else rank_text(exact)
        lines.append(f"replay: exact to the byte on {whose}")
    lines += [f"replay: {_inexact(row)}" for row in checked if not row["is_exact"]]
    if missing := [row for row in rows if not row["num_checks"]]:
        lines.append(
            f"replay: not compared on {rank_text([row['rank'] for row in missing])}: {_why_not(missing)}"
        )
    return lines


def is_within(row: dict[str, Any]) -> bool:
    """Whether nothing is wrong with a replay but that a rule of the allocator is not known."""
    peaks = row["allocated_peak_error_bytes"], row["reserved_peak_error_bytes"]
    errors = (row["max_error_bytes"], *map(abs, peaks))
    return row["inexact_bytes"] > 0 and not row["num_lost_events"] and max(errors) <= row["inexact_bytes"]


def _inexact(row: dict[str, Any]) -> str:
    who = f"rank {row['rank']}"
    if is_within(row):
        return f"{who} is right within {row['inexact_bytes']:,} bytes: a rule of the allocator is not known there"
    return (
        f"{who} is off by up to {row['max_error_bytes']:,} bytes, {row['num_lost_events']:,} events were lost"
    )


def _why_not(rows: list[dict[str, Any]]) -> str:
    """Of ranks that were not compared."""
    states = sorted({row["status"] for row in rows if row["status"] != "ok"})
    if states:
        return f"ended before that ({', '.join(states)})"
    return "no allocator events were recorded"


def _findings(found: Sequence[diagnosis.Finding]) -> list[str]:
    more = len(found) - MOST_FINDINGS
    noted = [f"more findings: {more}, see ray-memprof diagnose"] if more > 0 else []
    return [*diagnosis.lines(found, MOST_FINDINGS), *noted]
