"""Processes that predict, kept warm from test to test: what they import takes longer than a tiny prediction.

The fixture `warm` of conftest.py puts them in the place of those that each prediction would start for itself.
"""

import atexit
import functools
import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ray_memprof.predictor.processes import Processes

_STARTED_IN = ("ray_memprof.predictor.processes", "ray_memprof.predictor.run", "ray_memprof.planner.full")


@functools.cache
def _kept() -> "Processes":
    """One process: the ranks of a run are predicted one after the other."""
    from ray_memprof.predictor.processes import Processes

    processes = Processes(1)
    atexit.register(processes.__exit__, None, None, None)
    return processes


def keep_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of a test, predictions share processes that stay."""
    kept = _kept()

    def processes(number: int = 1) -> "AbstractContextManager[Processes]":
        return nullcontext(kept)

    # All are imported before: an annotation that is read meanwhile would meet the function.
    for module in [importlib.import_module(name) for name in _STARTED_IN]:
        monkeypatch.setattr(module, "Processes", processes)
    monkeypatch.setattr("ray_memprof.planner.search._NUM_PROCESSES", 1)
