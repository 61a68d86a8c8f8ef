"""report.html: what happened, and where the memory of every rank went, in one file that opens offline.

    write_run_page(run_dir)

Takes the tables of a run, finished or failed; every size, time and count comes from a question in sql/, every figure
from plots.py. Leaves report.html. Its text and tables need no script; plotly.js, which is in the file, draws the
figures. The page fetches nothing.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import chain, islice
from pathlib import Path
from typing import Any

import duckdb
from markupsafe import Markup

from ray_memprof.analysis.comparison.stage_peaks import stage_peaks
from ray_memprof.analysis.diagnosis.diagnose import Finding, findings
from ray_memprof.query import questions
from ray_memprof.query.bounds import is_unsampled
from ray_memprof.query.database import open_run
from ray_memprof.query.questions import fetched, rows_of
from ray_memprof.report import plots
from ray_memprof.report.flame_page import flames_of, panels_of, told_of
from ray_memprof.report.page import Tab, environment, packed_plotly, run_of, sized
from ray_memprof.report.words import Words, words_of
from ray_memprof.store.run_files import CONFIG_FILE, REPORT_FILE
from ray_memprof.store.standing import LEFT, RUNNING
from ray_memprof.store.whole_file import run_file
from ray_memprof.wording import at_least, share_text, size_text, span_text

TEMPLATE = "report.html.j2"
CONTENTS = {
    "peak_by_rank": "Peak by rank",
    "timeline_by_account": "Memory over time",
    "books_at_peak": "Books at the peak",
    "alive_at_peak": "Alive at the peak",
    "alive_at_peak_by_stack": "Flame graph",
    "peak_by_stage": "Stages and ranks",
    "imbalance": "Imbalance",
    "steps": "Steps",
    "predicted_vs_measured": "Predicted and measured",
    "base_memory": "Base memory",
    "alive_at_peak_by_owner": "Owners at the peak",
    "activation_by_stage": "Activation by stage",
    "fragmentation": "Fragmentation and fluctuation",
    "model_switching": "Model switching",
    "pools": "Memory pools",
    "nccl_by_communicator": "NCCL by communicator",
    "collectives_summary": "Collectives",
    "replay_check": "Replay check",
}
"""Questions with a part of the report each, in its order, with the part's title; one without rows is left out."""
DETAILS = (
    "base_memory", "alive_at_peak_by_owner", "activation_by_stage", "fragmentation", "model_switching", "replay_check"
)  # fmt: skip
"""Parts with details, which have no link at the top."""
OF_ALL_RANKS = ("peak_by_rank", "imbalance", "books_at_peak", "peak_by_stage", "replay_check")
"""Questions that are asked about every rank: the first two show all ranks, figures or tiles need the others."""
PER_RANK = frozenset(CONTENTS) - {"peak_by_rank", "imbalance"}
"""Questions whose tables show only some ranks of a large run."""
MOST_ROWS = 400
"""The most rows of a table of PER_RANK; the other rows are counted. Figures and statements are made of all rows."""
_REACH = "MIN(start_ns) AS start_ns, MAX(end_ns) AS end_ns, MAX(device_used_bytes) AS device_used_bytes"

Row = dict[str, Any]
Tables = dict[str, list[Row]]


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


def write_run_page(
    run_dir: Path, problems: Sequence[str] = (), *, beside: Path | None = None, known: Known | None = None
) -> Path:
    """Write the report of a run; returns its path.

    Args:
        run_dir: the run.
        problems: lines about records that are not whole.
        beside: a run of the same configuration from another source, such as a prediction, to be shown beside it.
        known: the run, if it is open already; None: it is opened here.

    Raises:
        ConfigError: `run_dir` is no run, or `beside` is no run that can be shown beside it.
        DiskFull: no room for the report.
    """
    path = run_dir / REPORT_FILE
    html = render(run_dir, problems, beside=beside, known=known)
    with run_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def render(
    run_dir: Path, problems: Sequence[str] = (), *, beside: Path | None = None, known: Known | None = None
) -> str:
    """The report as text."""
    if known is None:
        with open_run(run_dir) as connection:
            facts = _facts(Known(connection, findings(connection), rows_of(connection, "headlines")))
    else:
        facts = _facts(known)
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


def _facts(known: Known) -> Row:
    connection = known.connection
    run = run_of(connection)
    words = words_of(run["source"])
    ranks = fetched(connection, "FROM ranks ORDER BY rank")
    whole = {name: rows_of(connection, name) for name in OF_ALL_RANKS}
    failed = [row["rank"] for row in ranks if row["status"] != "ok"]
    peaks = whole["peak_by_rank"]
    shown = plots.chosen(peaks, failed)
    whole |= {name: rows_of(connection, name, shown) for name in CONTENTS if name not in OF_ALL_RANKS}
    few = plots.chosen(peaks, failed, plots.MOST_LINES) if len(shown) < len(peaks) else shown
    if len(ranks) < 2:
        whole["imbalance"] = []
    tables = {name: _of(rows, shown) if name in PER_RANK else rows for name, rows in whole.items()}
    drawn = _figures(connection, tables, whole, shown, few, words)
    figures = {tab.id: tab.figure for tabs in drawn.values() for tab in tabs}
    flames = flames_of(connection, shown, tables["alive_at_peak_by_stack"], tables["alive_at_peak"])
    figures |= {name: one.figure for name, one in told_of(flames).items()}
    for name in words.left_out:
        tables[name] = whole[name] = []
    sections = {
        name: _section(name, tables[name], whole[name], drawn.get(name, ()), words) for name in CONTENTS
    }
    contents = {name: one.title for name, one in sections.items() if one.is_listed}
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
        "tiles": list(chain.from_iterable(_tiles(row, words) for row in known.headlines)),
        "figures": figures,
        "plotly": packed_plotly() if figures else "",
        "beside": None,
        "findings": known.findings,
        "flames": panels_of(flames),
        "told": told_of(flames),
        "most_drawn_steps": plots.MOST_POINTS,
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
        is_listed=bool(whole) or name == "peak_by_rank",
        rows=listed,
        num_left_out=len(rows) - len(listed),
        figures=figures,
    )


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


def _figures(
    connection: duckdb.DuckDBPyConnection,
    tables: Tables,
    whole: Tables,
    shown: Sequence[int],
    few: Sequence[int],
    words: Words,
) -> dict[str, list[Tab]]:
    """The figures of each part, in the order of their tabs.

    The ranks `shown` have figures of their own; the ranks `few` are lines in the figure of all ranks.
    """
    peaks = whole["peak_by_stage"]
    drawn = {
        "timeline_by_account": _tabs(
            "timelines", _timelines(connection, tables, whole["peak_by_rank"], shown, few, words)
        ),
        "alive_at_peak": _tabs(
            "treemaps",
            [(f"rank {rank}", plots.alive(rows)) for rank, rows in _by_rank(tables["alive_at_peak"]).items()],
        ),
        "peak_by_stage": _tabs(
            "heats", [(name, plots.heat(peaks, measure)) for measure, name in words.measures.items() if peaks]
        ),
    }
    if tables["books_at_peak"]:
        drawn["books_at_peak"] = [Tab("", "books", plots.books(tables["books_at_peak"], words))]
    compared = [row for row in tables["imbalance"] if row["measure"] == "allocated" and row["num_ranks"] > 1]
    if compared:
        drawn["imbalance"] = [Tab("", "imbalance", plots.imbalance(compared))]
    if tables["steps"]:
        drawn["steps"] = [Tab("", "steps", plots.steps(tables["steps"], shown))]
    return drawn


def _tabs(prefix: str, named: Sequence[tuple[str, plots.Figure]]) -> list[Tab]:
    return [Tab(name, f"{prefix}-{number}", figure) for number, (name, figure) in enumerate(named)]


def _timelines(
    connection: duckdb.DuckDBPyConnection,
    tables: Tables,
    peaks: Sequence[Row],
    shown: Sequence[int],
    few: Sequence[int],
    words: Words,
) -> list[tuple[str, plots.Figure]]:
    slices = rows_of(connection, "timeline", shown)
    if not slices:
        return []
    frame = plots.frame(fetched(connection, f"SELECT {_REACH} FROM timeline"), peaks)
    bands = _by_rank(rows_of(connection, "stage_bands", shown))
    moments, of_rank = _by_rank(tables["timeline_by_account"]), _by_rank(slices)
    figures = [
        (f"rank {rank}", plots.area(moments.get(rank, []), of_rank[rank], bands.get(rank, []), frame, words))
        for rank in shown
    ]
    if len(shown) > 1:
        spread = rows_of(connection, "timeline_spread") if len(few) < len(peaks) else []
        together = ("all ranks", plots.ranks_over_time(slices, spread, few, frame))
        # With many ranks the figure of all comes first, with few ranks it comes last.
        figures.insert(0 if len(shown) < len(peaks) else len(figures), together)
    return figures


def _by_rank(rows: Iterable[Row]) -> dict[int, list[Row]]:
    listed: dict[int, list[Row]] = {}
    for row in rows:
        listed.setdefault(row["rank"], []).append(row)
    return listed


def _tiles(headlines: Row, words: Words) -> list[Row]:
    """The few numbers that every reader wants first: name, value and note."""
    if headlines["allocated_peak_bytes"] is None:
        return []
    used, total = headlines["device_used_peak_bytes"], headlines["device_total_bytes"]
    of_device = f", {used / total:.0%} of {size_text(total)}" if total else ""
    tiles = [
        _tile(
            f"{words.measures['device_used']}, peak",
            _sized(used, is_unsampled(headlines)),
            f"rank {headlines['device_used_peak_rank']}{of_device}",
        ),
        _tile(
            f"{words.measures['allocated']}, peak",
            _sized(headlines["allocated_peak_bytes"], headlines["peak_at_least"]),
            f"rank {headlines['allocated_peak_rank']}, in {span_text(headlines['path'], headlines['step'])}",
        ),
    ]
    if headlines["allocated_max_rank"] is not None:
        times = headlines["allocated_max_over_mean"]
        note = f"rank {headlines['allocated_max_rank']} against the mean of {words.measures['allocated']}"
        tiles.append(_tile("imbalance", "-" if times is None else f"{times:.2f} x", note))
    if (share := headlines["unexplained_fraction"]) is not None:
        note = f"of {words.measures['device_used']} at the peak, rank {headlines['unexplained_rank']}"
        tiles.append(_tile("unexplained", share_text(share), note))
    return [*tiles, *_replay_tile(headlines)]


def _replay_tile(headlines: Row) -> list[Row]:
    num_ranks, checked = headlines["num_ranks"], headlines["num_checked"]
    if not num_ranks:
        return []
    if not checked:
        return [
            _tile("recording", "unchecked", "no allocator events were recorded, or no rank came to its end")
        ]
    notes = ["ranks replay to the byte"]
    if within := headlines["num_within"]:
        notes.append(f"{within} within {headlines['inexact_bytes']:,} bytes")
    if checked < num_ranks:
        notes.append(f"{num_ranks - checked} ended before they could be compared")
    return [_tile("recording", f"{headlines['num_exact']} of {checked}", ", ".join(notes))]


def _tile(name: str, value: str | Markup, note: str) -> Row:
    return {"name": name, "value": value, "note": note}


def _sized(size: int, is_at_least: bool) -> Markup:
    return Markup(at_least(sized(size), is_at_least))
