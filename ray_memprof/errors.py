"""The errors that end a run or another command of this package, each with the exit code of the command.

Every message says what happened, to which rank, key or file, and with which value; `hint` says what to do next. If a
rank ends with one of wan's own errors (weights, media, service), the exit code is the one that wan gives it.
"""

EXIT_OK = 0
EXIT_BUG = 1
EXIT_NOTHING_FITS = 1
"""Of a plan without a row."""
EXIT_CONFIG = 2
EXIT_SERVICE = 5
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
"""Only in run.json, if the launcher was killed: what a shell reports for SIGKILL, 128 + 9."""
EXIT_INTERRUPTED = 130
"""Ended by SIGINT: what a shell reports for signal 2, 128 + 2."""
EXIT_TERMINATED = 143
"""Ended by SIGTERM: 128 + 15."""


class RunError(Exception):
    """The base class of the errors below; `hint` is printed on a line of its own."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def lines(self) -> str:
        """What a person is told: the error, and the hint on a line of its own."""
        return f"error: {self}\n" + (f"hint: {self.hint}\n" if self.hint else "")


class ConfigError(RunError, ValueError):
    """A configuration, argument or folder that cannot be used; in a launch it is found before Ray starts (exit 2)."""

    exit_code = EXIT_CONFIG


class ServiceFailed(RunError):
    """A service to which a run is exported refused it, or could not be reached (exit 5)."""

    exit_code = EXIT_SERVICE


class NotEnoughGpus(RunError):
    """The cluster can never hold the ranks (exit 20)."""

    exit_code = EXIT_NOT_ENOUGH_GPUS


class GpusBusy(RunError):
    """The cluster has enough GPUs, but others hold them (exit 21)."""

    exit_code = EXIT_GPUS_BUSY


class StartFailed(RunError):
    """A rank could not be set up, or Ray itself could not be reached (exit 22)."""

    exit_code = EXIT_START_FAILED


class NeverArrived(RunError):
    """Ranks did not answer within ray.timeouts.init_s (exit 23)."""

    exit_code = EXIT_NEVER_ARRIVED


class PreflightFailed(RunError):
    """The GPUs or the folder of the run cannot be used for a run (exit 24)."""

    exit_code = EXIT_PREFLIGHT


class LimitExceeded(RunError):
    """What was measured exceeds a limit that the user set (exit 30)."""

    exit_code = EXIT_LIMIT


class WorkloadError(RunError):
    """An error that the workload itself explains, with the exit code that it gives; wan's own errors become this."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = EXIT_WORKLOAD) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class DiskFull(RunError):
    """What was recorded could not be written (exit 15)."""

    exit_code = EXIT_DISK_FULL


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, but for the exit code (143)."""
