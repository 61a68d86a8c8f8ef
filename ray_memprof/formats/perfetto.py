"""A run as a trace for ui.perfetto.dev, chrome://tracing and TensorBoard: spans as slices, memory as counters.

    perfetto.write_perfetto(run_dir, Path("run.trace.json.gz"))

Takes the tables of a run; leaves JSON in the Chrome trace format, compressed if the file's name ends in .gz. Each rank
is a process; its counters are allocated, reserved, device_used and unexplained, in bytes. Time is cut into 4,000
slices; of each slice the first, least, most and last point of a counter is kept, so that peaks keep their height.
"""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from ray_memprof.errors import ConfigError
from ray_memprof.query.database import open_run
from ray_memprof.store.whole_file import check_target, whole_file

SLICES = 4000
_HERE = Path(__file__).parent
_THREAD = 1
_NS_PER_US = 1000
_FETCH_ROWS = 10_000
Event = dict[str, Any]
_LATE = "peaks are at least what is shown: they may lie before the first event"


def write_perfetto(run_dir: Path, path: Path, rank: int | None = None) -> Path:
    """Write the trace of a run, or of one rank of it; returns its path.

    Raises:
        ConfigError: no such run, nothing was recorded of that rank, or no file can be written at `path`.
        DiskFull: no room for the file.
    """
    check_target(path)
    with open_run(run_dir) as connection:
        events = _events(connection, run_dir, rank)
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            _write(file, path.suffix == ".gz", events)
    return path


def _write(file: Any, is_compressed: bool, events: Iterator[Event]) -> None:
    # With the present time in the gzip header, two exports of one run would differ.
    packed = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0) if is_compressed else file
    text = io.TextIOWrapper(packed, encoding="utf-8", write_through=False)
    text.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
    for number, event in enumerate(events):
        text.write(("" if number == 0 else ",\n") + json.dumps(event, separators=(",", ":")))
    text.write("\n]}\n")
    text.detach()
    if is_compressed:
        packed.close()


def _events(connection: duckdb.DuckDBPyConnection, run_dir: Path, rank: int | None) -> Iterator[Event]:
    found = connection.execute("SELECT DISTINCT rank FROM spans ORDER BY rank").fetchall()
    ranks = [row[0] for row in found if rank is None or row[0] == rank]
    if not ranks:
        known = ", ".join(str(row[0]) for row in found) or "none"
        what = "spans" if rank is None else f"spans of rank {rank}"
        raise ConfigError(f"{run_dir} has no {what}", hint=f"ranks of this run: {known}")
    return _all(connection, ranks)


def _all(connection: duckdb.DuckDBPyConnection, ranks: list[int]) -> Iterator[Event]:
    yield from _names(connection, ranks)
    first = connection.execute("SELECT MIN(start_ns) FROM spans").fetchone()
    assert first is not None
    start_ns = int(first[0])
    for row in _rows(connection, "perfetto_spans", []):
        if row["rank"] in ranks:
            yield _slice(row, start_ns)
    for row in _rows(connection, "perfetto_counters", [SLICES]):
        if row["rank"] in ranks:
            yield _counter(row, start_ns)


def _rows(connection: duckdb.DuckDBPyConnection, name: str, parameters: list[Any]) -> Iterator[Event]:
    cursor = connection.execute((_HERE / f"{name}.sql").read_text(encoding="utf-8"), parameters)
    columns = [column[0] for column in cursor.description or ()]
    while rows := cursor.fetchmany(_FETCH_ROWS):
        for row in rows:
            yield dict(zip(columns, row, strict=True))


def _names(connection: duckdb.DuckDBPyConnection, ranks: list[int]) -> Iterator[Event]:
    rows = connection.execute("SELECT rank, host, gpu_name, peak_at_least FROM ranks").fetchall()
    places = {rank: ", ".join(part for part in place if part) for rank, *place, _ in rows}
    late = {rank for rank, *_, is_late in rows if is_late}
    for rank in ranks:
        place = places.get(rank)
        name = f"rank {rank}" + (f" ({place})" if place else "")
        yield {"ph": "M", "name": "process_name", "pid": rank, "tid": _THREAD, "args": {"name": name}}
        yield {
            "ph": "M",
            "name": "process_sort_index",
            "pid": rank,
            "tid": _THREAD,
            "args": {"sort_index": rank},
        }
        if rank in late:  # shown beside the name of the process
            yield {
                "ph": "M",
                "name": "process_labels",
                "pid": rank,
                "tid": _THREAD,
                "args": {"labels": _LATE},
            }
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": _THREAD, "args": {"name": "spans"}}


def _slice(row: Event, start_ns: int) -> Event:
    about = {key: row[key] for key in ("step", "block", "branch") if row[key] is not None}
    name = " ".join([row["name"], *(f"{key}={value}" for key, value in about.items() if key != "branch")])
    hidden = ("rank", "name", "start_ns", "end_ns")
    args = {key: value for key, value in row.items() if key not in hidden and value is not None}
    return {
        "ph": "X",
        "cat": row["component"] or "span",
        "name": name,
        "pid": row["rank"],
        "tid": _THREAD,
        "ts": (row["start_ns"] - start_ns) / _NS_PER_US,
        "dur": (row["end_ns"] - row["start_ns"]) / _NS_PER_US,
        "args": args,
    }


def _counter(row: Event, start_ns: int) -> Event:
    return {
        "ph": "C",
        "name": row["counter"],
        "pid": row["rank"],
        "ts": (row["t_ns"] - start_ns) / _NS_PER_US,
        "args": {"bytes": row["bytes"]},
    }
