"""flame.html: what was alive at the peak of every rank as flame graphs, in one file that opens offline.

    write_flame_page(Path("profiler_logs/baseline/latest"), Path("flame.html"), rank=0)
    $ ray-memprof flame baseline --rank 0 --base another

Takes the questions alive_at_peak_by_stack and alive_at_peak; the graphs come from flame.py. Leaves the whole page, or
none after an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from ray_memprof.errors import ConfigError
from ray_memprof.query.database import open_run
from ray_memprof.query.questions import rows_of
from ray_memprof.report import plots
from ray_memprof.report.changes import lacking
from ray_memprof.report.flame import (
    MOST_STACKS,
    Flame,
    Node,
    Step,
    flame_by_span,
    flame_by_stack,
    frame_step,
    span_tree,
    stack_tree,
)
from ray_memprof.report.page import Tab, environment, packed_plotly, run_of, sql_texts
from ray_memprof.store.whole_file import whole_file
from ray_memprof.wording import rank_text

TEMPLATE = "flame.html.j2"
HOW_TO_RECORD = "logging.level event or stack records them"

Row = dict[str, Any]


def write_flame_page(run_dir: Path, path: Path, rank: int | None = None, base: Path | None = None) -> Path:
    """Write the page; returns its path.

    Args:
        run_dir: the run.
        path: the file.
        rank: the only rank to show; None: all ranks, or those that tell most of many.
        base: a run against which each frame is shown.

    Raises:
        ConfigError: `run_dir` is no run, or has no allocator events of the rank; or so has `base`.
        DiskFull: no room for the page.
    """
    html = render(run_dir, rank, base)
    with whole_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def render(run_dir: Path, rank: int | None = None, base: Path | None = None) -> str:
    """The page as text."""
    with open_run(run_dir) as connection:
        run = run_of(connection)
        by_stack = rows_of(connection, "alive_at_peak_by_stack")
        found = list(dict.fromkeys(row["rank"] for row in by_stack))
        _check(run_dir, found, rank)
        ranks = _shown(connection) if rank is None else [rank]
        label, trees = ("", None) if base is None else _base(base, ranks, rank)
        drawn = flames_of(connection, ranks, by_stack, rows_of(connection, "alive_at_peak", ranks), trees)
    facts: Row = {"run": run, "run_dir": run_dir, "num_ranks": len(found), "base": label}
    told = told_of(drawn)
    figures = {name: one.figure for name, one in told.items()}
    facts |= {"flames": panels_of(drawn), "told": told, "figures": figures, "plotly": packed_plotly()}
    facts["sql"] = sql_texts(["alive_at_peak_by_stack", "alive_at_peak_by_frame"])
    return environment().get_template(TEMPLATE).render(**facts)


def _base(run_dir: Path, ranks: Sequence[int], rank: int | None) -> tuple[str, "dict[int, BaseTrees]"]:
    """What a base run is called, and what was alive there at the peaks of these ranks."""
    with open_run(run_dir) as connection:
        run = run_of(connection)
        by_stack = rows_of(connection, "alive_at_peak_by_stack")
        _check(run_dir, [row["rank"] for row in by_stack], rank)
        trees = trees_of(connection, ranks, by_stack, rows_of(connection, "alive_at_peak", ranks))
    return f"{run['name'] or run_dir.resolve().name}, {run['run_id'] or 'without an id'}", trees


@dataclass(frozen=True, slots=True)
class BaseTrees:
    """What was alive at the peak of a rank of the base run."""

    by_stack: Node | None
    """None: no Python stacks were recorded."""
    by_span: Node


def trees_of(
    connection: duckdb.DuckDBPyConnection,
    ranks: Sequence[int],
    by_stack: Sequence[Row],
    by_span: Sequence[Row],
) -> dict[int, BaseTrees]:
    """The trees of a base run; see flames_of. A rank without allocator events has none."""
    found = {}
    for rank in ranks:
        rows = [row for row in by_stack if row["rank"] == rank]
        if rows:
            stack_ids = _stack_ids(rows)
            found[rank] = BaseTrees(
                stack_tree(rank, rows, _frames(connection, rank, stack_ids)) if stack_ids else None,
                span_tree(rank, [row for row in by_span if row["rank"] == rank]),
            )
    return found


def flames_of(
    connection: duckdb.DuckDBPyConnection,
    ranks: Sequence[int],
    by_stack: Sequence[Row],
    by_span: Sequence[Row],
    base: Mapping[int, BaseTrees] | None = None,
) -> list[Flame]:
    """The graphs of some ranks; a rank without Python stacks is drawn by its spans.

    Args:
        connection: to the run.
        ranks: those to draw; those without rows have no graph.
        by_stack: rows of alive_at_peak_by_stack.
        by_span: rows of alive_at_peak.
        base: trees_of a base run; None: there is none.
    """
    drawn = []
    for rank in ranks:
        rows = [row for row in by_stack if row["rank"] == rank]
        stack_ids = _stack_ids(rows)
        trees = None if base is None else base.get(rank)
        if stack_ids:
            there = trees.by_stack if trees else None
            one = flame_by_stack(rank, rows, _frames(connection, rank, stack_ids), base=there)
        elif rows:
            there = trees.by_span if trees else None
            one = flame_by_span(rank, [row for row in by_span if row["rank"] == rank], base=there)
        else:
            continue
        if base is not None and there is None:
            what = "allocator events" if trees is None else "Python stacks"
            one = replace(one, base_line=lacking(f"{what} of rank {rank}"))
        drawn.append(one)
    return drawn


def _stack_ids(rows: Sequence[Row]) -> list[int]:
    return [row["stack_id"] for row in rows[:MOST_STACKS] if row["stack_id"] is not None]


def panels_of(drawn: Sequence[Flame]) -> list[Tab]:
    """The tabs of the graphs, in order."""
    return [
        Tab(
            f"rank {one.rank}",
            f"flames-{number}",
            one.figure,
            is_compared=one.is_compared,
            base_line=one.base_line,
        )
        for number, one in enumerate(drawn)
    ]


def told_of(drawn: Sequence[Flame]) -> dict[str, Flame]:
    """The graphs by the ids of their figures, for what a page says below each."""
    return {tab.id: one for tab, one in zip(panels_of(drawn), drawn, strict=True)}


def _frames(
    connection: duckdb.DuckDBPyConnection, rank: int, stack_ids: Sequence[int]
) -> dict[int, list[Step]]:
    """The frames of stacks, the outermost first."""
    frames: dict[int, list[Step]] = {}
    # Most frames are in many stacks.
    known: dict[tuple[Any, ...], Step] = {}
    found = connection.execute("FROM stack_frames(?, ?)", [rank, sorted(set(stack_ids))])
    while rows := found.fetchmany(100_000):
        for stack_id, *frame in rows:
            place = tuple(frame)
            if place not in known:
                known[place] = frame_step(*place)
            frames.setdefault(stack_id, []).append(known[place])
    return frames


def _check(run_dir: Path, found: Sequence[int], rank: int | None) -> None:
    """Refuse a run or a rank of which nothing was alive at a peak.

    Raises:
        ConfigError: there is nothing to draw.
    """
    if not found:
        raise ConfigError(f"{run_dir} has no allocator events", hint=HOW_TO_RECORD)
    if rank is not None and rank not in found:
        hint = f"{HOW_TO_RECORD}; this run has them of {rank_text(found)}"
        raise ConfigError(f"{run_dir} has no allocator events of rank {rank}", hint=hint)


def _shown(connection: duckdb.DuckDBPyConnection) -> list[int]:
    """The ranks with a graph: all, or those that failed, rank 0, the emptiest and the fullest of many."""
    failed = connection.execute("SELECT rank FROM ranks WHERE status != 'ok' ORDER BY rank").fetchall()
    peaks = rows_of(connection, "peak_event")
    return plots.chosen(peaks, [row[0] for row in failed], by="allocated_bytes")
