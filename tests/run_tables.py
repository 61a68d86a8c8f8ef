"""Hand-made runs for tests: rows with only what matters written down, and what a question answers on them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_memprof.analysis.diagnosis import diagnose
from ray_memprof.query.database import open_run, query
from ray_memprof.query.questions import rows_of
from ray_memprof.report.summary import number_lines
from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.run_tables import write_driver_tables
from ray_memprof.store.schema import TABLES

Row = dict[str, Any]
MEASURES = ("allocated", "reserved", "active", "device_used", "host_rss")


def blank(table: str, **values: Any) -> Row:
    """A row of `table` with zeros and empty strings where nothing is given, null where that is allowed."""
    row = _empty_row(table)
    assert values.keys() <= row.keys(), values.keys() - row.keys()
    return {**row, **values}


@functools.cache
def _empty_row(table: str) -> Row:
    """Made once: pyarrow looks for a package that is not there at each scalar, which took half of a test's time."""
    row: Row = {}
    for field in TABLES[table].schema:
        is_text = str(field.type).startswith(("string", "dictionary"))
        row[field.name] = None if field.nullable else "" if is_text else pa.scalar(0).cast(field.type).as_py()
    return row


def span(span_id: int, path: str, times: tuple[int, int], **measured: Any) -> Row:
    """A span; a measure is (start, end, peak), all others stay 0. `parent_id` and `depth` follow from the path.

    What is not given of the device is as if the peak had been measured by one sample, and could be no higher.
    """
    names = path.split("/")
    row = {"span_id": span_id, "path": path, "name": names[-1], "stage": names[0], "depth": len(names) - 1}
    for measure in MEASURES:
        for end, value in zip(("start", "end", "peak"), measured.pop(measure, (0, 0, 0)), strict=True):
            row[f"{measure}_{end}_bytes"] = value
    device = {"device_used_bound_bytes": row["device_used_peak_bytes"], "num_samples": 1}
    row = {**row, **device}
    return blank("spans", start_ns=times[0], end_ns=times[1], **{**row, **measured})


def event(seq: int, action: str, size: int, category: str | None = None, **values: Any) -> Row:
    """An allocator event at `seq` ns; `size` is what was asked for too."""
    about = {"t_ns": seq, "requested_bytes": size, **values}
    return blank("allocs", seq=seq, action=action, size_bytes=size, category=category, **about)


def load(store: RankStore, table: str, rows: Sequence[Row]) -> None:
    """Append rows."""
    if rows:
        store.append(table, {name: [row[name] for row in rows] for name in rows[0]})


def make_run(run_dir: Path, ranks: Mapping[int, Mapping[str, Sequence[Row]]]) -> Path:
    """A run folder with these rows, by rank and table; the rows of `ranks` and `runs` come last, if any."""
    for rank, tables in ranks.items():
        store = RankStore(run_dir, rank)
        for table, rows in tables.items():
            load(store, table, rows)
        store.close()
    return run_dir


def make_ranks(run_dir: Path, *rows: Row, **run: Any) -> Path:
    """Tables runs and ranks; the rows are numbered from 0."""
    numbered = [{"rank": rank, **blank("ranks", **row)} for rank, row in enumerate(rows)]
    write_driver_tables(run_dir, blank("runs", schema_version=1, **run), numbered)
    return run_dir


def answer(run_dir: Path, name: str) -> list[tuple[Any, ...]]:
    """Rows of a question, columns in its own order."""
    return [tuple(row.values()) for row in query(run_dir, name).to_pylist()]


def columns(run_dir: Path, name: str) -> list[str]:
    """Columns of a question."""
    return list(query(run_dir, name).column_names)


def summary_lines(run_dir: Path) -> list[str]:
    """The last lines that a run prints."""
    with open_run(run_dir) as connection:
        return number_lines(connection, diagnose.findings(connection), rows_of(connection, "headlines"))
