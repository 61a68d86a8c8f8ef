"""Ranks that no longer make progress: when that is a hang, and which rank is to blame.

    progress = Progress(range(4), now=clock())
    progress.look(beats, done=(), now=clock())
    if progress.stalled_s(now=clock()) >= 300: suspects(whereabouts, beats, ranks)

Pure. A run hangs when no rank makes progress. It does not hang while one rank works for minutes and the others wait for
it, or while one rank is still starting up.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ray_memprof.rank.messages import Whereabouts
from ray_memprof.recorder.status import Beat, Group
from ray_memprof.recorder.thread_watch import MEETING

# Frames of a thread that waits for other ranks in a collective.
_COLLECTIVE = re.compile(r"torch[/\\]distributed[/\\]|wait_tensor|_functional_collectives")
# Frames that do not show where the model is. The last pattern is our own wrapper around calls of torch.distributed.
_LIBRARY = re.compile(
    r"[/\\](site|dist)-packages[/\\](torch|triton)[/\\]|[/\\]ray_memprof[/\\]recorder[/\\]collectives\.py\""
)
_LAST_FRAMES = 8
"""How many innermost frames of a stack are searched: further out, a training loop may itself be called from
torch.distributed."""


class Progress:
    """When a rank was last seen to make progress, and which ranks wait for the others to join them."""

    def __init__(self, ranks: Iterable[int], *, now: float) -> None:
        self._ranks = tuple(ranks)
        self._moved = now
        self._done: set[int] = set()
        self._sequences: dict[int, int] = {}
        self._meeting: dict[int, float] = {}
        self._getting_ready: dict[int, float] = {}

    @property
    def num_ranks(self) -> int:
        """All ranks, ended or not."""
        return len(self._ranks)

    def look(self, beats: Mapping[int, Beat], done: Collection[int], *, now: float) -> None:
        """Take in the newest beats, and which ranks have ended.

        The end of a rank counts as progress: ranks that waited for one rank and end one after the other do not hang.
        """
        if self._done != set(done):
            self._done, self._moved = set(done), now
        for rank, beat in beats.items():
            if beat.sequence != self._sequences.get(rank):
                self._sequences[rank] = beat.sequence
                self._moved = now
                # A rank that makes steps works without the others: it is not starting up in order to join them.
                if beat.step < 0:
                    self._getting_ready[rank] = now
            if MEETING in beat.path.split("/"):
                self._meeting.setdefault(rank, now)
            else:
                self._meeting.pop(rank, None)

    def stalled_s(self, *, now: float) -> float:
        """For how long no rank has made progress or ended."""
        return now - self._moved

    def meeting_s(self, *, now: float) -> float:
        """For how long ranks have waited for the others, while no rank joined them and no absent rank made progress."""
        came = [since for rank, since in self._meeting.items() if rank not in self._done]
        ready = [self._getting_ready[rank] for rank in self.absent() if rank in self._getting_ready]
        return now - max(came + ready) if came else 0.0

    def absent(self) -> tuple[int, ...]:
        """The ranks that have not come to where the others wait; empty if all wait and do not find each other."""
        return tuple(rank for rank in self._ranks if rank not in self._done and rank not in self._meeting)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspicion:
    """Who is to blame for a hang, and why."""

    ranks: tuple[int, ...]
    why: str


def suspects(
    whereabouts: Mapping[int, Whereabouts], beats: Mapping[int, Beat], ranks: Collection[int]
) -> Suspicion:
    """Which of `ranks` are to blame, when all of them stand still. The first test that finds any decides.

    1. Ranks that do not answer.
    2. Ranks that have not joined a collective in which others wait. Under NCCL a collective returns at once, and a rank
       waits at the line that needs its result: so the number of collectives that each rank has called says more than
       the stacks.
    3. Ranks that are in no collective, while others are in one.
    4. Ranks that are a step behind.
    5. All ranks.
    """
    if silent := tuple(rank for rank in ranks if rank not in whereabouts):
        return Suspicion(ranks=silent, why=f"{'does' if len(silent) == 1 else 'do'} not answer")
    if found := _absent_from_collective({rank: whereabouts[rank] for rank in ranks}):
        return found
    outside = tuple(rank for rank in ranks if not in_collective(whereabouts[rank].stack))
    if outside and len(outside) < len(ranks):
        where = last_frame(whereabouts[outside[0]].stack)
        return Suspicion(ranks=outside, why=f"in no collective while the others wait: {where}")
    steps = {rank: beats[rank].step if rank in beats else -1 for rank in ranks}
    first, last = min(steps.values(), default=-1), max(steps.values(), default=-1)
    if first < last:
        behind = tuple(rank for rank, step in steps.items() if step == first)
        where = f"at step {first}" if first >= 0 else "in no step"
        return Suspicion(ranks=behind, why=f"{where} while others are at step {last}")
    return Suspicion(ranks=tuple(ranks), why=_all_places({rank: whereabouts[rank].stack for rank in ranks}))


def _all_places(stacks: Mapping[int, str]) -> str:
    """Where the ranks stand, if none is known to be behind."""
    frames = {rank: last_frame(stack) for rank, stack in stacks.items()}
    first, *others = dict.fromkeys(frames.values())
    if not others:
        return f"all at the same place: {first}"
    one = next(rank for rank, frame in frames.items() if frame != first)
    return f"at several places, none known to be behind: rank {min(frames)} at {first}, rank {one} at {frames[one]}"


def _absent_from_collective(whereabouts: Mapping[int, Whereabouts]) -> Suspicion | None:
    """The ranks for which others wait in a group, and which wait for no rank themselves; None: all counts are equal.

    A rank that has called more collectives of a group than another rank waits for that rank, or soon will. Only calls
    are counted: if a kernel hangs on a rank that has made as many calls as the others, the counts do not show it.
    """
    called = _calls(whereabouts)
    numbers: dict[Group, list[int]] = {}
    for calls in called.values():
        for group, number in calls.items():
            numbers.setdefault(group, []).append(number)
    most = {group: max(found) for group, found in numbers.items()}
    least = {group: min(found) for group, found in numbers.items()}

    def lags(rank: int) -> list[Group]:
        return [group for group, number in called[rank].items() if number < most[group]]

    behind = [rank for rank in called if lags(rank)]
    free = [rank for rank in behind if all(n == least[group] for group, n in called[rank].items())]
    if not behind:
        return None
    if not free:
        return Suspicion(
            ranks=tuple(behind), why="wait for each other, each in a collective of another group"
        )
    first, group = free[0], lags(free[0])[0]
    number = called[first][group]
    keeps = "keeps the others waiting" if len(free) == 1 else f"keep the others waiting, rank {first}"
    after = f"{number} call{'' if number == 1 else 's'} in group {group.name}, others {most[group]}"
    return Suspicion(ranks=tuple(free), why=f"{keeps} after {after}: {last_frame(whereabouts[first].stack)}")


def _calls(whereabouts: Mapping[int, Whereabouts]) -> dict[int, dict[Group, int]]:
    """For each rank, how many collectives of each of its groups it has called."""
    called = {rank: dict(place.joined) for rank, place in whereabouts.items()}
    # A dict, not a set, so that the same hang always gets the same message.
    for group in dict.fromkeys(group for calls in called.values() for group in calls):
        if group.second_rank is not None:
            for rank in {group.first_rank, group.second_rank} & called.keys():
                called[rank].setdefault(group, 0)
    return called


def in_collective(stack: str) -> bool:
    """Whether one of the innermost frames of a stack is in torch.distributed."""
    frames = [line for line in stack.splitlines() if line.lstrip().startswith("File ")]
    return any(_COLLECTIVE.search(line) for line in frames[-_LAST_FRAMES:])


def last_frame(stack: str) -> str:
    """File, line and function of the innermost frame outside of torch, Triton and our watch, in one line."""
    frames = [line.strip() for line in stack.splitlines() if line.lstrip().startswith("File ")]
    own = [line for line in frames if not _LIBRARY.search(line)]
    return (own or frames or ["no Python frame"])[-1]
