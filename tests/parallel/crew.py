"""Processes that are ranks: started once, given functions to run together, ended hard when one fails or hangs.

    crew = Crew(4)
    outs = crew.run(function, argument)            # function(rank, argument) on every rank; a list of what they return

The function is found by name in the ranks, so it is one of a module that they can import, and so are its arguments.
"""

import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

START_S, CALL_S = 100.0, 100.0


class RankError(AssertionError):
    """A rank raised, ended or did not answer in time; the message holds its traceback."""


class Crew:
    """`size` ranks over gloo, met through a file."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ranks: list[tuple[Any, Connection]] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each rank returns. A crew that failed is started anew at the next call."""
        if not self._ranks:
            self._start()
        for _, connection in self._ranks:
            connection.send((function, arguments))
        return [self._answer(rank, CALL_S) for rank in range(self.size)]

    def end(self) -> None:
        """Kill every rank; none is asked."""
        for process, connection in self._ranks:
            process.kill()
            process.join()
            connection.close()
        self._ranks = []

    def _start(self) -> None:
        # Forked from a process that has imported wan and has no threads: a rank alone takes 5 s for that.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ray_memprof.predictor.warm"])
        meeting = Path(tempfile.mkdtemp()) / "meeting"
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self.size, str(meeting), theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._ranks.append((process, ours))
        for rank in range(self.size):
            self._answer(rank, START_S)

    def _answer(self, rank: int, timeout_s: float) -> Any:
        _, connection = self._ranks[rank]
        try:
            if not connection.poll(timeout_s):
                raise RankError(f"rank {rank} did not answer in {timeout_s:g} s")
            error, result = connection.recv()
        except (EOFError, ConnectionError) as ended:
            self.end()
            raise RankError(f"rank {rank} ended") from ended
        except RankError:
            self.end()
            raise
        if error is not None:
            others = self._errors_of_others(rank)
            self.end()
            raise RankError("\n".join([f"rank {rank}:\n{error}", *others]))
        return result

    def _errors_of_others(self, failed: int) -> list[str]:
        """Of ranks that have failed as well: what is told first may be a consequence."""
        told = []
        for rank, (_, connection) in enumerate(self._ranks):
            if rank > failed and connection.poll(0.5):
                try:
                    error, _ = connection.recv()
                except (EOFError, ConnectionError):
                    error = "ended"
                if error is not None:
                    told.append(f"rank {rank}:\n{error}")
        return told


def _serve(rank: int, size: int, meeting: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    connection.send((None, None))
    while True:
        function, arguments = connection.recv()
        try:
            torch.manual_seed(0)
            connection.send((None, function(rank, *arguments)))
        except BaseException:
            connection.send((traceback.format_exc(), None))
