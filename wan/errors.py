"""The errors a user can cause, each with the exit code that `python -m wan.generate` ends with.

Every message says what happened, where, and with which value; `hint` says what to do next.
Anything else that escapes is a bug of this package and keeps its traceback.
"""

EXIT_OK = 0
EXIT_INPUT = 2
EXIT_WEIGHTS = 3
EXIT_MEDIA = 4
EXIT_SERVICE = 5
EXIT_DEVICE_OOM = 11
EXIT_INTERRUPTED = 130
"""Ctrl-C: what a shell reports for a program that SIGINT (2) ends, 128 + 2. No class below has this code."""


class WanError(Exception):
    """Base of the errors below; `hint` is printed on a line of its own."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(WanError, ValueError):
    """A flag or argument that cannot be used (exit 2)."""

    exit_code = EXIT_INPUT


class WeightsError(WanError):
    """A checkpoint folder that does not hold what the task needs (exit 3)."""

    exit_code = EXIT_WEIGHTS


class MediaError(WanError):
    """An image or video that cannot be read or written (exit 4)."""

    exit_code = EXIT_MEDIA


class ServiceError(WanError):
    """A prompt-extension model or service that cannot be reached or used (exit 5)."""

    exit_code = EXIT_SERVICE


class DeviceMemoryError(WanError):
    """The device or the host ran out of memory; the hint names the levers that are still off (exit 11)."""

    exit_code = EXIT_DEVICE_OOM
