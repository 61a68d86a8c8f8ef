"""report.html: what happened, and where the memory of every rank went, in one file that opens offline.

    write_run_page(run_dir)

Takes the tables of a run, finished or failed; every size, time and count comes from a question in sql/, every figure
from plots.py. Leaves report.html. Its text and tables need no script; plotly.js, which is in the file, draws the
figures. The page fetches nothing.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import chain, islice
from pathlib import Path

import duckdb
from markupsafe import Markup

from ray_memprof.analysis.comparison.against_base import AgainstBase, against_base
from ray_memprof.analysis.comparison.stage_peaks import stage_peaks
from ray_memprof.analysis.diagnosis.diagnose import Finding, findings
from ray_memprof.query import questions
from ray_memprof.query.database import open_run
from ray_memprof.query.questions import EVERY_QUESTION, fetched, rows_of
from ray_memprof.report import plots
from ray_memprof.report.flame_page import BaseTrees, flames_of, panels_of, told_of, trees_of
from ray_memprof.report.over_time import MOST_ALIVE
from ray_memprof.report.page import Tab, environment, packed_plotly, run_of, sql_texts
from ray_memprof.report.run_figures import OF_BASE, Answers, Row, Tables, by_rank, run_figures
from ray_memprof.report.step_plots import MOST_POINTS
from ray_memprof.report.tiles import Compare, tiles_of
from ray_memprof.report.words import Words, words_of
from ray_memprof.store.run_files import CONFIG_FILE, REPORT_FILE
from ray_memprof.store.standing import LEFT, RUNNING
from ray_memprof.store.whole_file import run_file
from ray_memprof.wording import change_text, number_text

TEMPLATE = "report.html.j2"
CONTENTS = {
    "peak_by_rank": "Total peak per rank",
    "timeline_by_account": "Memory over time",
    "base_memory": "Base memory per component",
    "activation_by_stage": "Activation peak per stage",
    "activation_by_step": "Activation peak per step",
    "fragmentation": "Fragmentation and fluctuation",
    "model_switching": "Model switching",
    "books_at_peak": "Books at the peak",
    "alive_at_peak": "Alive at the peak",
    "alive_at_peak_by_stack": "Flame graph",
    "alive_at_peak_by_owner": "Owners at the peak",
    "peak_by_stage": "Peak by stage and rank",
    "imbalance": "Imbalance",
    "steps": "Steps",
    "predicted_vs_measured": "Predicted and measured",
    "pools": "Memory pools",
    "nccl_by_communicator": "NCCL by communicator",
    "collectives_summary": "Collectives",
    "replay_check": "Replay check",
}
"""Questions with a part of the report each, in its order, with the part's title; one without rows is left out."""
DETAILS = ("alive_at_peak_by_owner", "replay_check")
"""Parts with details, which have no link at the top."""
ALSO = {
    "timeline_by_account": ("timeline", "peak_moment", "alive_at_peak_by_category", "stage_bands"),
    "alive_at_peak_by_stack": ("alive_at_peak_by_frame",),
}
"""Questions that the figures of a part show besides its own."""
UNLISTED = ("stage_bands", "peak_moment", "alive_at_peak_by_category")
"""Questions about single ranks that have no part of their own."""
OF_ALL_RANKS = ("peak_by_rank", "imbalance", "books_at_peak", "peak_by_stage", "replay_check")
"""Questions that are asked about every rank: the first two show all ranks, figures or tiles need the others."""
PER_RANK = frozenset(CONTENTS) - {"peak_by_rank", "imbalance"}
"""Questions whose tables show only some ranks of a large run."""
MOST_ROWS = 400
"""The most rows of a table of PER_RANK; the other rows are counted. Figures and statements are made of all rows."""


@dataclass(frozen=True, slots=True)
class Known:
    """A run that is open already, the findings in it, and its answer to the question headlines."""

    connection: duckdb.DuckDBPyConnection
    findings: Sequence[Finding]
    headlines: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report: the answer to a question, and its figures."""

    name: str
    """Of the question."""
    title: str
    question: str
    """In words."""
    is_listed: bool
    """Whether there is something to show in this part."""
    rows: Sequence[Row]
    num_left_out: int
    """Rows that the table does not show."""
    figures: Sequence[Tab]
    also: Sequence[str]
    """Questions that the figures show besides."""


@dataclass(frozen=True, slots=True)
class Base:
    """The run that a report is compared with."""

    label: str
    run: Row
    """Its row of runs."""
    numbers: AgainstBase
    drawn: Tables
    """Rows of OF_BASE, of the ranks that are shown; of peak_by_stage, of all ranks."""
    trees: Mapping[int, BaseTrees]
    """Of its flame graphs, by rank."""


def write_run_page(
    run_dir: Path,
    problems: Sequence[str] = (),
    *,
    beside: Path | None = None,
    base: Path | None = None,
    known: Known | None = None,
) -> Path:
    """Write the report of a run; returns its path.

    Args:
        run_dir: the run.
        problems: lines about records that are not whole.
        beside: a run of the same configuration from another source, such as a prediction, to be shown beside it.
        base: a run whose numbers stand beside those of this run, everywhere.
        known: the run, if it is open already; None: it is opened here.

    Raises:
        ConfigError: `run_dir` or `base` is no run, or `beside` is no run that can be shown beside it.
        DiskFull: no room for the report.
    """
    path = run_dir / REPORT_FILE
    html = render(run_dir, problems, beside=beside, base=base, known=known)
    with run_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def render(
    run_dir: Path,
    problems: Sequence[str] = (),
    *,
    beside: Path | None = None,
    base: Path | None = None,
    known: Known | None = None,
) -> str:
    """The report as text."""
    if known is None:
        with open_run(run_dir, shared_by=EVERY_QUESTION) as connection:
            asked = Known(connection, findings(connection), rows_of(connection, "headlines"))
            facts = _facts(asked, base)
    else:
        facts = _facts(known, base)
    if beside is not None:
        listed = {(row["rank"], row["stage"]) for row in facts["sections"]["peak_by_stage"].rows}
        found = stage_peaks(run_dir, beside)
        facts["beside"] = replace(
            found, rows=[row for row in found.rows if (row["rank"], row["stage"]) in listed]
        )
        facts["contents"]["beside"] = "Predicted and measured"
    config = run_dir / CONFIG_FILE
    facts["config"] = config.read_text(encoding="utf-8") if config.exists() else ""
    facts["contents"]["versions"] = "Versions, configuration"
    return environment().get_template(TEMPLATE).render(**facts, problems=problems, run_dir=run_dir)


def _facts(known: Known, base_dir: Path | None) -> Row:
    connection = known.connection
    run = run_of(connection)
    words = words_of(run["source"])
    ranks = fetched(connection, "FROM ranks ORDER BY rank")
    whole = {name: rows_of(connection, name) for name in OF_ALL_RANKS}
    failed = [row["rank"] for row in ranks if row["status"] != "ok"]
    peaks = whole["peak_by_rank"]
    shown = plots.chosen(peaks, failed)
    whole |= {
        name: rows_of(connection, name, shown) for name in (*CONTENTS, *UNLISTED) if name not in OF_ALL_RANKS
    }
    whole["memory_parts"] = rows_of(connection, "memory_parts")
    few = plots.chosen(peaks, failed, plots.MOST_LINES) if len(shown) < len(peaks) else shown
    if len(ranks) < 2:
        whole["imbalance"] = []
    tables = {name: _of(rows, shown) if name in PER_RANK else rows for name, rows in whole.items()}
    base = None if base_dir is None else _base(base_dir, whole, shown)
    against = compared_with(base)
    drawn = run_figures(
        Answers(connection, tables, whole, shown, few, words, {} if base is None else base.drawn)
    )
    figures = {tab.id: tab.figure for tabs in drawn.values() for tab in tabs}
    figures |= {f"{tab.id}-change": tab.change for tabs in drawn.values() for tab in tabs if tab.change}
    flames = flames_of(
        connection,
        shown,
        tables["alive_at_peak_by_stack"],
        tables["alive_at_peak"],
        None if base is None else base.trees,
    )
    figures |= {name: one.figure for name, one in told_of(flames).items()}
    for name in words.left_out:
        tables[name] = whole[name] = []
    sections = {
        name: _section(name, tables[name], whole[name], drawn.get(name, ()), words) for name in CONTENTS
    }
    contents = {name: one.title for name, one in sections.items() if one.is_listed}
    parts = whole["memory_parts"]
    tiles = list(chain.from_iterable(tiles_of(row, parts, words, against) for row in known.headlines))
    return {
        "run": run,
        "words": words,
        "is_running": run["status"] == RUNNING,
        "has_verdict": run["status"] not in (None, LEFT, RUNNING),
        "description": json.loads(run["config"] or "{}").get("description", ""),
        "ranks": ranks,
        "shown": shown,
        "versions": json.loads(run["versions"] or "{}"),
        "sections": sections,
        "contents": contents,
        "details": DETAILS,
        "tiles": tiles,
        "base": base,
        "against": against,
        "peaks": _peaks(connection, tables),
        "sql": _copied(sections, has_tiles=bool(tiles), has_culprits=bool(failed), run=run),
        "figures": figures,
        "plotly": packed_plotly() if figures else "",
        "beside": None,
        "findings": known.findings,
        "flames": panels_of(flames),
        "told": told_of(flames),
        "most_drawn_steps": MOST_POINTS,
        "num_drawn_steps": max(
            Counter((row["rank"], row["stage"]) for row in tables["steps"]).values(), default=0
        ),
    }


def _section(
    name: str, rows: list[Row], whole: Sequence[Row], figures: Sequence[Tab], words: Words
) -> Section:
    """The part of a question; a table of PER_RANK is cut to the rows that tell most.

    Args:
        name: of the question.
        rows: of the ranks that are shown.
        whole: of all ranks.
        figures: in the order of their tabs.
        words: of the run.
    """
    listed = telling(rows, MOST_ROWS) if name in PER_RANK and len(rows) > MOST_ROWS else rows
    return Section(
        name=name,
        title=words.titles.get(name, CONTENTS[name]),
        question=words.questions.get(name) or questions.headline(name),
        # Of a run without steps, the part before it has all activations.
        is_listed=bool(figures) if name == "activation_by_step" else bool(whole) or name == "peak_by_rank",
        rows=listed,
        num_left_out=len(rows) - len(listed),
        figures=figures,
        also=ALSO.get(name, ()) if figures else (),
    )


def _peaks(connection: duckdb.DuckDBPyConnection, tables: Tables) -> dict[str, Row]:
    """By the name of a rank's tab: when it had the most in tensors, in seconds of the figures, and what was alive."""
    first = fetched(connection, "SELECT first_ns FROM time_slices")
    alive = by_rank(tables["alive_at_peak_by_category"])
    return {
        f"rank {row['rank']}": row
        | {"after_ns": row["t_ns"] - first[0]["first_ns"], "alive": alive.get(row["rank"], [])[:MOST_ALIVE]}
        for row in tables["peak_moment"]
    }


def _copied(
    sections: Mapping[str, Section], *, has_tiles: bool, has_culprits: bool, run: Row
) -> dict[str, str]:
    """The SQL of all that the page shows, by name."""
    names = ["memory_parts", "headlines"] if has_tiles else []
    for one in sections.values():
        names += [one.name, *one.also] if one.is_listed and (one.rows or one.figures) else []
    names += ["endings"] if has_culprits else []
    names += ["versions"] if run["versions"] else []
    return sql_texts(names)


def compared_with(base: Base | None) -> Compare:
    """Writes, for a number of a question's row, how far it is from that of the base run."""

    def written(question: str, row: Row, measure: str) -> Markup | str:
        if base is None or row[measure] is None:
            return ""
        if (found := base.numbers.change(question, row, measure)) is None:
            return Markup("<small>not in the base run</small>")
        unit, size = ("s", 1e9) if measure.endswith("_ns") else ("bytes", 1)
        value = number_text(found.base_value / size, unit)
        text = change_text(found.change / size, found.base_value / size, unit)
        return Markup('<small title="in the base run: {}">{}</small>').format(value, text)

    return written


def _base(base_dir: Path, whole: Tables, shown: Sequence[int]) -> Base:
    """The base run, asked what this run was asked."""
    with open_run(base_dir, shared_by=EVERY_QUESTION) as connection:
        run = run_of(connection)
        drawn = {name: rows_of(connection, name, None if name in OF_ALL_RANKS else shown) for name in OF_BASE}
        by_stack = rows_of(connection, "alive_at_peak_by_stack", shown)
        trees = trees_of(connection, shown, by_stack, drawn["alive_at_peak"])
        label = run["name"] or base_dir.resolve().name
        return Base(label, run, against_base(whole, connection), drawn, trees)


def telling(rows: Sequence[Row], most: int) -> list[Row]:
    """At most `most` rows, in their order: the first and the last of every rank, and the largest of each figure."""
    figures = [key for key in rows[0] if key.endswith(("bytes", "duration_ns"))]
    starts = {row["rank"]: number for number, row in reversed(list(enumerate(rows)))}
    ends = {row["rank"]: number for number, row in enumerate(rows)}
    largest = [nlargest(most, range(len(rows)), key=lambda number: rows[number][key] or 0) for key in figures]  # noqa: B023
    # The largest row of every figure is chosen before the second largest of any figure.
    chosen = dict.fromkeys(
        [*starts.values(), *ends.values(), *chain.from_iterable(zip(*largest, strict=True))]
    )
    return [rows[number] for number in sorted(islice(chosen, most))]


def _of(rows: Sequence[Row], ranks: Sequence[int]) -> list[Row]:
    return [row for row in rows if row["rank"] in ranks]
