"""The actors of a run as supervision/watch.py needs them: which ranks have ended, and where each is, as plain values.

    crew = Crew(actors, say=live.say)
    crew.run(("127.0.0.1", 41123))
    crew.ended(0.2), crew.beats(), crew.where(1.0)
    crew.last_words()                             # passes on all that rank 0 wrote until its end

No call waits longer for a rank than its time limit: a rank that holds its GIL, or is stopped, does not answer.
"""

import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from ray_memprof.driver.ray_errors import exit_detail, host_memory, tells_of_node
from ray_memprof.rank.log import for_console, lines_since
from ray_memprof.rank.messages import Outcome, Whereabouts
from ray_memprof.recorder.status import Beat
from ray_memprof.supervision.verdict import Loss
from ray_memprof.wording import first_line

Address = tuple[str, int]
"""Host and port."""

BEAT_S = 0.3
"""Time between two questions to a rank; it adds to the time after which a standstill is noticed."""
_LAST_WORDS_S = 10.0
"""Time for rank 0 to send the rest of its log once its workload has ended: it takes milliseconds, on an overloaded
host seconds."""
_STUCK_S = 0.5
"""The same while rank 0 still runs: it may never answer, and the verdict must wait that long."""
_RAYLET_S = 2.0
"""Time for every raylet to accept a connection before the run."""
_MOST_LOOKS = 32
"""How many nodes are checked at the same time."""


class Crew:
    """The ranks of one run, in order.

    Args:
        actors: one for each rank, in rank order.
        say: called with each line that rank 0 writes.
        log: the log file of rank 0 if this process can read it; used when the process of rank 0 has died.
        raylets: address of the raylet of each rank that runs on another node than this process.
    """

    def __init__(
        self,
        actors: Sequence[Any],
        say: Callable[[str], None],
        log: Path | None = None,
        raylets: Mapping[int, Address] | None = None,
    ) -> None:
        self._actors, self._say, self._log_file = list(actors), say, log
        self._raylets = dict(raylets or {})
        self._runs: dict[Any, int] = {}
        self._questions: dict[Any, int] = {}
        self._beats: dict[int, Beat] = {}
        self._asked = -math.inf
        self._log_question: Any = None
        self._log_offset = 0
        self._left: set[int] = set()
        self._reported: set[int] = set()  # ranks that have ended, in actors that still live
        self._silent: set[int] = set()

    def run(self, address: Address) -> None:
        """Set all ranks to work."""
        # A raylet that cannot be reached now would look like a lost node later. So it is not checked during the run;
        # for those ranks only Ray says whether the node is lost.
        silent = self.lost(_RAYLET_S)
        self._raylets = {rank: address for rank, address in self._raylets.items() if rank not in silent}
        self._runs = {actor.run.remote(address): rank for rank, actor in enumerate(self._actors)}
        self._left = set(range(len(self._actors)))

    def ended(self, wait_s: float) -> list[Outcome | Loss]:
        """Ranks that ended since the last call, in the order in which the news came."""
        if not self._runs:
            time.sleep(wait_s)
            return []
        first, _ = ray.wait(list(self._runs), num_returns=1, timeout=wait_s)
        # All others that have ended by now, too: one rank for each call would take a poll for each.
        rest, _ = ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
        news = [_fate(ref, self._runs.pop(ref)) for ref in dict.fromkeys([*first, *rest])]
        self._left -= {one.rank for one in news}
        self._reported |= {one.rank for one in news if isinstance(one, Outcome)}
        return [_as_loss(one) for one in news]

    def beats(self) -> Mapping[int, Beat]:
        """The newest beat of each rank; asks for the next ones and passes on what rank 0 wrote."""
        for ref in _ready(self._questions, 0):
            rank = self._questions.pop(ref)
            if (beat := _answer(ref)) is not None:
                self._beats[rank] = beat
        if time.monotonic() - self._asked >= BEAT_S:
            self._asked = time.monotonic()
            unanswered = set(self._questions.values())
            for rank in self._left - unanswered:
                self._questions[self._actors[rank].beat.remote()] = rank
        self._echo()
        return self._beats

    def _echo(self) -> None:
        if self._log_question is None:
            self._log_question = self._actors[0].said.remote(self._log_offset)
        elif _ready([self._log_question], 0):
            answer, self._log_question = _answer(self._log_question), None
            if answer is not None:
                self._pass_on(*answer)

    def _pass_on(self, offset: int, text: str) -> None:
        self._log_offset = offset
        for line in text.splitlines():
            self._say(f"[rank 0] {line}")

    def last_words(self) -> None:
        """Pass on all that rank 0 has written by now; if rank 0 does not answer, the rest is in its log only."""
        until = time.monotonic() + (_STUCK_S if 0 in self._left else _LAST_WORDS_S)
        # A question may still be open that was asked before the end: its answer may not hold the last lines.
        question, is_last = self._log_question, self._log_question is None
        while True:
            question = question or self._actors[0].said.remote(self._log_offset, whole=False)
            if not _ready([question], max(0.0, until - time.monotonic())):
                self._log_question = question
                return
            answer, before = _answer(question), self._log_offset
            question = self._log_question = None
            if answer is None:
                self._read_out()
                return
            self._pass_on(*answer)
            if is_last and self._log_offset == before:
                return
            is_last = True

    def _read_out(self) -> None:
        """Pass on the rest of rank 0's log from the file, since its process is dead."""
        while self._log_file is not None:
            offset, text = lines_since(self._log_file, self._log_offset, whole=False)
            shown, is_over = for_console(text)
            self._pass_on(offset, shown)
            if is_over or not text:
                return

    def where(self, wait_s: float) -> dict[int, Whereabouts]:
        """Where each rank is, of those that still run and answer in time."""
        questions = {self._actors[rank].where.remote(): rank for rank in sorted(self._left)}
        answers = {questions[ref]: _answer(ref) for ref in _ready(questions, wait_s)}
        self._silent = set(questions.values()) - answers.keys()
        return {rank: found for rank, found in answers.items() if found is not None}

    def lost(self, wait_s: float) -> frozenset[int]:
        """The ranks whose node is gone: its raylet accepts no connection. Ray itself needs up to half a minute."""
        if not self._raylets:
            return frozenset()
        addresses = list(set(self._raylets.values()))
        with ThreadPoolExecutor(min(len(addresses), _MOST_LOOKS)) as pool:
            listening = set(
                compress(addresses, pool.map(lambda address: _listens(address, wait_s), addresses))
            )
        return frozenset(rank for rank, address in self._raylets.items() if address not in listening)

    def seal(self, wait_s: float) -> None:
        """Have the ranks write their open records and end their scripts, except those that did not answer where().

        A rank that has reported its end is asked, too: the process of its script, or what that one has started, may
        still run.
        """
        asked = (self._left | self._reported) - self._silent
        _ready([self._actors[rank].stop.remote() for rank in sorted(asked)], wait_s)


def _listens(address: Address, wait_s: float) -> bool:
    """Whether a process listens at `address`: the kernel accepts connections for a busy process, not for a dead one."""
    try:
        with socket.create_connection(address, timeout=wait_s):
            return True
    except OSError:
        return False


def _ready(refs: Any, wait_s: float) -> list[Any]:
    """Those of `refs` that have an answer, or an error, within `wait_s`."""
    refs = list(refs)
    return list(ray.wait(refs, num_returns=len(refs), timeout=wait_s)[0]) if refs else []


def _answer(ref: Any) -> Any:
    """A ready answer; None if the rank died before it answered: run() of that rank reports the death in full."""
    try:
        return ray.get(ref)
    except exceptions.RayError:
        return None


def _fate(ref: Any, rank: int) -> Outcome | Loss:
    """How a rank ended, from the ready reference of its run()."""
    try:
        outcome: Outcome = ray.get(ref)
        return outcome
    except exceptions.OutOfMemoryError as error:
        return Loss(rank=rank, kind="host_oom", detail=host_memory(str(error)))
    except exceptions.ActorUnavailableError as error:
        return Loss(rank=rank, kind="unreachable", detail=first_line(error))
    except (exceptions.RayActorError, exceptions.NodeDiedError) as error:
        return Loss(
            rank=rank, kind="node" if tells_of_node(str(error)) else "died", detail=exit_detail(str(error))
        )


def _as_loss(one: Outcome | Loss) -> Outcome | Loss:
    """The loss of a rank that reports itself that the process of its script has died."""
    if isinstance(one, Outcome) and one.status == "died":
        return Loss(rank=one.rank, kind="died", detail=one.reason)
    return one
