"""The actors of a run as supervise.py wants them: what has ended, where everybody is, in plain values.

    crew = Crew(actors, say=live.say)
    crew.run(("127.0.0.1", 41123))
    crew.ended(0.2), crew.beats(), crew.where(1.0)

No call waits for a rank longer than it is told: a rank that holds its GIL, or is stopped, answers nothing.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import exceptions

from ray_memprof.plan import Beat, Outcome
from ray_memprof.ray_words import exit_detail, first_line, host_memory, tells_of_node
from ray_memprof.verdict import Loss

BEAT_S = 0.3
"""Between two questions to a rank: part of how long a standstill takes to be seen."""


class Crew:
    """The ranks of one run, in order."""

    def __init__(self, actors: Sequence[Any], say: Any) -> None:
        self._actors, self._say = list(actors), say
        self._runs: dict[Any, int] = {}
        self._questions: dict[Any, int] = {}
        self._beats: dict[int, Beat] = {}
        self._asked = 0.0
        self._log: Any = None
        self._log_offset = 0
        self._left: set[int] = set()

    def run(self, address: tuple[str, int]) -> None:
        """Set all ranks to work."""
        self._runs = {actor.run.remote(address): rank for rank, actor in enumerate(self._actors)}
        self._left = set(range(len(self._actors)))

    def ended(self, wait_s: float) -> list[Outcome | Loss]:
        """Ranks that ended since the last call, in the order in which the news came."""
        if not self._runs:
            time.sleep(wait_s)
            return []
        first, _ = ray.wait(list(self._runs), num_returns=1, timeout=wait_s)
        # Whoever else has ended by now: one at a time would cost a look each.
        rest, _ = ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
        news = [_fate(ref, self._runs.pop(ref)) for ref in dict.fromkeys([*first, *rest])]
        self._left -= {one.rank for one in news}
        return news

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
        if self._log is None:
            self._log = self._actors[0].said.remote(self._log_offset)
        elif _ready([self._log], 0):
            answer, self._log = _answer(self._log), None
            if answer is not None:
                self._log_offset, text = answer
                for line in text.splitlines():
                    self._say(f"[rank 0] {line}")

    def where(self, wait_s: float) -> dict[int, str]:
        """The stacks of the ranks that still run and answer in time."""
        questions = {self._actors[rank].where.remote(): rank for rank in sorted(self._left)}
        answers = {questions[ref]: _answer(ref) for ref in _ready(questions, wait_s)}
        return {rank: stack for rank, stack in answers.items() if stack is not None}

    def seal(self, wait_s: float) -> None:
        """Ask the ranks that still run to write down what they hold."""
        _ready([self._actors[rank].stop.remote() for rank in self._left], wait_s)


def _ready(refs: Any, wait_s: float) -> list[Any]:
    """Those of `refs` that have an answer, or an error, within `wait_s`."""
    refs = list(refs)
    return list(ray.wait(refs, num_returns=len(refs), timeout=wait_s)[0]) if refs else []


def _answer(ref: Any) -> Any:
    """A ready answer; None from a rank that died over the question: its run tells more, and tells it too."""
    try:
        return ray.get(ref)
    except exceptions.RayError:
        return None


def _fate(ref: Any, rank: int) -> Outcome | Loss:
    """How a rank ended, from its ready reference."""
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
