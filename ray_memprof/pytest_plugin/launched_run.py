"""Launches a configuration for a test, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_memprof.pytest_plugin.limit import Launch

_STOP_S = 60.0
"""How long a launcher may take to end its ranks and write its files before it is killed."""


def run_launch(launch: Launch, output_dir: Path, root: Path) -> Path:
    """Run a configuration from the folder `root`; returns its run folder. Fails the test if the run fails."""
    log = output_dir / "launch.log"
    command = [sys.executable, "-m", "ray_memprof.launch", launch.path, "--plain"]
    # Written as JSON, since the value is read as YAML and a path may contain any character.
    for one in (*launch.overrides, f"logging.output_dir={json.dumps(str(output_dir))}"):
        command += ["--set", one]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code: int | None = process.wait(launch.timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also if the test is interrupted, or ended by a time limit of pytest
            _stop(process)
    if code != 0:
        ended = f"did not end within {launch.timeout_s:g} s" if code is None else f"ended with exit {code}"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        shown = [f"  {line}" for line in lines if line.startswith(("error:", "hint:"))]
        pytest.fail("\n".join([f"{launch.path} {ended}", *shown, f"  log: {log}"]), pytrace=False)
    return (output_dir / launch.config.name / "latest").resolve()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a launcher that still runs: SIGTERM first, so that it ends its ranks itself."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
