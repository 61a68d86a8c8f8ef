"""Derives files from a run's tables (run.duckdb, memory_events.json, report.html, summary.json), and its last lines.

    for line in derived(run_dir, problems): ...

Takes the tables that a run, a later finish of a run or an import left; they are all treated alike.
"""

from collections.abc import Iterator
from pathlib import Path

from ray_memprof.analysis.diagnosis.diagnose import findings
from ray_memprof.formats.memory_events import write_memory_events
from ray_memprof.query import database
from ray_memprof.query.database import open_run
from ray_memprof.query.questions import EVERY_QUESTION, rows_of
from ray_memprof.report import run_page
from ray_memprof.report.run_page import write_run_page
from ray_memprof.report.summary import number_lines
from ray_memprof.store.run_summary import note_summary


def derived(run_dir: Path, problems: list[str]) -> Iterator[str]:
    """Write run.duckdb, memory_events.json, report.html and summary.json from a run's tables; yields what was measured.

    Args:
        run_dir: the run.
        problems: lines on what is missing of the run; what cannot be done in its folder is added.
    """
    database.build(run_dir)
    problems += database.what_clients_cannot(run_dir)
    # The run is opened once and diagnosed once: with a thousand ranks each of the two takes ten seconds.
    with open_run(run_dir, shared_by=EVERY_QUESTION) as connection:
        found = findings(connection)
        headlines = rows_of(connection, "headlines")
        lines = number_lines(connection, found, headlines)
        yield from lines
        write_memory_events(run_dir)
        write_run_page(run_dir, problems, known=run_page.Known(connection, found, headlines))
    note_summary(run_dir, lines, headlines)


def derive(run_dir: Path, problems: list[str]) -> list[str]:
    """Do the same in one call; returns the lines on what was measured."""
    return list(derived(run_dir, problems))
