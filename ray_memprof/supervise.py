"""Watches the ranks until all have ended well or one has spoiled the run; says which in a Verdict.

    verdict = watch(ranks, nodes=("a", "a", "b", "b"), limits=Limits(...), clock=time.monotonic, ...)

Knows neither Ray nor torch: `ranks` answers "who has ended" and "where is everybody" with plain values, and never
blocks longer than it is told. What a failure means is weighed in verdict.py, what a standstill means in stall.py.
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ray_memprof import errors, verdict
from ray_memprof.plan import Beat, Outcome
from ray_memprof.stall import Progress, suspects
from ray_memprof.verdict import Loss, Verdict, name_ranks

POLL_S = 0.2
"""How long one look waits for news: also the delay of a signal."""
WHERE_S = 1.0
"""How long a rank may take to say where it is; one that answers at all takes milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Seconds; keys of ray.timeouts."""

    init_s: float
    stall_s: float
    grace_s: float
    node_grace_s: float


class Ranks(Protocol):
    """What the supervisor asks of the ranks; no call takes longer than the seconds given."""

    def ended(self, wait_s: float) -> Sequence[Outcome | Loss]:
        """Ranks that ended since the last call, in the order in which the news came."""

    def beats(self) -> Mapping[int, Beat]:
        """The newest beat of each rank that ever answered."""

    def where(self, wait_s: float) -> Mapping[int, str]:
        """The stacks of the ranks that answer in time."""


def watch(
    ranks: Ranks,
    *,
    nodes: Sequence[str],
    limits: Limits,
    clock: Callable[[], float],
    interrupted: Callable[[], int],
    show: Callable[[Mapping[int, Beat]], None],
) -> Verdict:
    """Return when every rank has ended well, or as soon as it is certain that the run cannot.

    Args:
        ranks: who is asked.
        nodes: name of the node of each rank.
        limits: how long what may take.
        clock: seconds that only grow.
        interrupted: number of the signal that asks for an end; 0: none.
        show: told the beats at every look.
    """
    outcomes: dict[int, Outcome] = {}
    progress = Progress(range(len(nodes)), now=clock())
    while True:
        news = ranks.ended(POLL_S)
        beats = ranks.beats()
        show(beats)
        failures = _sort(news, outcomes)
        ended = _ended(ranks, failures, outcomes, nodes, limits, clock, interrupted)
        if ended is None:
            progress.look(beats, now=clock())
            ended = _stuck(ranks, progress, outcomes, beats, limits, clock)
        if ended is not None:
            return replace(ended, outcomes={**outcomes, **ended.outcomes}, beats=ranks.beats())


def _sort(news: Sequence[Outcome | Loss], outcomes: dict[int, Outcome]) -> list[Outcome | Loss]:
    """Put good ends into `outcomes`; returns the others."""
    failures: list[Outcome | Loss] = []
    for one in news:
        if isinstance(one, Outcome) and one.status == "ok":
            outcomes[one.rank] = one
        else:
            failures.append(one)
    return failures


def _ended(
    ranks: Ranks,
    failures: list[Outcome | Loss],
    outcomes: dict[int, Outcome],
    nodes: Sequence[str],
    limits: Limits,
    clock: Callable[[], float],
    interrupted: Callable[[], int],
) -> Verdict | None:
    """The verdict, where there is one without asking how the ranks get on."""
    if number := interrupted():
        return interruption(number)
    if failures:
        began = clock()
        while len(failures) + len(outcomes) < len(nodes) and not interrupted():
            grace_s = limits.node_grace_s if verdict.is_unclear(failures) else limits.grace_s
            if (left_s := began + grace_s - clock()) <= 0:
                break
            failures += _sort(ranks.ended(min(POLL_S, left_s)), outcomes)
        return verdict.judge(failures, nodes)
    return Verdict(status="ok") if len(outcomes) == len(nodes) else None


def _stuck(
    ranks: Ranks,
    progress: Progress,
    outcomes: Mapping[int, Outcome],
    beats: Mapping[int, Beat],
    limits: Limits,
    clock: Callable[[], float],
) -> Verdict | None:
    """The verdict on ranks that live and do not get on."""
    if progress.meeting_s(outcomes, now=clock()) >= limits.init_s:
        return _never_met(progress.absent(outcomes), outcomes, limits, ranks.where(WHERE_S))
    if progress.stalled_s(outcomes, now=clock()) < limits.stall_s:
        return None
    stacks = ranks.where(WHERE_S)
    left = [rank for rank in range(progress.num_ranks) if rank not in outcomes]
    found = suspects(stacks, beats, left)
    return Verdict(
        status="hung",
        exit_code=errors.EXIT_HANG,
        reason=f"{name_ranks(found.ranks)} {found.why}; no rank got on for {limits.stall_s:g} s",
        hint="logs/rankN.stack.txt says where every rank was; a step that takes longer: raise ray.timeouts.stall_s",
        ranks=found.ranks,
        stacks=stacks,
    )


def _never_met(
    absent: tuple[int, ...], outcomes: Mapping[int, Outcome], limits: Limits, stacks: Mapping[int, str]
) -> Verdict:
    who = f"waiting for ranks {list(absent)}" if absent else "all ranks wait and do not find each other"
    return Verdict(
        status="never_started",
        exit_code=errors.EXIT_NEVER_ARRIVED,
        reason=f"{who}: not met within {limits.init_s:g} s",
        hint="logs/rankN.stack.txt says where every rank was; a slower start: raise ray.timeouts.init_s",
        ranks=absent,
        stacks=stacks,
    )


def interruption(number: int) -> Verdict:
    """The verdict on a run that signal `number` ended."""
    name = signal.Signals(number).name
    return Verdict(status="interrupted", exit_code=128 + number, reason=f"interrupted by {name}")
