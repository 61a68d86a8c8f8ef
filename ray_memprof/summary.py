"""The last lines of a run on the console: peak per rank, imbalance, whether books and replay are right, findings.

    for line in summary_lines(run_dir): ...

Takes the tables of a run, finished or failed; leaves nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from ray_memprof import db, diagnosis
from ray_memprof.store import REPORT_FILE
from ray_memprof.units import size_text

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
        lines = figure_lines(connection, diagnosis.findings(connection))
    report = run_dir / REPORT_FILE
    return [*lines, f"report: {report}"] if report.exists() else lines


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


def place(path: str | None, step: int | None) -> str:
    """Where something was, in words."""
    if path is None:
        return "no span"
    return path if step is None else f"{path} of step {step}"


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
    return lines


def _peak(row: dict[str, Any]) -> str:
    used, total = row["device_used_peak_bytes"], row["device_total_bytes"]
    share = f" ({used / total:.0%} of {size_text(total)})" if total else ""
    return (
        f"rank {row['rank']}: peak allocated {size_text(row['allocated_peak_bytes'])}, "
        f"reserved {size_text(row['reserved_peak_bytes'])}, device used {size_text(used)}{share}, "
        f"in {place(row['path'], row['step'])}"
    )


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
    wrong = [row for row in checked if not row["is_exact"]]
    if not wrong:
        return [f"replay: exact to the byte on {len(checked)} of {len(rows)} ranks"]
    return [
        f"replay: rank {row['rank']} is off by up to {row['max_error_bytes']:,} bytes, "
        f"{row['num_lost_events']:,} events were lost"
        for row in wrong
    ]


def _findings(found: Sequence[diagnosis.Finding]) -> list[str]:
    more = len(found) - MOST_FINDINGS
    noted = [f"more findings: {more}, see ray-memprof diagnose"] if more > 0 else []
    return [*diagnosis.lines(found, MOST_FINDINGS), *noted]
