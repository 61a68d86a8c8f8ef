"""Processes that predict ranks, kept warm: torch and wan are imported once for all of them, which takes 4 s.

    with Processes() as processes:
        predict(config, gpu="H200", say=print, processes=processes)
        predict(another, gpu="H200", say=print, processes=processes)

Each predicts one rank at a time: it changes torch meanwhile, and undoes that. Several threads may share the processes:
then the ranks of several runs are predicted side by side.

They are forked from one that has imported everything and has no threads (a "fork server"): so they share its memory.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import TypeVar

from ray_memprof.predictor.fake_rank import FakeRank, PredictedRank, predict_rank

Given = TypeVar("Given")
Made = TypeVar("Made")

NUM_PROCESSES = 2
"""Each takes a core and 0.6 GiB, of which 0.3 GiB are shared."""


class Processes:
    """Some processes; they end with the block.

    Args:
        number: how many.
    """

    def __init__(self, number: int = NUM_PROCESSES) -> None:
        # A process that is forked from this one would have its threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ray_memprof.predictor.warm"])
        self._pool = ProcessPoolExecutor(number, context, initializer=_import)
        for _ in range(number):
            # One process for each call that waits: they import while the first rank is being predicted.
            self._pool.submit(_nothing)

    def submit(self, plan: FakeRank) -> "Future[PredictedRank]":
        """Predict a rank; of a run, the first rank first: the others wait for what it tells them."""
        return self.call(predict_rank, plan)

    def call(self, work: Callable[[Given], Made], plan: Given) -> "Future[Made]":
        """Do some other work on fake tensors: a function of a module, and data that can be sent to a process."""
        return self._pool.submit(work, plan)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def _nothing() -> None:
    return None


def _import() -> None:
    """What every prediction needs: there already, unless the fork server is another's, who has begun it before."""
    from ray_memprof.predictor import warm

    del warm
