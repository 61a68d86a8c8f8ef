"""Processes that predict ranks, kept warm: torch and wan are imported once for all of them, which takes 4 s.

    with Processes() as processes:
        predict(config, gpu="H200", say=print, processes=processes)
        predict(another, gpu="H200", say=print, processes=processes)

Each predicts one rank at a time: it changes torch meanwhile, and undoes that. Several threads may share the processes:
then the ranks of several runs are predicted side by side.

They are forked from one that has imported everything and has no threads (a "fork server"): so they share its memory.
A Ctrl-C is for the process that started them alone; they end with it, however it ends.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

from ray_memprof.predictor.fake_rank import FakeRank, PredictedRank, predict_rank

Given = TypeVar("Given")
Made = TypeVar("Made")

NUM_PROCESSES = 2
"""Each takes a core and 0.6 GiB, of which 0.3 GiB are shared."""


class Processes:
    """Some processes; they end with the block. Work that still runs then, after an error, is given up.

    Args:
        number: how many.
    """

    def __init__(self, number: int = NUM_PROCESSES) -> None:
        # A process that is forked from this one would have its threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ray_memprof.predictor.warm"])
        reader, self._writer = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(number, context, initializer=_begin, initargs=(reader,))
        self._given: list[Future[Any]] = []
        self.is_stopped = False
        """Whether work was given up: what it leaves is not whole."""
        try:
            with _signals_wait():
                for _ in range(number):
                    # One process for each call that waits: they import while the first rank is being predicted.
                    self._pool.submit(_nothing)
        except BaseException:
            self._end()
            raise

    def submit(self, plan: FakeRank) -> "Future[PredictedRank]":
        """Predict a rank; of a run, the first rank first: the others wait for what it tells them."""
        return self.call(predict_rank, plan)

    def call(self, work: Callable[[Given], Made], plan: Given) -> "Future[Made]":
        """Do some other work on fake tensors: a function of a module, and data that can be sent to a process."""
        future = self._pool.submit(work, plan)
        self._given = [*(one for one in self._given if not one.done()), future]
        return future

    def stop(self) -> None:
        """Give up all work at once: who waits for it gets BrokenProcessPool or CancelledError."""
        self.is_stopped = True
        for one in self._given:
            one.cancel()
        self._writer.close()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if any(not one.done() for one in self._given):
            self.stop()
        self._end()

    def _end(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._writer.close()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Until processes have begun, Ctrl-C and SIGTERM wait: one that begins while its pool ends would print an error.

    A terminal sends Ctrl-C to all its processes. In those that begin here it is blocked, for each would print where it
    was; while the fork server imports, it ends by it (warm.py), so that nobody waits for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals interrupt the main thread alone
        return
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _nothing() -> None:
    return None


def _begin(reader: Connection) -> None:
    """In a new process: import what every prediction needs, and end when nobody holds the other end of the pipe."""
    threading.Thread(target=_end_with, args=(reader,), daemon=True).start()
    # There already, unless the fork server is another's, who has begun it before.
    from ray_memprof.predictor import warm

    del warm


def _end_with(reader: Connection) -> None:
    reader.poll(None)  # nothing is ever sent: it returns at the end of the other side
    os._exit(1)
