"""The table with which a matrix ends on the console: a row for each run, with its changes against the first.

    sys.stderr.write(matrix_text([Line("one", "ok", "cuda", measured), ...]))

Takes the question `measures` of every run; writes no file. comparison_page.py shows the same numbers and more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_memprof.query.answers import Shown, columns_text
from ray_memprof.report.words import words_of_runs
from ray_memprof.wording import at_least, change_text, number_text

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One of the runs."""

    name: str
    status: str
    source: str
    measures: Mapping[str, Row]
    """Rows of `measures` for the whole run, by measure; empty: the run recorded nothing."""


def matrix_text(lines: Sequence[Line], width: int | None = None) -> str:
    """A row for each run: how it ended, the peaks of its fullest rank, and the seconds of a step.

    Behind each figure stands its change against the first run that has this figure.

    Args:
        lines: the runs in their order.
        width: of the terminal; None: lines are as wide as they need to be.
    """
    words = words_of_runs(line.source for line in lines if line.measures)
    columns = [
        Shown("run", [line.name for line in lines], is_number=False),
        Shown("status", [line.status for line in lines], is_number=False),
    ]
    for measure in ("allocated", "reserved", "device_used"):
        if measure in words.measures:
            name = f"{words.measures[measure]}, peak"
            columns += _figures(name, [line.measures.get(f"peak_{measure}") for line in lines])
    return columns_text(
        [*columns, *_figures("a step", [line.measures.get("step_duration") for line in lines])], width
    )


def _figures(name: str, rows: Sequence[Row | None]) -> list[Shown]:
    """A column of figures and one of their changes; none if no run has the figure."""
    base = next((row for row in rows if row is not None), None)
    if base is None:
        return []
    figures = ["-" if row is None else _figure(row) for row in rows]
    changes = ["" if row is base else _change(row, base) for row in rows]
    return [Shown(name, figures), Shown("change", changes)]


def _figure(row: Row) -> str:
    return at_least(number_text(row["value"], row["unit"]), bool(row.get("is_at_least")))


def _change(row: Row | None, base: Row) -> str:
    return "-" if row is None else change_text(row["value"] - base["value"], base["value"], row["unit"])
