"""The state of a run whose folder does not say that it has ended: it goes on, or its driver is gone.

    standing(run_dir)          # Standing("running", "step 12 of 50", ...); None: it has ended
    run_row(run_dir)           # the same as a row of the table runs, which the driver writes at the end

Reads run.json, where the driver notes its process when the run begins, and progress every few seconds; writes nothing.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from ray_memprof.store.processes import has_ended
from ray_memprof.store.run_files import CONFIG_FILE
from ray_memprof.store.run_json import Facts, run_facts
from ray_memprof.wording import age_text

RUNNING = "running"
"""Status in run.json until the run has ended; it stays if the launcher is killed."""
LEFT = "unknown"
"""Status of a run whose driver is gone and wrote no other status."""
NOTE_EVERY_S = 5.0
"""Seconds between two notes of progress in run.json."""
_SILENT_S = 6 * NOTE_EVERY_S
"""After so many seconds, the text says how long ago the last sign of life was."""
DRIVER_GONE = "its driver ended before the run did"
"""Reason of such a run."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a run whose folder does not say that it has ended."""

    status: str
    """RUNNING or LEFT."""
    reason: str
    """One line: how far it is, or why nothing more will come."""
    last_ns: int
    """Time of the last sign of life, wall clock since 1970."""

    @property
    def text(self) -> str:
        """For people: "running, step 12 of 50"."""
        return f"{self.status}, {self.reason}" if self.status == RUNNING else f"{self.status}: {self.reason}"


def ending_text(status: str) -> str:
    """What is said of a run that has another status than ok."""
    return "has not ended" if status == RUNNING else "did not end well"


def progress_facts(stage: str, step: int, num_steps: int) -> Facts:
    """Return how far the run is now; step counts from 0, -1: not in a step; num_steps -1: not known."""
    return {"t_ns": time.time_ns(), "stage": stage, "step": step, "num_steps": num_steps}


def standing(run_dir: Path, now_ns: int | None = None) -> Standing | None:
    """Return the state of a run that goes on, or that its driver left; None: it has ended, or has no run.json.

    Raises:
        ConfigError: run.json cannot be read.
    """
    facts = run_facts(run_dir)
    if facts is None or facts.get("status") != RUNNING:
        return None
    progress = facts.get("progress") or {}
    last_ns = int(progress.get("t_ns") or facts.get("start_ns") or 0)
    driver = facts.get("driver")
    if driver and has_ended(driver):
        return Standing(LEFT, DRIVER_GONE, last_ns)
    silent_s = ((time.time_ns() if now_ns is None else now_ns) - last_ns) / 1e9
    if facts.get("started_by") == "record":  # nobody watches its steps
        return Standing(RUNNING, f"for {age_text(silent_s)} now", last_ns)
    return Standing(RUNNING, _how_far(progress, silent_s), last_ns)


def standing_note(run_dir: Path) -> str | None:
    """A line for people who ask about a run that has not ended: its answers cover what was sealed until now."""
    found = standing(run_dir)
    if found is None:
        return None
    return (
        f"note: {run_dir.parent.name}/{run_dir.name}: {found.text}; this is only what was recorded until now"
    )


def run_row(run_dir: Path) -> Facts | None:
    """Return a row of the table runs for a run that has none yet, from its folder; None as in standing()."""
    from ray_memprof.store.run_tables import run_columns  # imports pyarrow, which a list of runs does without

    found = standing(run_dir)
    if found is None:
        return None
    facts, config = run_facts(run_dir) or {}, _config(run_dir)
    how = {"status": found.status, "exit_code": -1, "reason": found.reason, "end_ns": found.last_ns}
    return run_columns({"run_id": run_dir.name, "name": run_dir.parent.name, **facts, **how}, config)


def _config(run_dir: Path) -> Facts:
    import yaml

    try:
        found = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # a run without a configuration can be queried all the same
    return found if isinstance(found, dict) else {}


def _how_far(progress: Facts, silent_s: float) -> str:
    stage, step, num_steps = (progress.get(name) for name in ("stage", "step", "num_steps"))
    parts = []
    if step is not None and step >= 0:
        parts.append(f"step {step + 1}" + (f" of {num_steps}" if num_steps and num_steps > 0 else ""))
    elif stage:
        parts.append(f"in {stage}")
    else:
        parts.append("before its first step")
    if silent_s > _SILENT_S:
        parts.append(f"last sign of life {age_text(silent_s)} ago")
    return ", ".join(parts)
