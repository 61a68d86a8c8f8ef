"""Ranks that do what a script says, watched by the supervisor with a clock that only the test moves."""

from collections.abc import Mapping, Sequence

from ray_memprof.rank.messages import Outcome, Whereabouts
from ray_memprof.recorder.status import Beat, Group
from ray_memprof.supervision.verdict import Loss, LossKind, Verdict
from ray_memprof.supervision.watch import Timeouts, watch

STALLED = {rank: [(0.0, 5, "denoise")] for rank in range(4)}
TIMEOUTS = Timeouts(init_s=30.0, stall_s=10.0, grace_s=1.0, node_grace_s=3.0)
RESET = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection reset by peer"
IN_COLLECTIVE = '  File "/x/torch/distributed/distributed_c10d.py", line 3, in all_reduce\n    work.wait()\n'
IN_MODEL = '  File "/x/model.py", line 7, in forward\n    hang()\n'
TWO_NODES = ("a", "a", "b", "b")
NODE_LOST = ("lost", 13, "node b lost, with ranks 2 and 3", (2, 3))


class Ranks:
    """Ranks that do what a script of (time, news) says; time passes only while somebody waits."""

    def __init__(
        self,
        script: Sequence[tuple[float, Outcome | Loss]] = (),
        *,
        beats: Mapping[int, Sequence[tuple[float, int, str]]] | None = None,
        stacks: Mapping[int, str] | None = None,
        joined: Mapping[int, int] | None = None,
        lost_at: Mapping[int, float] | None = None,
        sleeps: Mapping[float, float] | None = None,
    ) -> None:
        self.now = 0.0
        """Seconds that ranks and supervisor were awake."""
        self._slept = 0.0
        self._sleeps = dict(sleeps or {})
        self._script = list(script)
        self._lost_at = lost_at or {}
        self.looked_at_nodes = 0
        self._beats, self._stacks, self._joined = beats or {}, stacks or {}, joined or {}
        self.asked_where = 0

    def clock(self) -> float:
        # Not from 0: what a clock reads is nothing to reckon with, only how it grows.
        return 1000.0 + self._slept + self.now

    def ended(self, wait_s: float) -> list[Outcome | Loss]:
        until = self.now + wait_s
        due = [when for when, _ in self._script if when <= until]
        self.now = max(self.now, min(due)) if due else until
        for when in [when for when in self._sleeps if when <= self.now]:
            self._slept += self._sleeps.pop(when)
        news = [one for when, one in self._script if when <= self.now]
        self._script = [(when, one) for when, one in self._script if when > self.now]
        return news

    def beats(self) -> dict[int, Beat]:
        found = {}
        for rank, told in self._beats.items():
            for when, sequence, path in told:
                if when <= self.now:
                    found[rank] = beat(rank, sequence, path)
        return found

    def where(self, wait_s: float) -> dict[int, Whereabouts]:
        self.asked_where += 1
        self.now += wait_s
        all_ranks = Group(name="0", first_rank=0)
        return {
            rank: Whereabouts(stack=stack, joined={all_ranks: self._joined.get(rank, 0)})
            for rank, stack in self._stacks.items()
        }

    def lost(self, wait_s: float) -> list[int]:
        self.looked_at_nodes += 1
        return [rank for rank, when in self._lost_at.items() if when <= self.now]


def beat(rank: int, sequence: int, path: str = "denoise") -> Beat:
    return Beat(
        rank=rank,
        sequence=sequence,
        path=path,
        stage=path.partition("/")[0],
        step=sequence,
        num_steps=-1,
        allocated_bytes=0,
        reserved_bytes=0,
        device_used_bytes=0,
    )


def ok(rank: int) -> Outcome:
    return Outcome(rank=rank, status="ok")


def failed(rank: int, reason: str, **more: object) -> Outcome:
    return Outcome(rank=rank, status="failed", exit_code=16, reason=reason, **more)  # type: ignore[arg-type]


def lost(rank: int, kind: LossKind = "died", detail: str = "") -> Loss:
    return Loss(rank=rank, kind=kind, detail=detail)


def watched(
    ranks: Ranks, *, nodes: Sequence[str] = ("a",) * 4, home: str = "a", signal_at: float = float("inf")
) -> Verdict:
    return watch(
        ranks,
        nodes=nodes,
        home=home,
        timeouts=TIMEOUTS,
        clock=ranks.clock,
        interrupted=lambda: 2 if ranks.now >= signal_at else 0,
        show=lambda beats: None,
    )


def told(verdict: Verdict) -> tuple[str, int, str, tuple[int, ...]]:
    return verdict.status, verdict.exit_code, verdict.reason, verdict.ranks
