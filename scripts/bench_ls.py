"""How long `ray-memprof ls` takes, and `--help`: the whole process, as a person waits for it.

    python scripts/bench_ls.py                          # 1,000 runs of 4 ranks, made here
    python scripts/bench_ls.py --runs 200 --ranks 8

One run is made and derived; the others are copies of it. `older` are the same runs without summary.json, as an older
version left them: those are asked through the footers of their Parquet files. The median of --repeats calls counts;
files are in the page cache.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from make_synthetic_run import driver_rows, make_rank

from ray_memprof.report.derive import derive
from ray_memprof.store import run_tables
from ray_memprof.store.run_files import EVENTS_FILE, REPORT_FILE, RUN_FILE, SUMMARY_FILE

COMMAND = (sys.executable, "-m", "ray_memprof.cli")
EVENTS = 2_000


def make(logs: Path, runs: int, ranks: int) -> None:
    """So many runs."""
    first = logs / "bench" / "20260101-000000-0000"
    first.mkdir(parents=True)
    for rank in range(ranks):
        make_rank(first, rank, ranks, EVENTS, level="event")
    row, rank_rows = driver_rows(first, ranks)
    run_tables.write_driver_tables(first, row, rank_rows)
    facts = {name: row[name] for name in ("start_ns", "end_ns", "status", "exit_code", "reason", "num_ranks")}
    derive(first, [])
    for name in (REPORT_FILE, EVENTS_FILE):  # megabytes that are never read here
        (first / name).write_bytes(b"")
    for number in range(runs):
        run = first if number == 0 else first.with_name(f"20260101-000000-{number:04x}")
        if run != first:
            shutil.copytree(first, run)
        text = json.dumps({**facts, "run_id": run.name, "name": run.parent.name, "environment": {}})
        (run / RUN_FILE).write_text(text)


def median_s(repeats: int, *arguments: str) -> float:
    """Seconds from the start of the process to its end."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([*COMMAND, *arguments], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main(
    runs: Annotated[int, typer.Option(min=1, help="How many runs there are.")] = 1000,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks of each.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of each command.")] = 5,
) -> None:
    """Print seconds for each command."""
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        make(logs, runs, ranks)
        asked = ("ls", "--output-dir", str(logs))
        print(f"--help: {median_s(repeats, '--help'):.2f} s")
        print(f"ls of {runs:,} runs of {ranks} ranks: {median_s(repeats, *asked):.2f} s")
        print(f"ls --json: {median_s(repeats, *asked, '--json'):.2f} s")
        for run in logs.glob(f"*/*/{SUMMARY_FILE}"):
            run.unlink()
        print(f"ls of {runs:,} older runs: {median_s(repeats, *asked):.2f} s")


if __name__ == "__main__":
    typer.run(main)
