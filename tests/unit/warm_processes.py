"""A process that predicts, kept warm from test to test: what it imports takes longer than a tiny prediction.

    kept().call(predict_rank, plan).result(timeout=100)

The fixture `warm` of conftest.py puts it in the place of those that each prediction would start for itself.
"""

import atexit
import functools
import importlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ray_memprof.predictor.processes import Processes

_STARTED_IN = (
    "ray_memprof.predictor.processes", "ray_memprof.predictor.run", "ray_memprof.planner.full",
    "ray_memprof.planner.search",
)  # fmt: skip


@functools.cache
def kept() -> "Processes":
    """One process, which a block does not end: the ranks of a run are predicted one after the other."""
    from ray_memprof.predictor.processes import Processes

    class Kept(Processes):
        def __exit__(self, *_: object) -> None:
            pass

    made = Kept(1)
    atexit.register(Processes.__exit__, made, None, None, None)
    return made


def keep_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of a test, predictions share processes that stay."""
    there = kept()

    def processes(number: int = 1) -> "Processes":
        return there

    # All are imported before: an annotation that is read meanwhile would meet the function.
    for module in [importlib.import_module(name) for name in _STARTED_IN]:
        monkeypatch.setattr(module, "Processes", processes)
