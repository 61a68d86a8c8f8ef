"""How long the shipped questions take: each on 8 ranks x 1 M events, some on 256 ranks, one against pickle.

    python scripts/bench_sql.py                      # makes 8 ranks x 1 M events, asks every question
    python scripts/bench_sql.py --run profiler_logs/baseline/latest
    python scripts/bench_sql.py --large              # 256 ranks x 400 k events: 102 M rows
    python scripts/bench_sql.py --pickle             # running peak of 1 M events, SQL beside pickle and a loop

Run it with the package importable (`make env`, or PYTHONPATH=.). Every question is asked as database.query() does:
opening the run reads the small tables that the question needs from Parquet, then it runs once. Both are timed, on
connections of their own, and the median of --repeats is given; files are in the page cache. With --large, each question
has a process of its own, with DuckDB's memory_limit at --memory-limit; resident memory is the kernel's own high-water
mark (VmHWM) and counts the interpreter and its libraries. With --pickle, the same rank is exported as a torch snapshot;
pickle.load and a loop in Python give the peak of its events, and the question peak_event gives the same peak from the
tables: once with the spans to guide it, and once without spans, when it must follow every event. Runs that it makes are
deleted at the end.
"""

import json
import os
import pickle
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from make_synthetic_run import driver_rows, make_rank
from measuring import in_process, proc_bytes
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ray_memprof.formats.torch_snapshot.write import write_snapshot
from ray_memprof.query import database, questions
from ray_memprof.store import run_tables

GIB, MIB = 2**30, 2**20
LARGE_QUESTIONS = ("peak_by_rank", "peak_event", "imbalance", "alive_at_peak")
REQUESTED_PEAK = """
    SELECT MAX(held) FROM (
        SELECT SUM(IF(action = 'alloc', requested_bytes, -requested_bytes)) OVER (ORDER BY seq) AS held
        FROM allocs WHERE action IN ('alloc', 'free_requested')
    )
"""
"""The peak in requested sizes, as a snapshot has them; it is compared, not timed."""

errors = Console(stderr=True)
out = Console()


def ask(run_dir: Path, question: str, memory_limit: str = "") -> dict[str, Any]:
    """Open the run, ask once: seconds of both, rows, and this process's memory."""
    text = questions.question(question)
    start = time.perf_counter()
    with database.open_run(run_dir, text) as connection:
        opened_s = time.perf_counter() - start
        if memory_limit:
            connection.execute(f"SET memory_limit = '{memory_limit}'")
        start = time.perf_counter()
        rows = connection.sql(text).to_arrow_table().num_rows
        asked_s = time.perf_counter() - start
    return {"opened_s": opened_s, "asked_s": asked_s, "rows": rows, "resident": proc_bytes()["VmHWM"]}


def every_question(run_dir: Path, repeats: int) -> None:
    """A line for each question."""
    table = _table("question", "rows", "open + ask, s", "ask, s")
    for name in track(questions.QUESTIONS, "asking", console=errors):
        asked = [ask(run_dir, name) for _ in range(repeats)]
        both = statistics.median(one["opened_s"] + one["asked_s"] for one in asked)
        alone = statistics.median(one["asked_s"] for one in asked)
        table.add_row(name, f"{asked[0]['rows']:,}", f"{both:.2f}", f"{alone:.2f}")
    out.print(table)


def large(run_dir: Path, memory_limit: str, questions: list[str]) -> None:
    """A line for each question, asked in a process of its own."""
    table = _table("question", "rows", "open + ask, s", "ask, s", "resident at most, GiB")
    for name in track(questions, "asking", console=errors):
        one = in_process(__file__, "--run", run_dir, "--measure", name, "--memory-limit", memory_limit)
        both = one["opened_s"] + one["asked_s"]
        figures = (f"{both:.1f}", f"{one['asked_s']:.1f}", f"{one['resident'] / GIB:.2f}")
        table.add_row(name, f"{one['rows']:,}", *figures)
    out.print(f"memory_limit {memory_limit}")
    out.print(table)


def against_pickle(run_dir: Path, repeats: int) -> bool:
    """Print a line for each way to the running peak of rank 0; returns whether they agree."""
    path = write_snapshot(run_dir, 0, run_dir / "rank0.pickle")
    with database.open_run(run_dir) as connection:
        found = connection.execute(REQUESTED_PEAK).fetchone()
        counted = connection.execute("SELECT COUNT(*) FROM allocs").fetchone()
    assert found is not None and counted is not None
    bare = run_dir / "bare"
    shutil.copytree(run_dir / "tables" / "allocs", bare / "tables" / "allocs")
    ways: dict[str, Callable[[], int]] = {
        "pickle.load, then a loop": lambda: loop_over(path),
        "peak_event, no spans": lambda: peak_event(bare),
        "peak_event": lambda: peak_event(run_dir),
    }
    table = _table("running peak", "s", "times as fast", "peak, bytes")
    peaks, slowest = [], 0.0
    for name, way in track(ways.items(), "measuring", console=errors):
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            peak = way()
            taken.append(time.perf_counter() - start)
        median = statistics.median(taken)
        slowest = slowest or median
        peaks.append(peak)
        table.add_row(name, f"{median:.2f}", f"{slowest / median:.1f}", f"{peak:,}")
    out.print(f"{counted[0]:,} events, snapshot of {path.stat().st_size / MIB:,.0f} MiB")
    out.print(table)
    # A snapshot has requested sizes, the tables also those that the allocator counts.
    return peaks == [found[0], peaks[1], peaks[1]]


def loop_over(path: Path) -> int:
    """The running peak of a snapshot's events, as one would write it."""
    with path.open("rb") as file:
        events = pickle.load(file)["device_traces"][0]
    held = peak = 0
    for event in events:
        if event["action"] == "alloc":
            held += event["size"]
            peak = max(peak, held)
        elif event["action"] == "free_requested":
            held -= event["size"]
    return peak


def peak_event(run_dir: Path) -> int:
    """The same from the tables, the run opened for it."""
    (row,) = database.query(run_dir, "peak_event").to_pylist()
    return int(row["allocated_bytes"])


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


@contextmanager
def synthetic_run(ranks: int, events: int) -> Iterator[Path]:
    """A run of this size, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run_dir.mkdir()
        for rank in track(range(ranks), f"making {ranks} x {events:,} events", console=errors):
            make_rank(run_dir, rank, ranks, events)
        run_tables.write_driver_tables(run_dir, *driver_rows(run_dir, ranks))
        yield run_dir


@contextmanager
def chosen_run(run: Path | None, ranks: int, events: int) -> Iterator[Path]:
    """The run that was named, or one made for this call."""
    if run is not None:
        yield run.resolve()
        return
    with synthetic_run(ranks, events) as run_dir:
        yield run_dir


def main(
    run: Annotated[Path | None, typer.Option(help="a run folder; without it, a run is made")] = None,
    is_large: Annotated[
        bool, typer.Option("--large", help="256 ranks x 400 k events, few questions")
    ] = False,
    is_pickle: Annotated[bool, typer.Option("--pickle", help="against pickle.load and a loop")] = False,
    ranks: Annotated[int | None, typer.Option(help="of the run that is made")] = None,
    events: Annotated[int | None, typer.Option(help="of each rank, roughly")] = None,
    repeats: Annotated[int, typer.Option(help="how often each is done; the median counts")] = 5,
    memory_limit: Annotated[str, typer.Option(help="DuckDB's, with --large")] = "3GiB",
    question: Annotated[list[str] | None, typer.Option(help="another one, with --large")] = None,
    measure: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Times the shipped questions."""
    if measure:
        assert run is not None
        typer.echo(json.dumps(ask(run, measure, memory_limit)))
        return
    default_ranks, default_events = (256, 400_000) if is_large else (1 if is_pickle else 8, 1_000_000)
    out.print(
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, DuckDB {database.duckdb.__version__}"
    )
    with chosen_run(run, ranks or default_ranks, events or default_events) as run_dir:
        if is_large:
            large(run_dir, memory_limit, question or list(LARGE_QUESTIONS))
        elif is_pickle:
            if not against_pickle(run_dir, repeats):
                errors.print("the peaks differ")
                raise typer.Exit(1)
        else:
            every_question(run_dir, repeats)


if __name__ == "__main__":
    typer.run(main)
