"""Sends a finished run to the services of logging.export, each from a process of its own, and says what became of it.

    for line in exported(run_dir, ["wandb"], limit_s=120, is_stopped=lambda: False): ...

Takes a run folder that is complete. Whatever happens to a service is a line, and nothing of it reaches the run.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ray_memprof.wording import visible

_POLL_S = 0.2


def exported(
    run_dir: Path, services: Sequence[str], *, limit_s: float, is_stopped: Callable[[], bool]
) -> Iterator[str]:
    """Send a run to each service in turn; yields a line for each: where it is now, or a warning.

    Args:
        run_dir: the run.
        services: names of formats/trackers/services.py.
        limit_s: how long one may take.
        is_stopped: whether the person wants the end now.
    """
    for service in services:
        yield _exported(run_dir, service, limit_s, is_stopped)


def _exported(run_dir: Path, service: str, limit_s: float, is_stopped: Callable[[], bool]) -> str:
    again = f"hint: ray-memprof export {run_dir.parent.name}/{run_dir.name} --to {service}"
    command = [sys.executable, "-m", "ray_memprof.formats.trackers.send", service, str(run_dir)]
    try:
        # A group of its own: what the library starts ends with it, and Ctrl-C reaches only this process.
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        ) as process:
            return _result(process, service, limit_s, is_stopped, again)
    except OSError as error:
        return f"warning: {service}: the run was not sent: {error}; {again}"


def _result(
    process: "subprocess.Popen[str]", service: str, limit_s: float, is_stopped: Callable[[], bool], again: str
) -> str:
    """Wait for the process, and say in a line how it ended."""
    ends_s = time.monotonic() + limit_s
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                told, errors = process.communicate(timeout=_POLL_S)
                break
            if is_stopped():
                return f"warning: {service}: the run was not sent: it was interrupted; {again}"
            if time.monotonic() > ends_s:
                return (
                    f"warning: {service}: the run was not sent within {limit_s:g} s "
                    f"(ray.timeouts.export_s); {again}"
                )
    finally:
        _end(process)
    if process.returncode == 0:
        return visible(told.strip().rpartition("\n")[2])
    return f"warning: {visible(_reason(errors) or f'{service}: ended with {process.returncode}')}; {again}"


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill a process that still runs, and what it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _reason(errors: str) -> str:
    """The error among the lines on its standard error; of a traceback the last line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter(named or lines[-1:]), "")
