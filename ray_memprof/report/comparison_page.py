"""compare.html: two runs or more side by side, in one file that opens offline.

    write_comparison_page(compare([Path("profiler_logs/a/latest"), Path("profiler_logs/b/latest")]), Path("ab.html"))
    $ ray-memprof compare a b --html ab.html

Takes what compare.py found and the question `measures` of every run; figures come from comparison_plots.py. Leaves the
whole page, or none after an error.
"""

import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from markupsafe import Markup

from ray_memprof.analysis.comparison.compare import (
    Comparison,
    Difference,
    Moved,
    Row,
    Side,
    compare,
    moved_of,
)
from ray_memprof.analysis.comparison.text import LEAST_FRACTION, SHOWN, check_lines
from ray_memprof.errors import RunError
from ray_memprof.query import database
from ray_memprof.report import comparison_plots, plots
from ray_memprof.report.matrix_table import Line, matrix_text
from ray_memprof.report.page import environment, packed_plotly, sql_texts
from ray_memprof.report.words import words_of_runs
from ray_memprof.store.run_files import TABLES_DIR, table_dir
from ray_memprof.store.run_json import run_facts
from ray_memprof.store.standing import LEFT
from ray_memprof.store.whole_file import whole_file
from ray_memprof.wording import at_least, change_text, number_text, shortened, visible

TEMPLATE = "compare.html.j2"
NUMBERS = {
    "imbalance": "imbalance",
    "duration": "duration",
    "step_duration": "a step",
    "unexplained": "unexplained",
}
"""Measures of the whole run that are shown after the peaks, with the heading of each."""
MOST_SPANS = 30
MOST_LETTERS = 300
"""The most characters of a setting."""
MOST_IN_PICTURE = 36
"""The most characters of a run's label beside a figure: a longer one would leave no room for the figure."""

Measured = dict[tuple[str | None, str], Row]
"""Rows of `measures` by stage (None: the whole run) and measure, with the stages in the order in which they began."""


def write_comparison_page(compared: Comparison, path: Path) -> Path:
    """Write the page; returns its path.

    Raises:
        ConfigError: a run cannot be read.
        DiskFull: no room for the page.
    """
    html = render(compared)
    with whole_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def write_matrix(run_dirs: Sequence[Path], path: Path) -> Comparison | None:
    """Write the page for those runs of a matrix that left tables; None: fewer than two runs recorded spans.

    Returns what was compared.

    Raises:
        ConfigError: a run cannot be read.
        DiskFull: no room for the page.
    """
    if sum(table_dir(run_dir, "spans").is_dir() for run_dir in run_dirs) < 2:
        return None
    compared = compare([run_dir for run_dir in run_dirs if (run_dir / TABLES_DIR).is_dir()])
    write_comparison_page(compared, path)
    return compared


def set_side_by_side(folders: Sequence[Path], page: Path) -> None:
    """Write the page that compares the runs of a matrix, and a table of them to stderr.

    An error is only a warning, since the runs are complete.
    """
    try:
        if (compared := write_matrix(folders, page)) is not None:
            width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
            table = matrix_text(_lines(folders, compared), width)
            sys.stderr.write(f"{visible(table)}comparison: {page.absolute()}\n")
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, RunError | OSError | KeyboardInterrupt):  # a bug: print where it is
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"warning: the runs are not compared: {text}\n")


def _lines(folders: Sequence[Path], compared: Comparison) -> list[Line]:
    """Every run of a matrix in its order, also one that recorded nothing."""
    sides = {Path(side.folder): side for side in compared.sides}
    lines = []
    for folder in folders:
        side = sides.get(folder.resolve())
        if side is None:
            status = (run_facts(folder) or {}).get("status", LEFT)
            lines.append(Line(folder.parent.name, str(status), "", {}))
        else:
            lines.append(Line(side.label, side.status, side.source, _of_run(_measured(folder))))
    return lines


def render(compared: Comparison) -> str:
    """The page as text; its figures are always those of all ranks, even if only one rank was compared."""
    sides = compared.sides
    measured = [_measured(Path(side.folder)) for side in sides]
    stages = _merged([[stage for stage, _ in one if stage] for one in measured])
    words = words_of_runs(side.source for side in sides)
    peaks = {f"peak_{measure}": name for measure, name in words.measures.items()}
    whole = [_of_run(one) for one in measured]
    numbers = {**{measure: f"{name}, peak" for measure, name in peaks.items()}, **NUMBERS}
    if not any("step_duration" in one for one in whole):
        del numbers["step_duration"]
    shown = [measure for measure in SHOWN if measure in peaks or measure in NUMBERS]
    figures = _figures(_picture_labels(sides), stages, measured, peaks)
    moves, num_moves = _moves(compared, shown)
    facts: Row = {
        "sides": sides,
        "sql": sql_texts(["run_overview", "measures", "run_values", "versions"]),
        "failed": [side for side in sides if side.status != "ok"],
        "notes": _notes(sides),
        "words": words,
        "headings": list(numbers.values()),
        "whole": _whole(whole, list(numbers)),
        "stages": stages,
        "by_stage": [
            [_cell(one.get((stage, "peak_allocated")), None) for stage in stages] for one in measured
        ],
        "differences": [
            (one.key, _clipped(one.values[0]), _others(one, sides)) for one in compared.differences
        ],
        "measures": [f"peak {peaks[name]}" if name in peaks else NUMBERS[name] for name in shown],
        "moves": moves,
        "num_moves": num_moves,
        "least": LEAST_FRACTION,
        "limits": list(check_lines(compared)),
        "figures": figures,
        "plotly": packed_plotly() if figures else "",
    }
    return environment().get_template(TEMPLATE).render(**facts)


def _measured(run_dir: Path) -> Measured:
    return {(row["stage"], row["measure"]): row for row in database.query(run_dir, "measures").to_pylist()}


def _of_run(measured: Measured) -> dict[str, Row]:
    """The measures of the whole run by name; a step is one of the denoise loop."""
    return {name: row for (stage, name), row in measured.items() if stage is None or name == "step_duration"}


def _merged(lists: Sequence[Sequence[str]]) -> list[str]:
    """Each name once; a name that earlier lists lack comes after the name before it in its own list."""
    merged: list[str] = []
    for names in lists:
        at = 0
        for name in names:
            if name not in merged:
                merged.insert(at, name)
            at = merged.index(name) + 1
    return merged


def _picture_labels(sides: Sequence[Side]) -> list[str]:
    """Labels beside a figure: cut in the middle unless two would look the same, and with the status of a failed run."""
    half = MOST_IN_PICTURE // 2 - 1
    labels = [side.label for side in sides]
    cut = [one if len(one) <= MOST_IN_PICTURE else f"{one[:half]}..{one[-half:]}" for one in labels]
    named = cut if len(set(cut)) == len(cut) else labels
    return [
        label if side.status == "ok" else f"{label} ({side.status})"
        for label, side in zip(named, sides, strict=True)
    ]


def _figures(
    labels: Sequence[str], stages: Sequence[str], measured: Sequence[Measured], peaks: Mapping[str, str]
) -> dict[str, plots.Figure]:
    figures = {}
    of_runs = {name: [_size(one, None, measure) for one in measured] for measure, name in peaks.items()}
    if any(size is not None for sizes in of_runs.values() for size in sizes):
        figures["peaks"] = comparison_plots.peaks_of_runs(labels, of_runs)
    if stages:
        sizes = [[_size(one, stage, "peak_allocated") for stage in stages] for one in measured]
        figures["stages"] = comparison_plots.stages_of_runs(labels, stages, sizes)
    return figures


def _size(measured: Measured, stage: str | None, measure: str) -> int | None:
    row = measured.get((stage, measure))
    return None if row is None else int(row["value"])


def _whole(runs: Sequence[Mapping[str, Row]], numbers: Sequence[str]) -> list[list[Row]]:
    """A line for each run with a cell for each of these measures; the change is against the first run."""
    return [
        [_cell(one.get(name), None if one is runs[0] else runs[0].get(name)) for name in numbers]
        for one in runs
    ]


def _cell(row: Row | None, base: Row | None) -> Row:
    if row is None:
        return {"value": "-", "change": ""}
    value, unit = row["value"], row["unit"]
    change = "" if base is None else change_text(value - base["value"], base["value"], unit)
    return {"value": _shown(value, unit, row["is_at_least"]), "change": change}


def _shown(value: float | None, unit: str, is_at_least: bool) -> str | Markup:
    """A figure with its unit; a size has the exact bytes as a tooltip, and says if it is a lower bound."""
    text = at_least(number_text(value, unit), is_at_least)
    if value is None or unit != "bytes":
        return text
    return Markup('<span title="{:,} bytes">{}</span>').format(round(value), text)


def _notes(sides: Sequence[Side]) -> list[str]:
    """What a reader must know before comparing figures."""
    notes = []
    ranks = sorted({side.num_ranks for side in sides})
    if len(ranks) > 1:
        listed = " and ".join((", ".join(map(str, ranks[:-1])), str(ranks[-1])))
        notes.append(f"The runs have {listed} ranks. Every figure is that of a run's worst rank.")
    sources = sorted({side.source or "unknown" for side in sides})
    if len(sources) > 1:
        notes.append(
            f"The runs have different sources ({', '.join(sources)}): not all were measured in the same way."
        )
    notes += [f"{side.label} is not whole: {line}." for side in sides for line in side.lacking]
    return notes + [f"{side.label}: {line}." for side in sides for line in side.bounds]


def _others(difference: Difference, sides: Sequence[Side]) -> list[tuple[str, str]]:
    """Values that differ from that of the first run, each with the runs that have it."""
    runs: dict[str | None, list[str]] = {}
    for side, value in zip(sides[1:], difference.values[1:], strict=True):
        if value != difference.values[0]:
            runs.setdefault(value, []).append(side.label)
    return [(_clipped(value), ", ".join(labels)) for value, labels in runs.items()]


def _clipped(value: str | None) -> str:
    if not value:
        return "not set" if value is None else "empty"
    return shortened(value, MOST_LETTERS)


def _moves(compared: Comparison, shown: Sequence[str]) -> tuple[list[Row], int]:
    """The spans of all runs that moved most, the largest moves first; and how many moved in all."""
    spans = moved_of(compared.moves.to_pylist(), "span")
    moved = [one for one in spans if one.share >= LEAST_FRACTION]
    moved.sort(key=attrgetter("share"), reverse=True)
    return [_move(one, compared.sides, shown) for one in moved[:MOST_SPANS]], len(moved)


def _move(span: Moved, sides: Sequence[Side], shown: Sequence[str]) -> Row:
    notes = {None: "", "base": "only in the first run", "other": "not in the first run"}
    return {
        "label": sides[span.run].label,
        "path": span.path,
        "note": notes[span.only_in],
        "cells": [_moved(span.measures.get(measure)) for measure in shown],
    }


def _moved(row: Row | None) -> Row:
    """A cell of a span; if only the first run has the span, the figure is that of the first run."""
    if row is None:
        return {"value": "-", "change": ""}
    of_base = row["only_in"] == "base"
    value = row["base_value" if of_base else "value"]
    is_at_least = row["base_is_at_least" if of_base else "is_at_least"]
    change = "" if row["only_in"] else change_text(row["change"], row["base_value"], row["unit"])
    return {"value": _shown(value, row["unit"], is_at_least), "change": change}
