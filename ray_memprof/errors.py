"""What can end a run or a question to one, each with the exit code that a command of this package ends with.

Every message says what happened, which rank, key or file, and the value; `hint` says what to do next. A rank that
ends with one of wan's own errors (weights, media, service) keeps the exit code that wan gives it.
"""

EXIT_OK = 0
EXIT_BUG = 1
EXIT_CONFIG = 2
EXIT_RANK_DIED = 10
EXIT_DEVICE_OOM = 11
EXIT_HANG = 12
EXIT_NODE_LOST = 13
EXIT_HOST_OOM = 14
EXIT_DISK_FULL = 15
EXIT_WORKLOAD = 16
EXIT_NOT_ENOUGH_GPUS = 20
EXIT_GPUS_BUSY = 21
EXIT_START_FAILED = 22
EXIT_NEVER_ARRIVED = 23
EXIT_PREFLIGHT = 24
EXIT_LIMIT = 30
EXIT_KILLED = 137
"""In run.json alone, of a launcher that was ended by force: what a shell reports for SIGKILL, 128 + 9."""
EXIT_INTERRUPTED = 130
"""SIGINT: what a shell reports for a program that signal 2 ends, 128 + 2."""
EXIT_TERMINATED = 143
"""SIGTERM: 128 + 15."""


class RunError(Exception):
    """Base of the errors below; `hint` is printed on a line of its own."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(RunError, ValueError):
    """A configuration that cannot be used; found before Ray starts (exit 2)."""

    exit_code = EXIT_CONFIG


class NotEnoughGpus(RunError):
    """The cluster can never hold the ranks (exit 20)."""

    exit_code = EXIT_NOT_ENOUGH_GPUS


class GpusBusy(RunError):
    """The cluster has the GPUs, others hold them (exit 21)."""

    exit_code = EXIT_GPUS_BUSY


class StartFailed(RunError):
    """A rank could not be set up, or Ray itself could not be reached (exit 22)."""

    exit_code = EXIT_START_FAILED


class NeverArrived(RunError):
    """Ranks did not answer within ray.timeouts.init_s (exit 23)."""

    exit_code = EXIT_NEVER_ARRIVED


class PreflightFailed(RunError):
    """The GPUs or the log folder are not fit for a run (exit 24)."""

    exit_code = EXIT_PREFLIGHT


class LimitExceeded(RunError):
    """A limit that the user set to what was measured is exceeded (exit 30)."""

    exit_code = EXIT_LIMIT


class DiskFull(RunError):
    """What was recorded could not be written (exit 15)."""

    exit_code = EXIT_DISK_FULL
