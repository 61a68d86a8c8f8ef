"""Ranks that no longer get on: when that is a hang, and which rank is to blame.

    progress = Progress(range(4), now=clock())
    progress.look(beats, now=clock())
    if progress.stalled_s(now=clock()) >= 300: suspects(stacks, beats, ranks)

Pure. A hang is all ranks standing still: one that works for minutes while the others wait for it is no hang.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ray_memprof.plan import Beat

MEETING = "comm.init"
"""The span in which ranks wait for each other."""
# Where a thread stands that waits for other ranks.
_COLLECTIVE = re.compile(r"torch[/\\]distributed[/\\]|wait_tensor|_functional_collectives")
_LAST_FRAMES = 8
"""How many lines of a stack, from its inner end, tell where a thread is: a training loop may itself be called from
torch.distributed."""


class Progress:
    """When each rank was last seen to get on."""

    def __init__(self, ranks: Iterable[int], *, now: float) -> None:
        self._moved = dict.fromkeys(ranks, now)
        self._sequences: dict[int, int] = {}
        self._meeting: dict[int, float] = {}

    @property
    def num_ranks(self) -> int:
        """All ranks, ended or not."""
        return len(self._moved)

    def look(self, beats: Mapping[int, Beat], *, now: float) -> None:
        """Take in the newest beats."""
        for rank, beat in beats.items():
            if beat.sequence != self._sequences.get(rank):
                self._sequences[rank] = beat.sequence
                self._moved[rank] = now
            if MEETING in beat.path.split("/"):
                self._meeting.setdefault(rank, now)
            else:
                self._meeting.pop(rank, None)

    def stalled_s(self, done: Collection[int], *, now: float) -> float:
        """How long no rank has moved, the ranks in `done` left out; 0 where there is no other."""
        moved = [then for rank, then in self._moved.items() if rank not in done]
        return now - max(moved) if moved else 0.0

    def meeting_s(self, done: Collection[int], *, now: float) -> float:
        """How long the most patient rank has been waiting to meet the others."""
        waits = [now - since for rank, since in self._meeting.items() if rank not in done]
        return max(waits, default=0.0)

    def absent(self, done: Collection[int]) -> tuple[int, ...]:
        """The ranks that are not where the others wait; empty when all are there and do not find each other."""
        return tuple(rank for rank in self._moved if rank not in done and rank not in self._meeting)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspicion:
    """Who is to blame for a hang, and why."""

    ranks: tuple[int, ...]
    why: str


def suspects(stacks: Mapping[int, str], beats: Mapping[int, Beat], ranks: Collection[int]) -> Suspicion:
    """Of `ranks`, which all stand still: the silent ones, else those outside a collective, else those behind."""
    if silent := tuple(rank for rank in ranks if rank not in stacks):
        return Suspicion(ranks=silent, why=f"{'does' if len(silent) == 1 else 'do'} not answer")
    outside = tuple(rank for rank in ranks if not in_collective(stacks[rank]))
    if outside and len(outside) < len(ranks):
        where = last_frame(stacks[outside[0]])
        return Suspicion(ranks=outside, why=f"in no collective while the others wait: {where}")
    steps = {rank: beats[rank].step for rank in ranks if rank in beats}
    behind = tuple(rank for rank in ranks if steps.get(rank, -1) == min(steps.values(), default=-1))
    if len(behind) < len(ranks):
        step = min(steps.values(), default=-1)
        return Suspicion(ranks=behind, why=f"at step {step} while others are at step {max(steps.values())}")
    return Suspicion(ranks=tuple(ranks), why="all at the same place: " + last_frame(stacks[min(ranks)]))


def in_collective(stack: str) -> bool:
    """Whether the inner end of a stack is one of torch.distributed's functions."""
    frames = [line for line in stack.splitlines() if line.lstrip().startswith("File ")]
    return any(_COLLECTIVE.search(line) for line in frames[-_LAST_FRAMES:])


def last_frame(stack: str) -> str:
    """File, line and function of the innermost frame, in one line."""
    frames = [line.strip() for line in stack.splitlines() if line.lstrip().startswith("File ")]
    return frames[-1] if frames else "no Python frame"
