"""Starts the process that completes a run without a launcher: tables of the run, run.duckdb, report.html.

    for line in finished(run_dir): ...            # waits for it
    finish_later(run_dir)                         # in the background, once all ranks have ended

It is `ray-memprof finish`, in a process of its own: the program's packages may have the names of ours.
"""

import os
import subprocess
import sys
from pathlib import Path

from ray_memprof.store.run_files import FINISH_LOG

LATER_S = 3600.0
"""Seconds that it waits for ranks that still run."""
_ROOT = Path(__file__).resolve().parents[2]


def finished(run_dir: Path) -> list[str]:
    """Complete the run; returns what that process wrote."""
    command, environ = _command(run_dir)
    done = subprocess.run(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()


def finish_later(run_dir: Path) -> Path | None:
    """Have the run completed once all ranks have ended; returns the log, or None if another rank has done this."""
    command, environ = _command(run_dir)
    log = run_dir / FINISH_LOG
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    try:
        subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # signals to the job's process group do not end it
        )
    finally:
        os.close(output)
    return log


def _command(run_dir: Path) -> tuple[list[str], dict[str, str]]:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {name: value for name, value in os.environ.items() if name != "RAY_MEMPROF"}
    command = [sys.executable, "-P", "-m", "ray_memprof.cli", "finish", str(run_dir), "--wait", str(LATER_S)]
    return command, environ | {"PYTHONPATH": os.pathsep.join(paths)}
