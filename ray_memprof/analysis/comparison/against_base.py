"""The numbers of a run's report against those of a base run: for each the base's number, and how far it is from it.

    with open_run(base_dir) as base:
        found = against_base({"peak_by_rank": rows}, base)
    found.change("peak_by_rank", rows[0], "allocated_peak_bytes").change

Takes answers to questions that were asked already, and a base run that is open; writes no file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ray_memprof.query.questions import rows_of

_SQL = Path(__file__).parent / "sql" / "against_base.sql"
_PEAKS = ("allocated_peak_bytes", "reserved_peak_bytes", "device_used_peak_bytes", "host_rss_peak_bytes")
KEYS = {
    "memory_parts": ("part", "item"),
    "peak_by_rank": ("rank",),
    "books_at_peak": ("rank", "account"),
    "alive_at_peak_by_category": ("rank", "component", "category"),
    "alive_at_peak": ("rank", "component", "category", "path"),
    "peak_by_stage": ("rank", "stage"),
    "imbalance": ("stage", "measure"),
    "steps": ("rank", "stage", "step"),
    "base_memory": ("rank", "component"),
    "activation_by_stage": ("rank", "stage"),
    "fragmentation": ("rank", "stage"),
}
"""Questions that are compared: the columns that tell which row of an answer is which."""
MEASURES = {
    "memory_parts": ("bytes", "duration_ns"),
    "peak_by_rank": _PEAKS,
    "books_at_peak": ("bytes",),
    "alive_at_peak_by_category": ("bytes",),
    "alive_at_peak": ("bytes",),
    "peak_by_stage": (*_PEAKS, "duration_ns"),
    "imbalance": ("max_bytes", "mean_bytes", "min_bytes"),
    "steps": ("allocated_peak_bytes", "reserved_peak_bytes", "device_used_peak_bytes", "duration_ns"),
    "base_memory": ("base_bytes", "load_ns"),
    "activation_by_stage": ("activation_peak_bytes", "base_bytes", "above_base_bytes"),
    "fragmentation": ("fragmentation_bytes", "cached_worst_bytes", "cached_end_bytes", "fluctuation_bytes"),
}
"""Their columns that are compared."""
_FIELDS = (("question", pa.string()), ("key", pa.string()), ("measure", pa.string()), ("value", pa.int64()))

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """A number of the base run, and how far that of the run is from it."""

    base_value: int
    change: int


@dataclass(frozen=True, slots=True)
class AgainstBase:
    """All numbers of a run that its base run has, too."""

    changes: Mapping[tuple[str, str, str], Change]
    """By question, key of the row, and measure."""

    def change(self, question: str, row: Row, measure: str) -> Change | None:
        """That of a number; None: the base has no such number."""
        return self.changes.get((question, _key(question, row), measure))


def against_base(answers: Mapping[str, Sequence[Row]], base: duckdb.DuckDBPyConnection) -> AgainstBase:
    """Set the answers of a run against those of a base run.

    Args:
        answers: by question; those that are not compared are passed over.
        base: an open run.
    """
    asked = [name for name in KEYS if answers.get(name)]
    ranks = sorted({row["rank"] for name in asked for row in answers[name] if "rank" in KEYS[name]})
    with duckdb.connect() as connection:
        connection.register("here", _long({name: answers[name] for name in asked}))
        of_base = {name: rows_of(base, name, ranks if "rank" in KEYS[name] else None) for name in asked}
        connection.register("base", _long(of_base))
        rows = connection.sql(_SQL.read_text(encoding="utf-8")).fetchall()
    return AgainstBase({(name, key, measure): Change(*values) for name, key, measure, *values in rows})


def _long(answers: Mapping[str, Sequence[Row]]) -> pa.Table:
    """A row for each number."""
    listed = list(_numbers(answers))
    schema = pa.schema(_FIELDS)
    return pa.table(
        [list(column) for column in zip(*listed, strict=True)] or [[]] * len(schema), schema=schema
    )


def _numbers(answers: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, str, str, int]]:
    for name, rows in answers.items():
        for row in rows:
            key = _key(name, row)
            for measure in MEASURES[name]:
                if row[measure] is not None:
                    yield name, key, measure, round(row[measure])


def _key(question: str, row: Row) -> str:
    return json.dumps([row[column] for column in KEYS[question]])
