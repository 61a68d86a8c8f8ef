"""Watches the ranks until all have ended well or one has made the run fail; the result is a Verdict.

    verdict = watch(ranks, nodes=("a", "a", "b", "b"), timeouts=Timeouts(...), clock=time.monotonic, ...)

Uses neither Ray nor torch: `ranks` says with plain values which ranks have ended and where each is, and never blocks
longer than the given seconds. verdict.py decides what a failure means, hang.py what a standstill means.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ray_memprof import errors
from ray_memprof.rank.messages import Outcome, Whereabouts
from ray_memprof.recorder.status import Beat
from ray_memprof.supervision import verdict
from ray_memprof.supervision.awake import AwakeClock
from ray_memprof.supervision.hang import Progress, suspects
from ray_memprof.supervision.verdict import Loss, Verdict, interruption
from ray_memprof.wording import rank_text

POLL_S = 0.2
"""How long one poll waits for news; a signal may wait as long before it is noticed."""
WHERE_S = 1.0
"""How long a rank may take to say where it is; a rank that is able to answer takes milliseconds."""
WAKE_S = 5.0
"""After this process itself was stopped, the ranks get this time to send new beats, since the last ones are old."""
NODE_S = 1.0
"""How long a node may take to show that it is there; a living node takes a millisecond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
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

    def where(self, wait_s: float) -> Mapping[int, Whereabouts]:
        """Where each rank is, of those that answer in time."""

    def lost(self, wait_s: float) -> Collection[int]:
        """The ranks whose node is gone, as far as this can be found out in time."""


def watch(
    ranks: Ranks,
    *,
    nodes: Sequence[str],
    home: str = "",
    timeouts: Timeouts,
    clock: Callable[[], float],
    interrupted: Callable[[], int],
    show: Callable[[Mapping[int, Beat]], None],
) -> Verdict:
    """Return when every rank has ended well, or as soon as it is certain that the run cannot.

    Args:
        ranks: answers for all ranks of the run.
        nodes: name of the node of each rank.
        home: the node of the driver, which cannot be lost; "" if no rank is on it.
        timeouts: keys of ray.timeouts.
        clock: seconds that only grow.
        interrupted: returns the number of the signal that asks for an end; 0: none.
        show: called with the beats at every poll.
    """
    away = frozenset(rank for rank, node in enumerate(nodes) if node != home)
    awake = AwakeClock(clock)
    watched = _Watch(ranks, nodes, away, timeouts, awake, interrupted)
    progress = Progress(range(len(nodes)), now=awake())
    while True:
        failures = watched.hear(POLL_S)
        beats = ranks.beats()
        show(beats)
        ended: Verdict | None
        if number := interrupted():
            ended = interruption(number)
        elif failures:
            ended = watched.weigh(failures)
        elif len(watched.outcomes) == len(nodes):
            ended = Verdict(status="ok")
        else:
            progress.look(beats, watched.outcomes, now=awake())
            ended = watched.stuck(progress, beats)
        if ended is not None:
            return replace(ended, outcomes={**watched.outcomes, **ended.outcomes}, beats=ranks.beats())


@dataclass(slots=True)
class _Watch:
    """The state of watch() for one run."""

    ranks: Ranks
    nodes: Sequence[str]
    away: Collection[int]
    """Ranks on other nodes than the driver's."""
    timeouts: Timeouts
    clock: AwakeClock
    interrupted: Callable[[], int]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """By rank, of the ranks that have ended well."""

    def hear(self, wait_s: float) -> list[Outcome | Loss]:
        """The failures since the last call; outcomes of ranks that ended well go into `outcomes`."""
        failures: list[Outcome | Loss] = []
        for one in self.ranks.ended(wait_s):
            if isinstance(one, Outcome) and one.status == "ok":
                self.outcomes[one.rank] = one
            else:
                failures.append(one)
        return failures

    def weigh(self, failures: list[Outcome | Loss]) -> Verdict:
        """The verdict on `failures`, and on those that follow within the grace.

        Ray reports dead ranks before it knows that their node is gone; on a busy host, seconds before. So this method
        checks the nodes itself, as long as the news could still come from the loss of a node.
        """
        began = self.clock()
        lost: list[int] = []
        while not self.interrupted():
            if verdict.may_be_node(failures):
                lost = self._lost()
            left_s = began + self._grace_s(failures) - self.clock()
            if lost or left_s <= 0 or self._is_clear(failures):
                break
            failures += self.hear(min(POLL_S, left_s))
        return verdict.judge(failures, self.nodes, lost)

    def _lost(self) -> list[int]:
        return [rank for rank in self.ranks.lost(NODE_S) if rank not in self.outcomes]

    def _grace_s(self, failures: Sequence[Outcome | Loss]) -> float:
        # A node that shuts down normally may live a second longer than its processes.
        if verdict.is_unclear(failures) or verdict.died_together(failures, self.nodes, self.away):
            return self.timeouts.node_grace_s
        return self.timeouts.grace_s

    def _is_clear(self, failures: Sequence[Outcome | Loss]) -> bool:
        """True once all ranks have reported and no death may still turn out to be a lost node."""
        may_follow = any(isinstance(one, Loss) and one.rank in self.away for one in failures)
        return len(failures) + len(self.outcomes) == len(self.nodes) and not may_follow

    def stuck(self, progress: Progress, beats: Mapping[int, Beat]) -> Verdict | None:
        """The verdict on ranks that live but make no progress; None: they may go on."""
        timeouts, now = self.timeouts, self.clock()
        if self.clock.woke_s() < WAKE_S:
            return None
        never_met = progress.meeting_s(now=now) >= timeouts.init_s
        if not never_met and progress.stalled_s(now=now) < timeouts.stall_s:
            return None
        # A host that loses power closes no connection: the other ranks just wait, and so does Ray.
        if lost := self._lost():
            return verdict.judge([], self.nodes, lost)
        if never_met:
            return _never_met(progress.absent(), timeouts, self.ranks.where(WHERE_S))
        whereabouts = self.ranks.where(WHERE_S)
        left = [rank for rank in range(progress.num_ranks) if rank not in self.outcomes]
        found = suspects(whereabouts, beats, left)
        return Verdict(
            status="hung",
            exit_code=errors.EXIT_HANG,
            reason=f"{rank_text(found.ranks)} {found.why}; no rank made progress for {timeouts.stall_s:g} s",
            hint="logs/rankN.stack.txt says where every rank was; a step that takes longer: raise ray.timeouts.stall_s",
            ranks=found.ranks,
            stacks=_stacks(whereabouts),
        )


def _stacks(whereabouts: Mapping[int, Whereabouts]) -> dict[int, str]:
    return {rank: place.stack for rank, place in whereabouts.items()}


def _never_met(
    absent: tuple[int, ...], timeouts: Timeouts, whereabouts: Mapping[int, Whereabouts]
) -> Verdict:
    who = f"waiting for {rank_text(absent)}" if absent else "all ranks wait and do not find each other"
    return Verdict(
        status="never_started",
        exit_code=errors.EXIT_NEVER_ARRIVED,
        reason=f"{who}: not met within {timeouts.init_s:g} s",
        hint="logs/rankN.stack.txt says where every rank was; a slower start: raise ray.timeouts.init_s",
        ranks=absent,
        stacks=_stacks(whereabouts),
    )
