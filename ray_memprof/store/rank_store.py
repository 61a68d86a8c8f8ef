"""Rows of one rank on disk: sealed Parquet parts, and one open Arrow stream a table that a killed process leaves whole.

    store = RankStore(run_dir, rank=0)
    store.append("spans", {"span_id": [1], "parent_id": [0], ...})
    store.close()

Leaves tables/<table>/rank=N/part-NNNNN.parquet and tables/manifest-rank=N.jsonl, one line a part. What is appended is
with the kernel when append() returns, so SIGKILL loses nothing; a part is on the disk once the manifest names it.
Rows are not kept in memory: sealing reads the stream back through a mapping.
"""

import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_memprof.errors import DiskFull
from ray_memprof.store.schema import RANK_TABLES, TABLES

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
DATABASE_FILE = "run.duckdb"
EVENTS_FILE = "memory_events.json"
REPORT_FILE = "report.html"
TABLES_DIR = "tables"
TRACE_DIR = "trace"
LOGS_DIR = "logs"
TRACE_FILE = "rank{rank}.pt.trace.json"
"""TensorBoard looks for *.pt.trace.json and takes what comes before for the name of the worker."""
LATEST_LINK = "latest"
OPEN_STREAM = "open.arrows"
PART_SUFFIX = ".parquet"
TEMPORARY_SUFFIX = ".tmp"
_PART_KEY = b"part"
"""In the metadata of an open stream: number of the part that it will become."""
SEAL_ROWS = 262_144
SEAL_S = 30.0
Column: TypeAlias = np.ndarray[Any, Any] | Sequence[Any] | pa.Array
# Values that rise, or nearly: their differences are small. All other columns repeat a few values, which a dictionary
# holds once; pyarrow leaves it where it does not pay.
_RISING = frozenset(("seq", "t_ns", "start_ns", "end_ns", "span_id", "parent_id"))


def table_dir(run_dir: Path, table: str, rank: int | None = None) -> Path:
    """Where the parts of `table` lie; without `rank`, those of every rank, or of a table that has none."""
    folder = run_dir / TABLES_DIR / table
    return folder if rank is None else folder / f"rank={rank}"


def part_name(number: int) -> str:
    """File name of the part with this number."""
    return f"part-{number:05d}{PART_SUFFIX}"


def manifest_path(run_dir: Path, rank: int) -> Path:
    """The list of what `rank` sealed."""
    return run_dir / TABLES_DIR / f"manifest-rank={rank}.jsonl"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A line of the manifest."""

    table: str
    file: str
    """Name in the folder of the table and rank."""
    rows: int
    bytes: int


class RankStore:
    """Takes the rows of one rank; append() may be called from several threads.

    Args:
        run_dir: the run folder, or a scratch folder that is collected into it.
        rank: whose rows these are. One store per rank and run: a second one is refused.
        seal_rows: rows after which a table's open stream becomes a part.
        seal_s: age after which it does, whatever its rows, at the next append.
    """

    def __init__(
        self, run_dir: Path, rank: int, *, seal_rows: int = SEAL_ROWS, seal_s: float = SEAL_S
    ) -> None:
        self.run_dir, self.rank = run_dir, rank
        manifest = manifest_path(run_dir, rank)
        with _writing(rank, manifest):
            manifest.parent.mkdir(parents=True, exist_ok=True)
            self._manifest = open(manifest, "xb", buffering=0)  # noqa: SIM115 - open as long as the store
        self._lock = threading.Lock()
        self._segments = {
            name: _Segment(run_dir, name, rank, self._note, seal_rows, seal_s) for name in RANK_TABLES
        }

    def append(self, table: str, columns: Mapping[str, Column]) -> None:
        """Add rows to `table`, one sequence a column; columns that may be null can be left out.

        Raises:
            DiskFull: they could not be written, or earlier ones could not. The store then takes no more rows.
            ValueError: the columns are not those of the table's schema.
        """
        batch = to_batch(table, columns)
        if batch.num_rows:
            self._segments[table].append(batch)

    def seal(self) -> None:
        """Turn every open stream into a part.

        Raises:
            DiskFull: a part could not be written; its rows stay in the stream. The other tables are sealed.
        """
        failures = []
        for segment in self._segments.values():
            try:
                segment.seal()
            except DiskFull as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Seal, and take no more rows. What failed before is not told again; its streams stay for collect."""
        if self._manifest.closed:
            return
        try:
            self.seal()
        finally:
            for segment in self._segments.values():
                segment.close()
            self._manifest.close()

    def _note(self, sealed: Sealed) -> None:
        line = json.dumps(asdict(sealed)).encode("ascii") + b"\n"
        with self._lock, _writing(self.rank, Path(self._manifest.name)):
            # One write: a reader finds the whole line or, after a crash, an end that is not JSON.
            if self._manifest.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._manifest.fileno())


class _Segment:
    """The open stream of one table, and the parts it became."""

    def __init__(
        self,
        run_dir: Path,
        table: str,
        rank: int,
        note: Callable[[Sealed], None],
        seal_rows: int,
        seal_s: float,
    ) -> None:
        self._table, self._rank, self._note = table, rank, note
        self._seal_rows, self._seal_s = seal_rows, seal_s
        self._folder = table_dir(run_dir, table, rank)
        self._lock = threading.Lock()
        self._file: Any = None
        self._sink = io.BytesIO()
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._num_rows = self._num_parts = 0
        self._opened_s = 0.0
        self._failure: DiskFull | None = None

    def append(self, batch: pa.RecordBatch) -> None:
        with self._lock, self._failing():
            if self._writer is None:
                self._open()
            assert self._writer is not None
            with _writing(self._rank, self._folder / OPEN_STREAM):
                self._writer.write_batch(batch)
                self._put()
            self._num_rows += batch.num_rows
            if self._num_rows >= self._seal_rows or time.monotonic() - self._opened_s >= self._seal_s:
                self._seal()

    def seal(self) -> None:
        if self._failure is not None:
            return
        with self._lock, self._failing():
            self._seal()

    def close(self) -> None:
        with self._lock:
            # After a failure the writer stays unclosed: its end-of-stream mark would want disk space too.
            if self._file is not None:
                with _ignoring_disk_errors():
                    self._file.close()
                self._file = self._writer = None
            self._failure = self._failure or DiskFull(f"rank {self._rank}: {self._table} is closed")

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Remember the first failure and repeat it: what follows a torn batch in a stream could not be read."""
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except DiskFull as error:
            self._failure = error
            raise

    def _open(self) -> None:
        path = self._folder / OPEN_STREAM
        schema = TABLES[self._table].schema
        schema = schema.with_metadata({**schema.metadata, _PART_KEY: str(self._num_parts)})
        with _writing(self._rank, path):
            self._folder.mkdir(parents=True, exist_ok=True)
            # Without a buffer of Python's: a child that is forked half-way through a write would have a copy of it, and
            # write it once more when it ends.
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - until it is sealed
            self._sink = io.BytesIO()
            self._writer = pa.ipc.new_stream(self._sink, schema)
        self._num_rows, self._opened_s = 0, time.monotonic()

    def _put(self) -> None:
        """Give the kernel what the writer made, in as few calls as it takes."""
        with self._sink.getbuffer() as made:
            num_written = 0
            while num_written < len(made):
                num_written += self._file.write(made[num_written:])
        self._sink.seek(0)
        self._sink.truncate()

    def _seal(self) -> None:
        if self._writer is None:
            return
        stream = self._folder / OPEN_STREAM
        with _writing(self._rank, stream):
            self._writer.close()
            self._put()
            self._file.close()
            self._writer = self._file = None
        name = part_name(self._num_parts)
        with _writing(self._rank, self._folder / name):
            rows = read_stream(stream)
            assert rows.num_lost_bytes == 0, f"{stream}: {rows.num_lost_bytes} bytes are unreadable"
            size = write_part(self._folder / name, rows.table)
        # In this order: collect drops a part that the manifest lacks, for its rows are in the stream still, and a
        # stream whose part the manifest has.
        self._note(Sealed(self._table, name, rows.table.num_rows, size))
        with _writing(self._rank, stream):
            stream.unlink()
        self._num_parts += 1


def to_batch(table: str, columns: Mapping[str, Column]) -> pa.RecordBatch:
    """`columns` as the schema of `table` wants them.

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
    """At its end: a batch that was being written when the process ended."""


def read_stream(path: Path, *, suspicious: bool = False) -> StreamRows:
    """All complete batches of an open stream, mapped rather than read; `suspicious`: check every value of them."""
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
        part = int(reader.schema.metadata[_PART_KEY])
        table = pa.Table.from_batches(batches, reader.schema)
        return StreamRows(table, part, path.stat().st_size - end)


def write_part(path: Path, table: pa.Table) -> int:
    """Write `table` to `path` so that it is there whole or not at all, power cuts included; its size in bytes."""
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != _PART_KEY}
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write under; the file becomes `path` when the block ends well, and else it is gone.

    `path` is there whole or not at all, power cuts included. One writer of a path at a time.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()  # on a full disk its bytes are what others need
        raise


@contextmanager
def run_file(path: Path) -> Iterator[Path]:
    """The same for what the driver derives from the tables of a run.

    Raises:
        DiskFull: it could not be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise disk_error("the driver", path, error) from error


def replace(temporary: Path, path: Path) -> None:
    """Rename, and see that the name is on the disk too."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _writing(rank: int, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(f"rank {rank}", path, error) from error


def disk_error(
    who: str,
    path: Path,
    error: OSError,
    *,
    instead: str = "point logging.output_dir or ray.scratch_dir at another one",
) -> DiskFull:
    """The error of what could not be written, with the reason in the system's own words.

    Args:
        who: wrote it.
        path: where to.
        error: the reason.
        instead: what to do where there can be no room on that disk; the default is for a run that is recorded.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    return DiskFull(f"{who}: cannot write {path}: {reason}", hint=f"make room on that disk, or {instead}")


@contextmanager
def _ignoring_disk_errors() -> Iterator[None]:
    """For the buffers of a stream that failed already: its error is known, and closing tries to write them again."""
    try:
        yield
    except OSError:
        pass


def log_name(rank: int) -> str:
    """The log of a rank, from the run folder."""
    return f"logs/rank{rank}.log"
