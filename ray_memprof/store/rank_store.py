"""Rows of one rank on disk: sealed Parquet parts, and for each table an open Arrow stream that survives a kill.

    store = RankStore(run_dir, rank=0)
    store.append("spans", {"span_id": [1], "parent_id": [0], ...})
    store.close()

Leaves tables/<table>/rank=N/part-NNNNN.parquet and tables/manifest-rank=N.jsonl, one line a part. Appended rows
are with the kernel when append() returns, so SIGKILL loses nothing; a part is on the disk once the manifest names it.
Rows are not kept in memory: sealing reads the stream back through a mapping.
"""

import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_memprof.errors import DiskFull
from ray_memprof.store.parts import PART_KEY, SEAL_ROWS, Column, read_stream, to_batch, write_part
from ray_memprof.store.run_files import OPEN_STREAM, manifest_path, part_name, table_dir
from ray_memprof.store.schema import RANK_TABLES, TABLES
from ray_memprof.store.whole_file import disk_error

SEAL_S = 30.0


@dataclass(frozen=True, slots=True)
class Sealed:
    """A line of the manifest."""

    table: str
    file: str
    """Name in the folder of the table and rank."""
    rows: int
    bytes: int


def claim(run_dir: Path, rank: int) -> None:
    """Make the manifest of a rank, for one store.

    Raises:
        DiskFull: it could not be made, or there is one.
    """
    manifest = manifest_path(run_dir, rank)
    with _writing(rank, manifest):
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.touch(exist_ok=False)


class RankStore:
    """Takes the rows of one rank; append() may be called from several threads.

    Args:
        run_dir: the run folder, or a scratch folder that is collected into it.
        rank: whose rows these are. One store per rank and run: a second one is refused.
        seal_rows: rows after which a table's open stream becomes a part.
        seal_s: age after which it becomes a part at the next append, however few rows it has.
        is_claimed: claim() has made its manifest.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        *,
        seal_rows: int = SEAL_ROWS,
        seal_s: float = SEAL_S,
        is_claimed: bool = False,
    ) -> None:
        self.run_dir, self.rank = run_dir, rank
        if not is_claimed:
            claim(run_dir, rank)
        manifest = manifest_path(run_dir, rank)
        with _writing(rank, manifest):
            self._manifest = open(manifest, "ab", buffering=0)  # noqa: SIM115 - open as long as the store
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
        """Seal, and take no more rows. Earlier failures are not raised again; their streams stay for gather.py."""
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
            # After a failure the writer stays unclosed: its end-of-stream mark would need disk space too.
            if self._file is not None:
                with _ignoring_disk_errors():
                    self._file.close()
                self._file = self._writer = None
            self._failure = self._failure or DiskFull(f"rank {self._rank}: {self._table} is closed")

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Remember the first failure and raise it again: rows after a torn batch in a stream could not be read."""
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
        schema = schema.with_metadata({**schema.metadata, PART_KEY: str(self._num_parts)})
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
        # In this order: gather.py writes a part again that the manifest lacks, because its rows are still in the
        # stream, and it drops a stream whose part the manifest has.
        self._note(Sealed(self._table, name, rows.table.num_rows, size))
        with _writing(self._rank, stream):
            stream.unlink()
        self._num_parts += 1


@contextmanager
def _writing(rank: int, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(f"rank {rank}", path, error) from error


@contextmanager
def _ignoring_disk_errors() -> Iterator[None]:
    """For the buffers of a stream that failed: its error is known already, and closing tries to write them again."""
    try:
        yield
    except OSError:
        pass
