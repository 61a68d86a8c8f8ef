"""The last lines of a run on the console: peak per rank, imbalance, checks of books and replay, and findings.

    for line in number_lines(connection, findings, headlines): ...

Takes a run that is open, finished or failed; leaves nothing.
"""

from collections.abc import Sequence
from typing import Any

import duckdb

from ray_memprof.analysis.diagnosis import diagnose
from ray_memprof.query.bounds import inexact_text, is_unsampled, lower_bounds
from ray_memprof.query.questions import fetched, rows_of
from ray_memprof.report.words import Words, words_of
from ray_memprof.wording import at_least, rank_text, share_text, size_text, span_text

MOST_RANKS = 16
"""The most lines of peaks; ranks that are alike share a line. Of more, the fullest ranks are listed."""
MOST_FINDINGS = 2
"""The most findings that are listed; `ray-memprof diagnose` and the report have all."""
KILLED = ("died", "hung", "lost", "interrupted")
"""The status of ranks that ended in a way after which nothing could be checked."""


def number_lines(
    connection: duckdb.DuckDBPyConnection, found: Sequence[diagnose.Finding], headlines: list[dict[str, Any]]
) -> list[str]:
    """What a reader of the console wants to know when a run has ended.

    Args:
        connection: the run.
        found: its findings.
        headlines: the answer to the question headlines: one row, or none if nothing was recorded.
    """
    words = words_of(next((row["source"] for row in fetched(connection, "SELECT source FROM runs")), None))
    lines = _peaks(connection, words)
    for row in headlines:
        lines += [*_imbalance(row, words), *_books(row, words), *_replay(connection, row)]
    return [*lines, *_findings(found)]


def _peaks(connection: duckdb.DuckDBPyConnection, words: Words) -> list[str]:
    rows = rows_of(connection, "peak_by_rank")
    if not rows:
        return ["peak: no span was recorded"]
    shown, lines = rows, _peaks_of(rows, words)
    if len(lines) > MOST_RANKS:
        fullest = sorted(rows, key=lambda row: row["device_used_peak_bytes"], reverse=True)
        shown = sorted(fullest[:MOST_RANKS], key=lambda row: int(row["rank"]))
        lines = _peaks_of(shown, words)
    if len(rows) > len(shown):
        lines.append(
            f"the {len(shown)} fullest of {len(rows)} ranks; all of them: peak_by_rank in run.duckdb"
        )
    return [*lines, *lower_bounds(rows, words.measures["device_used"])]


def _peaks_of(rows: Sequence[dict[str, Any]], words: Words) -> list[str]:
    """A line for each rank; ranks that would have the same line share it, where the first of them stands."""
    ranks: dict[str, list[int]] = {}
    for row in rows:
        ranks.setdefault(_peak(row, words), []).append(row["rank"])
    return [f"{rank_text(alike)}: {text}" for text, alike in ranks.items()]


def _peak(row: dict[str, Any], words: Words) -> str:
    used, total = row["device_used_peak_bytes"], row["device_total_bytes"]
    share = f" ({used / total:.0%} of {size_text(total)})" if total else ""
    held = [
        f"{words.measures[what]} {at_least(size_text(row[f'{what}_peak_bytes']), row['peak_at_least'])}"
        for what in ("allocated", "reserved")
        if what in words.measures
    ]
    held.append(f"{words.measures['device_used']} {at_least(size_text(used), is_unsampled(row))}{share}")
    return f"peak {', '.join(held)}, in {span_text(row['path'], row['step'])}"


def _imbalance(headlines: dict[str, Any], words: Words) -> list[str]:
    return [
        f"imbalance: rank {headlines[measure + '_max_rank']} peaks at {times:.2f} x the mean of "
        f"{words.measures[measure]}"
        for measure in ("allocated", "device_used")
        if (times := headlines[f"{measure}_max_over_mean"]) is not None
    ]


def _books(headlines: dict[str, Any], words: Words) -> list[str]:
    share = headlines["unexplained_fraction"]
    if share is None:
        return []
    return [
        f"{words.books}: unexplained at most {size_text(headlines['unexplained_bytes'])}, {share_text(share)} "
        f"{words.of_used} (rank {headlines['unexplained_rank']})"
    ]


def _replay(connection: duckdb.DuckDBPyConnection, headlines: dict[str, Any]) -> list[str]:
    rows = rows_of(connection, "replay_check")
    if not rows:
        return []
    if not headlines["num_checked"]:
        # A rank is checked when it ends by itself, with success or not.
        killed = any(row["status"] in KILLED for row in rows)
        why = "no rank came to its end" if killed else "no allocator events were recorded"
        return [f"replay: not checked: {why}"]
    lines = []
    if headlines["num_exact"]:
        is_whole = headlines["num_checked"] == len(rows)
        whose = (
            f"{headlines['num_exact']} of {len(rows)} ranks"
            if is_whole
            else rank_text([row["rank"] for row in rows if row["is_exact"]])
        )
        lines.append(f"replay: exact to the byte on {whose}")
    lines += [f"replay: {inexact_text(row)}" for row in rows if row["num_checks"] and not row["is_exact"]]
    if missing := [row for row in rows if not row["num_checks"]]:
        lines.append(
            f"replay: not compared on {rank_text([row['rank'] for row in missing])}: {_why_not(missing)}"
        )
    return lines


def _why_not(rows: list[dict[str, Any]]) -> str:
    """Why these ranks were not compared."""
    states = sorted({row["status"] for row in rows if row["status"] != "ok"})
    if states:
        return f"ended before that ({', '.join(states)})"
    return "no allocator events were recorded"


def _findings(found: Sequence[diagnose.Finding]) -> list[str]:
    more = len(found) - MOST_FINDINGS
    noted = [f"more findings: {more}, see ray-memprof diagnose"] if more > 0 else []
    return [*diagnose.lines(found, MOST_FINDINGS), *noted]
