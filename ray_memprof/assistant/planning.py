"""A plan in a process of its own: it needs torch, which the assistant's server does without.

    plan_text(["--task", "t2v-14B", "--gpu", "RTX 4090"])       # what python -m ray_memprof.plan prints

Its exit codes are those of the command: 0 and 1 are answers, all others errors.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from ray_memprof.errors import EXIT_NOTHING_FITS, EXIT_OK, ConfigError

PLAN_LIMIT_S = 600.0
"""Seconds until a plan is stopped."""


def plan_text(arguments: Sequence[str], *, limit_s: float = PLAN_LIMIT_S) -> str:
    """What the command prints.

    Args:
        arguments: of the command.
        limit_s: when it is stopped, with the processes that it has begun.

    Raises:
        ConfigError: what is asked for cannot be, or takes too long.
    """
    command = [sys.executable, "-m", "ray_memprof.plan", *arguments]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,  # ours is the protocol's
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            answer, told = process.communicate(timeout=limit_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ConfigError(
                    f"the plan was stopped after {limit_s:.0f} s",
                    hint="fewer GPUs, or levers that are set by overrides, leave fewer configurations",
                ) from error
            raise
    if process.returncode in (EXIT_OK, EXIT_NOTHING_FITS):
        return answer
    # Behind the lines that say how far it is.
    *_, last = told.strip().split("error: ") if told.strip() else [f"exit code {process.returncode}"]
    message, _, hint = last.partition("\nhint: ")
    raise ConfigError(message.strip(), hint=hint.strip())
