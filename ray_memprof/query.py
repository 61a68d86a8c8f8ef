"""Questions to one run or several, by name or in SQL, as a table for people or as a file for programs.

    $ ray-memprof query peak_by_rank                              # of the newest run
    $ ray-memprof query "SELECT rank, MAX(reserved_peak_bytes) FROM spans GROUP BY rank" baseline
    $ ray-memprof query imbalance --runs 'profiler_logs/*/latest' --format csv > imbalance.csv

Of several runs every row says which one it is from (run_id, name). Leaves nothing but what --out names.
"""

import glob
import json
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa

from ray_memprof import db
from ray_memprof.errors import ConfigError
from ray_memprof.find_run import find_run
from ray_memprof.schema import TABLES
from ray_memprof.store import TABLES_DIR
from ray_memprof.units import size_text

MOST_ROWS = 200
"""Of the table for people; every other form has all of them."""
_MOMENTS = ("t_ns", "start_ns", "end_ns")
"""Wall clock; every other column in ns is a duration."""


class Form(StrEnum):
    """How the rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def runs_of(pattern: str) -> list[Path]:
    """The run folders that a pattern of the shell matches, each once, sorted by name.

    Raises:
        ConfigError: it matches none.
    """
    found = dict.fromkeys(Path(path).resolve() for path in sorted(glob.glob(pattern)))
    runs = [path for path in found if (path / TABLES_DIR).is_dir()]
    if not runs:
        raise ConfigError(
            f"--runs {pattern!r} matches no run folder",
            hint="put it in quotes, so that the shell leaves it alone: --runs 'profiler_logs/*/latest'",
        )
    return runs


def ask(text: str, run_dirs: Sequence[Path]) -> pa.Table:
    """The rows that a question, a table or any SQL has on the given runs; of several with run_id and name.

    Raises:
        ConfigError: no such question, no such run, or SQL that DuckDB refuses.
    """
    is_name = re.fullmatch(r"\s*\w+\s*", text) is not None
    name = text.strip()
    if is_name and name not in TABLES:
        db.question(name)  # refuses a name that is none
    is_single = len(run_dirs) == 1
    with db.open_run(run_dirs[0]) if is_single else db.open_runs(run_dirs) as connection:
        sql = text
        if is_name:
            # The text of a question, and not FROM its view: only that is sure to keep the order of its rows.
            sql = db.question(name) if is_single and name in db.QUESTIONS else f"FROM {name}"
        try:
            relation = connection.sql(sql)
            if relation is None:
                raise ConfigError("that SQL gives no rows", hint="begin with SELECT, WITH or FROM")
            return relation.to_arrow_table()
        except duckdb.Error as error:
            raise _refused(error) from error


def _refused(error: duckdb.Error) -> ConfigError:
    """DuckDB's message in one line, its own suggestion as the hint."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    suggested = next((line for line in lines[1:] if line.startswith(("Did you mean", "Candidate"))), "")
    return ConfigError(
        f"the SQL is refused: {lines[0]}",
        hint=suggested
        or "`ray-memprof query --list` has the questions and tables; docs/schema.md their columns",
    )


def question_lines() -> list[str]:
    """Every question with the first line of its header, then every table with what a row of it is."""
    width = max(map(len, (*db.QUESTIONS, *TABLES)))
    lines = [f"{name:<{width}}  {db.headline(name)}" for name in db.QUESTIONS]
    return [*lines, "", *(f"{table.name:<{width}}  one row = {table.row}" for table in TABLES.values())]


def write(rows: pa.Table, form: Form, out: Path | None) -> None:
    """Write rows to a file, or to the standard output.

    Raises:
        ConfigError: Parquet onto a terminal, or a file that cannot be written.
    """
    if form is Form.PARQUET and out is None and sys.stdout.isatty():
        raise ConfigError("Parquet is nothing for a terminal", hint="name a file: --out rows.parquet")
    if out is None:
        _write(rows, form, sys.stdout.buffer)
        return
    try:
        with out.open("wb") as file:
            _write(rows, form, file)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}") from error


def write_text(text: str, out: Path | None) -> None:
    """The same for lines that are no rows; a file is added to."""
    if out is None:
        sys.stdout.write(text)
        return
    try:
        with out.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}") from error


def _write(rows: pa.Table, form: Form, file: IO[bytes]) -> None:
    if form is Form.CSV:
        from pyarrow import csv

        csv.write_csv(rows, file)
    elif form is Form.JSON:
        file.write((json.dumps(rows.to_pylist(), indent=1, default=str) + "\n").encode())
    elif form is Form.PARQUET:
        from pyarrow import parquet

        parquet.write_table(rows, file, compression="zstd")
    else:
        file.write(table_text(rows, _width(file)).encode())
    file.flush()


def _width(file: IO[bytes]) -> int | None:
    """Columns of the terminal; None where it is none: then lines are as long as they must be."""
    import shutil

    return shutil.get_terminal_size().columns if file.isatty() else None


def table_text(rows: pa.Table, width: int | None = None) -> str:
    """Rows for people: bytes with their unit, durations in seconds, at most MOST_ROWS of them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for field in rows.schema:
        is_figure = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        shown.add_column(field.name, justify="right" if is_figure else "left", overflow="fold")
    for row in rows.slice(0, MOST_ROWS).to_pylist():
        shown.add_row(*(cell(name, value) for name, value in row.items()))
    console = Console(width=width or 10_000, color_system=None, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(shown)
    text = "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n") + "\n"
    if rows.num_rows > MOST_ROWS:
        text += f"{rows.num_rows - MOST_ROWS:,} more rows; --format csv, json or parquet has all of them\n"
    return text


def cell(column: str, value: Any) -> str:
    """A value as people read it, by the unit in the name of its column."""
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        if column == "bytes" or column.endswith("_bytes"):
            return size_text(value)
        if column.endswith("_ns") and column not in _MOMENTS:
            return f"{value / 1e9:,.3f} s"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def find_runs(run: str | None, pattern: str | None) -> list[Path]:
    """What the command line names: one run, or a pattern of several.

    Raises:
        ConfigError: both are given, or there is no such run.
    """
    if pattern is None:
        return [find_run(run or "latest")]
    if run is not None:
        raise ConfigError(f"either a run ({run}) or --runs, not both")
    return runs_of(pattern)
