"""The figures of a run's report, by part and in the order of their tabs.

    run_figures(Answers(connection, tables, whole, shown, few, words, base))

Takes rows of questions that were asked already, and asks what only figures need; this module writes no file.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from ray_memprof.query.questions import fetched, rows_of
from ray_memprof.report import changes, over_time, plots, step_plots
from ray_memprof.report.page import Tab
from ray_memprof.report.words import Words

Row = dict[str, Any]
Tables = Mapping[str, Sequence[Row]]
_REACH = "MIN(start_ns) AS start_ns, MAX(end_ns) AS end_ns, MAX(device_used_bytes) AS device_used_bytes"
OF_BASE = ("timeline", "books_at_peak", "activation_by_step", "alive_at_peak", "peak_by_stage")
"""Questions whose rows of a base run are drawn beside those of the run."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the figures are made of."""

    connection: duckdb.DuckDBPyConnection
    tables: Tables
    """By question: rows of the ranks that have figures of their own."""
    whole: Tables
    """Rows of all ranks, where they were asked for."""
    shown: Sequence[int]
    """Ranks with figures of their own."""
    few: Sequence[int]
    """Those of them that are lines in the figure of all ranks."""
    words: Words
    base: Tables = field(default_factory=dict)
    """Of a base run, those of OF_BASE; empty: there is none."""


def run_figures(run: Answers) -> dict[str, list[Tab]]:
    """The figures of each part; a part without any is left out."""
    tables = run.tables
    drawn = {
        "timeline_by_account": _tabs("timelines", _timelines(run)),
        "activation_by_step": _tabs("activations", _activations(run)),
        "alive_at_peak": _alive(run),
        "peak_by_stage": _heats(run),
    }
    if tables["books_at_peak"]:
        base = run.base.get("books_at_peak", ())
        drawn["books_at_peak"] = [Tab("", "books", plots.books(tables["books_at_peak"], run.words, base))]
    compared = [row for row in tables["imbalance"] if row["measure"] == "allocated" and row["num_ranks"] > 1]
    if compared:
        drawn["imbalance"] = [Tab("", "imbalance", plots.imbalance(compared))]
    if tables["steps"]:
        drawn["steps"] = [Tab("", "steps", step_plots.steps(tables["steps"], run.shown))]
    return drawn


def _tabs(prefix: str, named: Sequence[tuple[str, plots.Figure]]) -> list[Tab]:
    return [Tab(name, f"{prefix}-{number}", figure) for number, (name, figure) in enumerate(named)]


def _alive(run: Answers) -> list[Tab]:
    """A treemap for each rank, with its changes where the base run has tensors at the peak of the rank."""
    base = by_rank(run.base.get("alive_at_peak", ()))
    tabs = []
    for number, (rank, rows) in enumerate(by_rank(run.tables["alive_at_peak"]).items()):
        here = plots.alive_nodes(rows)
        figure, line = plots.alive(here), ""
        is_compared = rank in base
        if is_compared:
            there = plots.alive_nodes(base[rank])
            sizes = [there[name]["bytes"] if name in there else 0 for name in here]
            figure["data"][0] |= changes.changed(figure["data"][0], sizes)
            line = changes.gone_text(
                [
                    (_of_base(there, name), node["bytes"])
                    for name, node in there.items()
                    if name not in here and node["parent"] in here
                ]
            )
        elif run.base:
            line = changes.lacking(f"allocator events of rank {rank}")
        name = f"rank {rank}"
        tabs.append(Tab(name, f"treemaps-{number}", figure, is_compared=is_compared, base_line=line))
    return tabs


def _of_base(nodes: Mapping[str, Row], name: str) -> str:
    """A node of a treemap in words, from the outside inwards: "of dit, weight, load.dit"."""
    names: list[str] = []
    while nodes[name]["parent"]:
        names.insert(0, nodes[name]["full_name"])
        name = nodes[name]["parent"]
    return f"of {', '.join(names)}"


def _heats(run: Answers) -> list[Tab]:
    """Cells of stages and ranks for each measure, and below them their changes."""
    rows, base = run.whole["peak_by_stage"], run.base.get("peak_by_stage", ())
    tabs = []
    for number, (measure, name) in enumerate(run.words.measures.items() if rows else ()):
        change = changes.changes_heat(rows, base, measure) if base else None
        line = changes.unmatched_text(rows, base) if change else ""
        if run.base and change is None:
            line = changes.lacking(f"peaks of these stages and ranks ({name})")
        tabs.append(Tab(name, f"heats-{number}", plots.heat(rows, measure), change=change, base_line=line))
    return tabs


def _activations(run: Answers) -> list[tuple[str, plots.Figure]]:
    """A figure for each rank that took steps; a stage has the same line on all ranks."""
    rows = run.tables["activation_by_step"]
    stages = step_plots.largest_stages(rows)
    base = by_rank(run.base.get("activation_by_step", ()))
    return [
        (f"rank {rank}", step_plots.activation(mine, stages, base.get(rank, ())))
        for rank, mine in by_rank(rows).items()
        if any(row["step"] is not None for row in mine)
    ]


def _timelines(run: Answers) -> list[tuple[str, plots.Figure]]:
    connection, shown, peaks = run.connection, run.shown, run.whole["peak_by_rank"]
    slices = rows_of(connection, "timeline", shown)
    if not slices:
        return []
    of_base = by_rank(run.base.get("timeline", ()))
    frame = over_time.frame(
        fetched(connection, f"SELECT {_REACH} FROM timeline"), peaks, run.base.get("timeline", ())
    )
    bands, of_rank = by_rank(run.tables["stage_bands"]), by_rank(slices)
    moments, alive = (
        by_rank(run.tables["timeline_by_account"]),
        by_rank(run.tables["alive_at_peak_by_category"]),
    )
    marks = {row["rank"]: row for row in run.tables["peak_moment"]}
    figures = []
    for rank in shown:
        drawn = over_time.OfRank(
            moments.get(rank, ()),
            of_rank.get(rank, ()),
            bands.get(rank, ()),
            marks.get(rank),
            alive.get(rank, ()),
        )
        figures.append((f"rank {rank}", over_time.area(drawn, frame, run.words, of_base.get(rank, ()))))
    if len(shown) > 1:
        spread = rows_of(connection, "timeline_spread") if len(run.few) < len(peaks) else []
        together = ("all ranks", over_time.ranks_over_time(slices, spread, run.few, frame))
        # With many ranks the figure of all comes first, with few ranks it comes last.
        figures.insert(0 if len(shown) < len(peaks) else len(figures), together)
    return figures


def by_rank(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Rows by their rank, in their order."""
    listed: dict[int, list[Row]] = {}
    for row in rows:
        listed.setdefault(row["rank"], []).append(row)
    return listed
