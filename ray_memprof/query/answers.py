"""Writes rows as a table for people or as a file for programs; the commands query, diagnose and compare use it.

    write_answer(rows, Form.TABLE, None)                    # to the standard output
    write_answer(rows, Form.PARQUET, Path("rows.parquet"))

Takes Arrow tables with columns of any type that SQL can make. Leaves the whole file, or none after an error.
"""

import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_memprof.errors import ConfigError
from ray_memprof.wording import number_text, size_text, visible

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MOST_ROWS = 200
"""The most rows that the table for people shows; every other form has all rows."""
FORMULA = r"^[=+\-@\t\r]"
"""A regular expression of DuckDB for the start of a text that a spreadsheet would compute as a formula."""
_WIDEST = 10_000
_MOMENTS = ("t_ns", "first_ns", "start_ns", "end_ns")
"""Columns that hold a moment of the wall clock; every other column in ns holds a duration."""


class Form(StrEnum):
    """How rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def form_of(out: Path | None) -> Form:
    """The form that the suffix of a file asks for (.csv, .json, .parquet); any other file, and none, is a table."""
    return next((form for form in Form if out is not None and out.suffix == f".{form.value}"), Form.TABLE)


def write_answer(rows: "pa.Table", form: Form, out: Path | None, *, began_ns: int | None = None) -> None:
    """Write rows to a file, or to the standard output.

    Args:
        rows: an answer.
        form: how to write it.
        out: the file; None: the standard output.
        began_ns: when the recording of the run began: moments in a table for people are told from there on.

    Raises:
        BrokenPipeError: nobody reads the standard output any longer.
        ConfigError: Parquet would go to a terminal, or the file `out` cannot be written.
        DiskFull: no room for the file.
    """
    if form is Form.TABLE:
        write_text(table_text(rows, None if out else terminal_width(), began_ns), out)
    elif out is not None:
        from ray_memprof.store.whole_file import whole_file

        with whole_file(out) as temporary:
            _copy(rows, form, temporary)
    elif form is Form.PARQUET and sys.stdout.isatty():
        raise ConfigError("a terminal cannot show Parquet", hint="name a file: --out rows.parquet")
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows"
            _copy(rows, form, path)
            if sys.stdout.isatty():
                sys.stdout.write(visible(path.read_text(encoding="utf-8")))
                return
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def write_text(text: str, out: Path | None) -> None:
    """Write lines of text that are not rows to a file, or to the standard output.

    Raises:
        BrokenPipeError: nobody reads the standard output any longer.
        ConfigError: the file `out` cannot be written.
        DiskFull: no room for the file.
    """
    text = visible(text)
    if out is None:
        sys.stdout.write(text)
        return
    from ray_memprof.store.whole_file import whole_file

    with whole_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _copy(rows: "pa.Table", form: Form, path: Path) -> None:
    """Write rows with DuckDB, which can write every type that a question can have."""
    import duckdb

    from ray_memprof.wording import first_line

    if form is Form.JSON:
        rows = _finite(rows)
    options = {Form.CSV: "HEADER", Form.JSON: "ARRAY true", Form.PARQUET: "COMPRESSION zstd"}[form]
    # An absolute path: DuckDB would take `file:x.csv` and `s3:/x.csv` for addresses.
    target = str(path.absolute()).replace("'", "''")
    with duckdb.connect() as connection:
        connection.register("answer", rows)
        chosen = without_formulas(connection, "answer") if form is Form.CSV else "FROM answer"
        try:
            connection.execute(f"COPY ({chosen}) TO '{target}' (FORMAT {form.value}, {options})")
        except duckdb.IOException as error:
            raise OSError(first_line(error)) from error


def without_formulas(connection: "duckdb.DuckDBPyConnection", name: str) -> str:
    """A SELECT of a table or view that puts an apostrophe before each text that a spreadsheet would compute."""
    described = connection.execute(f"DESCRIBE {name}").fetchall()
    texts = ['"' + column.replace('"', '""') + '"' for column, kind, *_ in described if kind == "VARCHAR"]
    marked = [f"regexp_replace({text}, '({FORMULA})', chr(39) || '\\1') AS {text}" for text in texts]
    return f"SELECT * REPLACE ({', '.join(marked)}) FROM {name}" if marked else f"FROM {name}"


def _finite(rows: "pa.Table") -> "pa.Table":
    """Rows with null in place of NaN and infinity, which JSON cannot express."""
    import pyarrow as pa

    for number, field in enumerate(rows.schema):
        chunks = [_finite_array(chunk) for chunk in rows.column(number).chunks]
        rows = rows.set_column(number, field, pa.chunked_array(chunks, field.type))
    return rows


def _finite_array(array: "pa.Array") -> "pa.Array":
    """Null in place of NaN and infinity, also inside lists, structs and the values of maps; same length and type."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_finite(array), array, pa.scalar(None, kind))
    if pa.types.is_struct(kind):
        parts = [_finite_array(array.field(number)) for number in range(kind.num_fields)]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=array.is_null())
    if pa.types.is_map(kind):
        fields = [kind.key_field, kind.item_field]
        inner = pa.StructArray.from_arrays([array.keys, _finite_array(array.items)], fields=fields)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _finite_array(array.values)
    else:
        return array
    # The array's own buffers: the validity and, if lists differ in length, the start of each list. Later buffers are
    # those of the values.
    own = array.buffers()[: 1 if pa.types.is_fixed_size_list(kind) else 2]
    return pa.Array.from_buffers(kind, len(array), own, offset=array.offset, children=[inner])


def terminal_width() -> int | None:
    """Columns of the terminal; None: the output is not a terminal, and lines are as long as they need to be."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def has_moments(rows: "pa.Table") -> bool:
    """Whether a column of an answer has moments."""
    return any(name in _MOMENTS for name in rows.column_names)


def table_text(rows: "pa.Table", width: int | None = None, began_ns: int | None = None) -> str:
    """Rows for people: bytes with their unit, durations and moments in seconds, at most MOST_ROWS rows.

    Without `began_ns` moments are nanoseconds since 1970.
    """
    text = columns_text(shown_columns(rows.slice(0, MOST_ROWS), began_ns), width)
    if rows.num_rows > MOST_ROWS:
        text += f"{rows.num_rows - MOST_ROWS:,} more rows; --format csv, json or parquet has all of them\n"
    return text


def shown_columns(rows: "pa.Table", began_ns: int | None = None) -> "list[Shown]":
    """The columns of all rows, with values as people read them; moments: see table_text()."""
    is_by_row = rows.column_names.count("unit") == 1
    units = _values(rows.column("unit")) if is_by_row else [None] * rows.num_rows
    columns = []
    for field, column in zip(rows.schema, rows.columns, strict=True):
        cells = [
            cell(field.name, value, unit, began_ns)
            for value, unit in zip(_values(column), units, strict=True)
        ]
        columns.append(Shown(field.name, cells, is_number(field.type)))
    return columns


def _values(column: "pa.ChunkedArray") -> list[Any]:
    """Values as Python objects; as text where Python has no such value, for example a date after the year 9999."""
    import duckdb
    import pyarrow as pa

    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError):
        with duckdb.connect() as connection:
            connection.register("answer", pa.table({"v": column}))
            return [row[0] for row in connection.execute("SELECT v::VARCHAR FROM answer").fetchall()]


def is_number(kind: "pa.DataType") -> bool:
    """Whether values of this type are aligned at the right."""
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Shown:
    """A column of a table for people."""

    name: str
    cells: Sequence[str]
    is_number: bool = True


def columns_text(columns: Sequence[Shown], width: int | None = None) -> str:
    """Columns as lines of text; rows that are wider than `width` are turned: a line for each of their cells."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column.name, justify="right" if column.is_number else "left", overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        shown.add_row(*map(visible, cells))
    console = Console(width=_WIDEST, color_system=None, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(shown)
    lines = "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n").split("\n")
    if width is not None and columns and columns[0].cells and max(map(cell_len, lines)) > width:
        return turned_text(columns)
    return "\n".join(lines) + "\n"


def turned_text(columns: Sequence[Shown]) -> str:
    """A line for each cell with the name of its column before it, and a line between two rows; paths stay whole."""
    widest = max(len(visible(column.name)) for column in columns)
    rows = zip(*(column.cells for column in columns), strict=True)
    blocks = (
        "".join(
            f" {visible(column.name):<{widest}}   {visible(text)}".rstrip() + "\n"
            for column, text in zip(columns, cells, strict=True)
        )
        for cells in rows
    )
    return "\n".join(blocks)


def cell(column: str, value: Any, unit: str | None = None, began_ns: int | None = None) -> str:
    """A value as people read it, with the unit of its row if there is one, else with that in its column's name.

    A moment is told in seconds since `began_ns`, if this is known.
    """
    if unit is not None and isinstance(value, float) and math.isfinite(value):
        return number_text(value, unit)
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)  # DuckDB's SUM of a BIGINT comes as a decimal
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        if column == "bytes" or column.endswith("_bytes"):
            return size_text(value)
        if column in _MOMENTS and began_ns is not None:
            return f"{(value - began_ns) / 1e9:+,.3f} s"
        if column.endswith("_ns") and column not in _MOMENTS:
            return f"{value / 1e9:,.3f} s"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
