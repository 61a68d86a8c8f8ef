"""Errors of wan as an error of ray_memprof, so that what follows a workload need not know wan.

with translated():
    ...                    # a wan.errors.WeightsError leaves this block as a WorkloadError with its exit code

Imports no torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ray_memprof.errors import WorkloadError
from wan.errors import WanError


@contextmanager
def translated() -> Iterator[None]:
    """Raise a WorkloadError in place of an error of wan: with its text, hint and exit code, and caused by it."""
    try:
        yield
    except WanError as error:
        raise WorkloadError(str(error), hint=error.hint, exit_code=error.exit_code) from error
