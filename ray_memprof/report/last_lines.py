"""The last lines that a run printed, again: from summary.json, or from its tables where it has no such file.

    for line in last_lines(run_dir): ...

Takes a run folder; leaves nothing. A run that goes on, or is of an older version, is measured anew.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_memprof.store.run_files import REPORT_FILE, TABLES_DIR
from ray_memprof.store.run_json import run_facts
from ray_memprof.store.run_summary import run_summary
from ray_memprof.store.standing import standing


def last_lines(run_dir: Path) -> list[str]:
    """How the run ended, what is missing, what was measured, and where its files are.

    Raises:
        ConfigError: it is no run, or cannot be read.
    """
    facts = run_facts(run_dir) or {}
    now = standing(run_dir)
    first = (
        f"{run_dir.parent.name}: {now.text}" if now else first_line({"name": run_dir.parent.name, **facts})
    )
    summary = run_summary(run_dir)
    measured = _measured(run_dir) if summary is None else summary.lines
    return ended_lines(run_dir, first, facts.get("problems", ()), measured)


def first_line(facts: Mapping[str, Any]) -> str:
    """The line that says how a run ended, by the facts of its run.json."""
    ended = f"{facts['name']}: {facts.get('status', 'unknown')}"
    code = facts.get("exit_code")
    # A recorded program ends with its own code, which is told only where it is an error.
    is_told = code is not None and (code or facts.get("started_by") != "record")
    return f"{ended}, exit {code}" if is_told else ended


def ended_lines(run_dir: Path, first: str, problems: Sequence[str], measured: Sequence[str]) -> list[str]:
    """The last lines in their order.

    Args:
        run_dir: the run.
        first: how it ended.
        problems: what is missing or damaged.
        measured: the lines of summary.py.
    """
    report = run_dir / REPORT_FILE
    where = f"report: {report}" if report.exists() else f"run folder: {run_dir}"
    return [first, *(f"warning: {line}" for line in problems), *measured, where]


def _measured(run_dir: Path) -> list[str]:
    if not (run_dir / TABLES_DIR).is_dir():  # its ranks have not begun, or never did
        return []
    from ray_memprof.analysis.diagnosis.diagnose import findings
    from ray_memprof.query.database import open_run
    from ray_memprof.query.questions import rows_of
    from ray_memprof.report.summary import number_lines

    with open_run(run_dir, shared_by="headlines") as connection:
        return number_lines(connection, findings(connection), rows_of(connection, "headlines"))
