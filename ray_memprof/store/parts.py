"""Rows as Arrow batches, as a stream that stays open, and as a sealed Parquet part.

    batch = to_batch("spans", columns)
    rows = read_stream(path)              # also of a stream whose writer was killed
    write_part(path, rows.table)

Reads and writes files; rank_store.py and gather.py decide which file belongs to which rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_memprof.store.schema import TABLES
from ray_memprof.store.whole_file import replacing

PART_KEY = b"part"
"""Key in the metadata of an open stream; its value is the number of the part that the stream will become."""

Column: TypeAlias = np.ndarray[Any, Any] | Sequence[Any] | pa.Array

# Columns whose values rise, or nearly: the differences are small. All other columns repeat a few values, which a
# dictionary holds once; pyarrow uses no dictionary where it does not pay.
_RISING = frozenset(("seq", "t_ns", "start_ns", "end_ns", "span_id", "parent_id"))

SEAL_ROWS = 262_144


def to_batch(table: str, columns: Mapping[str, Column]) -> pa.RecordBatch:
    """Return `columns` as a batch with the schema of `table`.

    Raises:
        ValueError: a column is unknown, missing, of another length or type, or null where that is not allowed.
    """
    schema = TABLES[table].schema
    wanted = {field.name for field in schema if not field.nullable}
    if unknown := columns.keys() - set(schema.names):
        raise ValueError(
            f"{table} has no column {', '.join(sorted(unknown))}; it has {', '.join(schema.names)}"
        )
    if missing := wanted - columns.keys():
        raise ValueError(f"{table} needs the columns {', '.join(sorted(missing))} too")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{table}: columns differ in length: {lengths}")
    num_rows = next(iter(lengths.values()))
    arrays = []
    for field in schema:
        array = _to_array(table, field, columns[field.name]) if field.name in columns else None
        arrays.append(pa.nulls(num_rows, field.type) if array is None else array)
        if array is not None and array.null_count and not field.nullable:
            raise ValueError(f"{table}.{field.name} must not be null; {array.null_count} values are")
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _to_array(table: str, field: pa.Field, column: Column) -> pa.Array:
    try:
        if isinstance(column, pa.Array):
            return column if column.type.equals(field.type) else column.cast(field.type)
        return pa.array(column, type=field.type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(f"{table}.{field.name} takes {field.type}: {error}") from error


@dataclass(frozen=True, slots=True)
class StreamRows:
    """What an open stream holds."""

    table: pa.Table
    part: int
    """Number of the part that it was to become; -1: not even its head can be read."""
    num_lost_bytes: int
    """Bytes at its end that cannot be read: a batch that was being written when the process ended."""


def read_stream(path: Path, *, suspicious: bool = False) -> StreamRows:
    """Return all complete batches of an open stream, mapped and not read; `suspicious`: check all their values."""
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except (pa.ArrowInvalid, OSError):
            return StreamRows(pa.table({}), -1, path.stat().st_size)
        batches, end = [], source.tell()
        while True:
            try:
                batch = reader.read_next_batch()
                if suspicious:
                    batch.validate(full=True)
            except StopIteration:
                end = source.tell()
                break
            except (pa.ArrowInvalid, OSError):
                break
            batches.append(batch)
            end = source.tell()
        part = int(reader.schema.metadata[PART_KEY])
        table = pa.Table.from_batches(batches, reader.schema)
        return StreamRows(table, part, path.stat().st_size - end)


def write_part(path: Path, table: pa.Table) -> int:
    """Write `table` to `path`, whole or not at all, even if the power fails; return its size in bytes."""
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != PART_KEY}
    # A dictionary that changes half-way makes the Parquet writer give up on dictionaries for the rest of the column.
    table = table.replace_schema_metadata(metadata).unify_dictionaries()
    rising = [name for name in table.schema.names if name in _RISING]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        pq.write_table(
            table,
            file,
            compression="zstd",
            use_dictionary=[name for name in table.schema.names if name not in rising],
            column_encoding=dict.fromkeys(rising, "DELTA_BINARY_PACKED"),
            row_group_size=SEAL_ROWS,
        )
    return path.stat().st_size
