"""How long a report takes: written, its diagnosis alone, a comparison with another run, and drawing in a browser.

    python scripts/bench_report.py                              # two runs of 8 ranks x 1 M events, made here
    python scripts/bench_report.py --ranks 256 --events 10000
    python scripts/bench_report.py --ranks 1000 --level stage --events 100000 --repeats 1 --alone
    python scripts/bench_report.py --ranks 16 --level stage --blocks 1 --events 1200000 --alone    # 10,000 steps

Each is done --repeats times, the median counts; files are in the page cache. The browser is Chromium where it and
chromedriver are on PATH: first paint as the browser tells it, and the time until every figure is drawn.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from make_synthetic_run import Variant, driver_rows, make_rank
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ray_memprof.analysis.comparison.compare import compare
from ray_memprof.analysis.diagnosis.diagnose import findings
from ray_memprof.query import database
from ray_memprof.report.comparison_page import write_comparison_page
from ray_memprof.report.derive import derive
from ray_memprof.report.run_page import write_run_page
from ray_memprof.store import run_tables

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser_page import is_there, window

MIB = 2**20
PAINT = "performance.getEntriesByName('first-paint')[0].startTime"
errors, out = Console(stderr=True), Console()


def make(run_dir: Path, ranks: int, events: int, seed: int, blocks: int, level: str) -> Path:
    """A run of this size; another seed gives another run."""
    run_dir.mkdir()
    for rank in track(range(ranks), f"making {ranks} x {events:,} events", console=errors):
        make_rank(run_dir, rank, ranks, events, blocks=blocks, variant=Variant(seed=seed), level=level)
    run_tables.write_driver_tables(run_dir, *driver_rows(run_dir, ranks))
    return run_dir


def median_s(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def diagnose(run_dir: Path) -> None:
    """What `ray-memprof diagnose` asks."""
    with database.open_run(run_dir) as connection:
        findings(connection)


def end_of_run(run_dir: Path) -> None:
    """What the driver derives from the tables when a run has ended."""
    derive(run_dir, [])


def drawn_s(path: Path, profile: Path) -> tuple[float, float]:
    """Seconds from the request of a page to its first paint, and until everything is drawn."""
    with window(profile) as page:
        start = time.perf_counter()
        page.open(path)
        return page.ask(PAINT) / 1e3, time.perf_counter() - start


def main(
    ranks: Annotated[int, typer.Option(help="of each run")] = 8,
    events: Annotated[int, typer.Option(help="of each rank, roughly")] = 1_000_000,
    repeats: Annotated[int, typer.Option(help="how often each is done; the median counts")] = 3,
    blocks: Annotated[int, typer.Option(help="of the transformer: 120 events a block and step")] = 30,
    level: Annotated[str, typer.Option(help="stage (spans without events) or event")] = "event",
    alone: Annotated[bool, typer.Option("--alone", help="only one run, without a comparison")] = False,
) -> None:
    """Times reports, diagnosis and comparison."""
    table = Table("what", "s", "MiB")
    with tempfile.TemporaryDirectory() as folder:
        sizes = (ranks, events)
        base = make(Path(folder) / "run0", *sizes, seed=0, blocks=blocks, level=level)
        table.add_row("run.duckdb, summary, report", f"{median_s(lambda: end_of_run(base), repeats):.2f}", "")
        written = write_run_page(base)
        table.add_row("report.html", f"{median_s(lambda: write_run_page(base), repeats):.2f}", _size(written))
        table.add_row("diagnosis, run opened", f"{median_s(lambda: diagnose(base), repeats):.2f}", "")
        if not alone:
            other = make(Path(folder) / "run1", *sizes, seed=1, blocks=blocks, level=level)
            table.add_row(
                "comparison of two runs", f"{median_s(lambda: compare([base, other]), repeats):.2f}", ""
            )
            compared, side = compare([base, other]), Path(folder) / "compare.html"
            table.add_row(
                "compare.html",
                f"{median_s(lambda: write_comparison_page(compared, side), repeats):.2f}",
                _size(side),
            )
        if is_there():
            shown = [drawn_s(written, Path(folder) / f"profile{number}") for number in range(repeats)]
            for name, taken in zip(
                ("first paint", "every figure drawn"), zip(*shown, strict=True), strict=True
            ):
                table.add_row(name, f"{statistics.median(taken):.2f}", "")
    out.print(
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, DuckDB {database.duckdb.__version__}"
    )
    out.print(table)


def _size(path: Path) -> str:
    return f"{path.stat().st_size / MIB:.1f}"


if __name__ == "__main__":
    typer.run(main)
