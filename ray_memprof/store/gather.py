"""At the end of a run: checks that all records of the ranks are there and whole, and recovers those of dead ranks.

    gathered = gather(run_dir, ranks=range(8))          # ranks that wrote into the run folder themselves
    gathered = gather(run_dir, ranks=range(8), remotes=[Remote(where="host2:/scratch/x", ranks=(4, 5), chunks=...)])
    write_driver_tables(run_dir, run, ranks)

Takes a run folder whose writers have ended. Leaves sealed parts and manifests that agree, no open stream, no temporary
file; a damaged part is set aside as *.damaged, so that the others can be read. Running it again changes nothing,
unless a process still wrote the records of a rank: of those only the sealed parts were there, and were left alone.
Folders of nodes that share no file system come as chunks of bytes: send() there, `remotes` here, over any transport.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_memprof.store.parts import read_stream, write_part
from ray_memprof.store.rank_store import Sealed
from ray_memprof.store.run_files import (
    OPEN_STREAM,
    PART_SUFFIX,
    TABLES_DIR,
    TEMPORARY_SUFFIX,
    manifest_path,
    name_in_run,
    part_name,
    table_dir,
)
from ray_memprof.store.schema import RANK_TABLES
from ray_memprof.store.transfer import Remote, TransportError, receive
from ray_memprof.store.whole_file import driver_writing, replacing
from ray_memprof.store.writer_lock import has_ended
from ray_memprof.wording import rank_text

DAMAGED_SUFFIX = ".damaged"


@dataclass(kw_only=True, slots=True)
class RankRows:
    """The rows of one rank, and their problems."""

    rank: int
    rows: Counter[str] = field(default_factory=Counter)
    """The number of rows by table, recovered ones included."""
    recovered: Counter[str] = field(default_factory=Counter)
    """How many of them came from streams that the rank did not seal before it died."""
    problems: list[str] = field(default_factory=list)
    """One line each: what is damaged, missing or lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """The rows of a run, and their problems."""

    ranks: dict[int, RankRows]
    problems: tuple[str, ...]
    """Those of all ranks and transports, in order."""
    received: frozenset[int] = frozenset()
    """Ranks of other nodes whose files have all arrived."""


def not_all_came(ranks: Iterable[int]) -> str:
    """Return how the problem text begins if files of `ranks` are still on their node; node and cause follow."""
    return f"{rank_text(ranks)}: not all came from "


def recorded_nothing(rank: int) -> str:
    """Return how the problem text begins if there is no row of `rank`; the cause follows."""
    return f"rank {rank}: recorded nothing: "


def still_written(rank: int) -> str:
    """Return how the problem text begins if the records of `rank` are still written; what is there follows."""
    return f"rank {rank}: the process that writes its records still works: "


def gather(run_dir: Path, ranks: Iterable[int], remotes: Sequence[Remote] = ()) -> Gathered:
    """Check and complete the tables of `ranks`; problems of the records are returned, not raised.

    Raises:
        DiskFull: the run folder could not be written; the message says where the records still are.
    """
    problems: list[str] = []
    received = set[int]()
    where = {rank: remote.where for remote in remotes for rank in remote.ranks}
    for remote in remotes:
        try:
            receive(run_dir, remote)
            received.update(remote.ranks)
        except TransportError as error:
            problems.append(f"{not_all_came(remote.ranks)}{remote.where}: {error}")
    # Recovery compresses outside the interpreter's lock: threads use every core.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        gathered = list(pool.map(lambda rank: _gather_rank(run_dir, rank, where.get(rank)), ranks))
    problems += [line for one in gathered for line in one.problems]
    return Gathered(
        ranks={one.rank: one for one in gathered}, problems=tuple(problems), received=frozenset(received)
    )


def _gather_rank(run_dir: Path, rank: int, where: str | None) -> RankRows:
    found = RankRows(rank=rank)
    manifest, is_whole = manifest_path(run_dir, rank), True
    if not manifest.exists():
        found.problems.append(f"{recorded_nothing(rank)}there is no {manifest}")
    elif not has_ended(manifest):
        is_whole = False
        found.problems.append(f"{still_written(rank)}only what it has sealed is there")
    with driver_writing(run_dir, f"of rank {rank} are in {where or run_dir / TABLES_DIR}"):
        listed = _read_manifest(manifest, found)
        before = list(listed)
        for table in RANK_TABLES:
            # What a process still writes is its own: it would fail without its streams.
            if is_whole and table_dir(run_dir, table, rank).is_dir():
                _gather_table(run_dir, table, listed, found)
        if listed != before:
            _write_manifest(manifest, listed)
        kept = [sealed for sealed in listed if _check(run_dir, sealed, found)]
    for sealed in kept:
        found.rows[sealed.table] += sealed.rows
    return found


def _gather_table(run_dir: Path, table: str, listed: list[Sealed], found: RankRows) -> None:
    """Recover the open stream, add parts that the manifest lacks, and remove temporary files."""
    folder = table_dir(run_dir, table, found.rank)
    for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink()
    known = {sealed.file for sealed in listed if sealed.table == table}
    stream = folder / OPEN_STREAM
    if stream.exists():
        known |= _recover(stream, table, known, listed, found)
    for path in sorted(folder.glob(f"*{PART_SUFFIX}")):
        if path.name not in known:
            # Its line of the manifest is lost, and no stream holds its rows: it is better kept than thrown away.
            num_rows = _num_rows(path)
            line = f"{name_in_run(run_dir, path)} is not in the manifest"
            found.problems.append(f"rank {found.rank}: {line}{'; kept' if num_rows is not None else ''}")
            listed.append(Sealed(table, path.name, num_rows or 0, path.stat().st_size))


def _recover(stream: Path, table: str, known: set[str], listed: list[Sealed], found: RankRows) -> set[str]:
    """Turn the complete batches of an open stream into a part; return its name, or nothing if there was none."""
    rows = read_stream(stream, suspicious=True)
    name = part_name(rows.part)
    recovered = set[str]()
    # If the manifest has the part of that number, it holds the same rows: the rank died before it removed the stream.
    if name not in known:
        if rows.num_lost_bytes:
            found.problems.append(
                f"rank {found.rank}: the last {rows.num_lost_bytes:,} bytes of {table} cannot be read; "
                f"the rank ended while it wrote them. {rows.table.num_rows:,} rows before them are kept"
            )
        if rows.table.num_rows:
            size = write_part(stream.with_name(name), rows.table)
            listed.append(Sealed(table, name, rows.table.num_rows, size))
            found.recovered[table] += rows.table.num_rows
            recovered = {name}
            # Before the stream is removed: what a crash of the driver leaves must be complete too.
            _write_manifest(manifest_path(stream.parents[3], found.rank), listed)
    stream.unlink()
    return recovered


def _check(run_dir: Path, sealed: Sealed, found: RankRows) -> bool:
    """Whether a part is as the manifest says; a damaged one is set aside."""
    path = table_dir(run_dir, sealed.table, found.rank) / sealed.file
    if not path.exists():
        aside = path.with_name(path.name + DAMAGED_SUFFIX)
        state = f"is damaged, see {aside.name}" if aside.exists() else "is missing"
        found.problems.append(
            f"rank {found.rank}: {name_in_run(run_dir, path)} {state}: {sealed.rows:,} rows are lost"
        )
        return False
    size, num_rows = path.stat().st_size, _num_rows(path)
    if (size, num_rows) == (sealed.bytes, sealed.rows):
        return True
    os.replace(path, path.with_name(path.name + DAMAGED_SUFFIX))
    rows = "no footer" if num_rows is None else f"{num_rows:,} rows"
    found.problems.append(
        f"rank {found.rank}: {name_in_run(run_dir, path)} is damaged: {size:,} bytes and {rows} instead of "
        f"{sealed.bytes:,} and {sealed.rows:,} rows; set aside as *{DAMAGED_SUFFIX}"
    )
    return False


def _num_rows(path: Path) -> int | None:
    """Return the number of rows of a Parquet file by its footer; None where that cannot be read."""
    try:
        # Absolute: pyarrow would take `run:2/x.parquet` for an address, and would not find the file.
        return int(pq.read_metadata(path.absolute()).num_rows)
    except (pa.ArrowInvalid, OSError):
        return None


def _read_manifest(path: Path, found: RankRows) -> list[Sealed]:
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    listed = []
    # A manifest ends with a newline; a line without one was being written when the rank ended, and the stream that it
    # is about is still there.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            listed.append(Sealed(**json.loads(line)))
        except (ValueError, TypeError):
            found.problems.append(f"rank {found.rank}: line {number} of {path} cannot be read")
    return listed


def rewrite_sizes(run_dir: Path, rank: int, sizes: Mapping[tuple[str, str], int]) -> None:
    """Note new sizes in bytes of parts, by table and file, in the manifest of a rank whose rows are gathered."""
    path = manifest_path(run_dir, rank)
    listed = _read_manifest(path, RankRows(rank=rank))
    _write_manifest(path, [replace(one, bytes=sizes.get((one.table, one.file), one.bytes)) for one in listed])


def _write_manifest(path: Path, listed: Sequence[Sealed]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(
            "".join(json.dumps(asdict(sealed)) + "\n" for sealed in listed), encoding="ascii"
        )
