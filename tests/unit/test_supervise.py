"""Sequences of events, fed to the supervisor with a clock that only the test moves."""

from collections.abc import Mapping, Sequence

import pytest

from ray_memprof.messages import Outcome, Whereabouts
from ray_memprof.recorder_status import Beat, Group
from ray_memprof.supervise import POLL_S, WAKE_S, Limits, watch
from ray_memprof.verdict import Loss, LossKind, Verdict

LIMITS = Limits(init_s=30.0, stall_s=10.0, grace_s=1.0, node_grace_s=3.0)
RESET = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection reset by peer"
IN_COLLECTIVE = '  File "/x/torch/distributed/distributed_c10d.py", line 3, in all_reduce\n    work.wait()\n'
IN_MODEL = '  File "/x/model.py", line 7, in forward\n    hang()\n'


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
        limits=LIMITS,
        clock=ranks.clock,
        interrupted=lambda: 2 if ranks.now >= signal_at else 0,
        show=lambda beats: None,
    )


def told(verdict: Verdict) -> tuple[str, int, str, tuple[int, ...]]:
    return verdict.status, verdict.exit_code, verdict.reason, verdict.ranks


def test_no_rank_at_all() -> None:
    assert watched(Ranks(), nodes=()) == Verdict(status="ok")


def test_all_end_well() -> None:
    ranks = Ranks([(1.0, ok(1)), (2.0, ok(0))])

    assert watched(ranks, nodes=("a", "a")) == Verdict(status="ok", outcomes={0: ok(0), 1: ok(1)})
    assert ranks.now == 2.0


@pytest.mark.parametrize("first", ["peer", "death"])
def test_death_weighs_more_than_a_peer_that_complains_whatever_comes_first(first: str) -> None:
    events: list[Outcome | Loss] = [lost(2), failed(1, RESET), failed(3, RESET)]
    times = (1.0, 1.002, 1.015) if first == "death" else (1.015, 1.0, 1.002)
    ranks = Ranks(list(zip(times, events, strict=True)))

    assert told(watched(ranks)) == ("died", 10, "rank 2: process died", (2,))
    assert ranks.now <= 1.0 + LIMITS.grace_s + POLL_S


def test_death_that_comes_within_the_long_grace_only() -> None:
    """GIVEN complaints of peers alone THEN the supervisor waits longer: they cannot be the cause."""
    ranks = Ranks([(1.0, failed(1, RESET)), (3.5, lost(2))])

    assert told(watched(ranks)) == ("died", 10, "rank 2: process died", (2,))


def test_peers_complain_and_nobody_tells_why() -> None:
    ranks = Ranks([(1.0, failed(1, RESET)), (1.1, failed(3, RESET))])
    verdict = watched(ranks)

    assert told(verdict) == ("failed", 16, f"ranks 1 and 3: {RESET}", (1, 3))
    assert verdict.hint.startswith("it lost another rank, and none reported why")
    assert ranks.now == pytest.approx(1.0 + LIMITS.node_grace_s)


def test_device_oom_weighs_more_than_a_peer() -> None:
    oom = Outcome(rank=2, status="oom", exit_code=11, reason="device out of memory in denoise of step 3: ...")
    verdict = watched(Ranks([(1.0, failed(0, RESET)), (1.5, oom)]))

    assert told(verdict) == ("oom", 11, "rank 2: device out of memory in denoise of step 3: ...", (2,))
    assert verdict.outcomes == {0: failed(0, RESET), 2: oom}


def test_own_error_of_a_rank_weighs_more_than_a_peer() -> None:
    ranks = Ranks([(1.0, failed(0, RESET)), (1.2, failed(3, "ValueError: 42", hint="use 43"))])
    verdict = watched(ranks)

    assert (told(verdict), verdict.hint) == (("failed", 16, "rank 3: ValueError: 42", (3,)), "use 43")


def test_what_several_ranks_tell_in_the_same_words_is_told_once_with_all_of_them() -> None:
    missing = "ckpt: model.safetensors is missing"
    events = [(1.0 + rank / 10, failed(rank, missing, hint="get it")) for rank in (2, 0, 3)]
    verdict = watched(Ranks([*events, (1.4, failed(1, "another"))]))

    assert told(verdict) == ("failed", 16, f"ranks 0, 2 and 3: {missing}", (0, 1, 2, 3))
    assert verdict.hint == "get it"


@pytest.mark.parametrize("first", ["error", "death"])
def test_an_own_error_beside_a_death_is_told_whatever_comes_first(first: str) -> None:
    """GIVEN peers that die because a rank failed, or that fail in words of their own because one died."""
    times = (1.0, 1.5) if first == "error" else (1.5, 1.0)
    verdict = watched(Ranks(list(zip(times, [failed(1, "ValueError: 42"), lost(2)], strict=True))))

    assert told(verdict) == ("died", 10, "rank 2: process died", (2,))
    assert verdict.hint.endswith("; rank 1 failed too, perhaps first: ValueError: 42")


@pytest.mark.parametrize("kinds", [("unreachable", "unreachable"), ("unreachable", "died"), ("node", "died")])
def test_node_lost_although_its_neighbours_complain_first(kinds: tuple[LossKind, LossKind]) -> None:
    events: list[tuple[float, Outcome | Loss]] = [
        (1.0, failed(0, RESET)),
        (1.1, failed(1, RESET)),
        (2.3, lost(2, kinds[0])),
        (2.4, lost(3, kinds[1])),
    ]
    verdict = watched(Ranks(events), nodes=("a", "a", "b", "b"))

    assert told(verdict) == ("lost", 13, "node b lost, with ranks 2 and 3", (2, 3))


def test_one_rank_of_a_node_out_of_reach_is_a_death() -> None:
    """GIVEN a neighbour on the same node that still works THEN the node is there."""
    verdict = watched(Ranks([(1.0, lost(2, "unreachable"))]), nodes=("a", "a", "b", "b"))

    assert told(verdict) == ("died", 10, "rank 2: process died", (2,))


def test_deaths_of_all_ranks_of_a_node_are_deaths_unless_the_node_is_suspect() -> None:
    verdict = watched(Ranks([(1.0, lost(2)), (1.0, lost(3))]), nodes=("a", "a", "b", "b"))

    assert told(verdict) == ("died", 10, "ranks 2 and 3: process died", (2, 3))


TWO_NODES = ("a", "a", "b", "b")
NODE_LOST = ("lost", 13, "node b lost, with ranks 2 and 3", (2, 3))


@pytest.mark.parametrize(
    "events",
    [
        [(1.0, lost(2)), (1.0, lost(3))],
        [(1.0, lost(2, detail="Worker exits with an exit code 1")), (1.1, lost(3))],
        [(1.0, lost(3))],
        [(1.0, failed(0, RESET)), (1.0, lost(3))],
        [(1.0, failed(0, RESET)), (1.0, failed(1, RESET))],
        [(1.0, failed(3, RESET)), (1.1, lost(2))],
        [(1.0, failed(rank, RESET)) for rank in (0, 1)] + [(1.0, lost(rank)) for rank in (2, 3)],
    ],
    ids=[
        "both dead",
        "one with a code",
        "one alone",
        "one and a peer",
        "peers alone",
        "told before",
        "all at once",
    ],
)
def test_ranks_that_are_dead_before_their_node_is_known_to_be_lost(
    events: list[tuple[float, Outcome | Loss]],
) -> None:
    """GIVEN a node that is gone, and Ray that does not know it yet THEN the verdict is that of the node, at once."""
    ranks = Ranks(events, lost_at={2: 0.9, 3: 0.9})

    assert told(watched(ranks, nodes=TWO_NODES)) == NODE_LOST
    assert ranks.now <= 1.1


def test_a_node_that_outlives_its_ranks_for_a_while() -> None:
    """GIVEN a host that is shut down in good order THEN deaths of all its ranks are not taken for its own at once."""
    ranks = Ranks([(1.0, lost(2)), (1.0, lost(3))], lost_at={2: 3.0, 3: 3.0})

    assert told(watched(ranks, nodes=TWO_NODES)) == NODE_LOST
    assert ranks.now <= 3.0 + POLL_S


def test_two_nodes_lost() -> None:
    ranks = Ranks([(1.0, lost(1))], lost_at={1: 0.9, 2: 0.9})

    verdict = watched(ranks, nodes=("a", "b", "c", "d"))
    assert told(verdict) == ("lost", 13, "node b, c lost, with ranks 1 and 2", (1, 2))


def test_a_rank_that_had_ended_well_is_not_lost_with_its_node() -> None:
    ranks = Ranks([(0.5, ok(2)), (1.0, lost(3))], lost_at={2: 0.9, 3: 0.9})

    assert told(watched(ranks, nodes=TWO_NODES)) == ("lost", 13, "node b lost, with rank 3", (3,))


def test_a_death_on_a_node_that_is_there_waits_no_longer_than_the_grace() -> None:
    ranks = Ranks([(1.0, lost(2)), (1.01, failed(3, RESET))])

    assert told(watched(ranks, nodes=TWO_NODES)) == ("died", 10, "rank 2: process died", (2,))
    assert ranks.now <= 1.0 + LIMITS.grace_s + POLL_S


def test_deaths_on_the_node_of_the_driver_are_not_waited_for() -> None:
    ranks = Ranks([(1.0, lost(0))])

    assert told(watched(ranks, nodes=("a",))) == ("died", 10, "rank 0: process died", (0,))
    assert ranks.now == 1.0


def test_an_error_that_a_rank_tells_is_not_put_down_to_a_node() -> None:
    """GIVEN a rank that says what went wrong THEN nobody looks at the nodes: what follows is its doing."""
    ranks = Ranks([(1.0, failed(1, "ValueError: 42"))], lost_at={2: 0.9, 3: 0.9})

    assert told(watched(ranks, nodes=TWO_NODES)) == ("failed", 16, "rank 1: ValueError: 42", (1,))
    assert ranks.looked_at_nodes == 0


def test_the_word_of_ray_on_a_node_counts_although_one_of_its_ranks_could_still_complain() -> None:
    ranks = Ranks([(1.0, failed(3, RESET)), (1.1, lost(2, "node"))])

    assert told(watched(ranks, nodes=TWO_NODES)) == ("lost", 13, "node b lost, with rank 2", (2,))


def test_host_out_of_memory() -> None:
    detail = "14.1GB of 15.0GB in use"
    verdict = watched(Ranks([(1.0, failed(0, RESET)), (1.1, lost(1, "host_oom", detail))]))

    assert told(verdict) == ("host_oom", 14, f"rank 1: node a out of host memory: {detail}", (1,))


STALLED = {rank: [(0.0, 5, "denoise")] for rank in range(4)}


def test_hang_names_the_rank_outside_a_collective() -> None:
    stacks = {rank: IN_MODEL if rank == 2 else IN_COLLECTIVE for rank in range(4)}
    ranks = Ranks(beats=STALLED, stacks=stacks)
    verdict = watched(ranks)

    where = 'File "/x/model.py", line 7, in forward'
    reason = f"rank 2 in no collective while the others wait: {where}; no rank got on for 10 s"
    assert (told(verdict), verdict.stacks) == (("hung", 12, reason, (2,)), stacks)
    assert ranks.now < LIMITS.stall_s + 2


def test_hang_names_the_rank_that_has_not_called_the_collective_of_the_others() -> None:
    """GIVEN collectives that return at once, as NCCL's do THEN the waiting stand in the model too: counts tell."""
    ranks = Ranks(beats=STALLED, stacks=dict.fromkeys(range(4), IN_MODEL), joined={0: 8, 1: 7, 2: 8, 3: 9})

    reason = 'rank 1 keeps the others waiting after 7 calls in group 0, others 9: File "/x/model.py", line 7'
    assert watched(ranks).reason == f"{reason}, in forward; no rank got on for 10 s"
    assert watched(ranks).ranks == (1,)


def test_hang_names_the_rank_that_does_not_answer() -> None:
    verdict = watched(Ranks(beats=STALLED, stacks=dict.fromkeys((0, 1, 3), IN_COLLECTIVE)))

    assert told(verdict) == ("hung", 12, "rank 2 does not answer; no rank got on for 10 s", (2,))


def test_hang_of_all_at_the_same_place_blames_nobody_in_particular() -> None:
    verdict = watched(Ranks(beats=STALLED, stacks=dict.fromkeys(range(4), IN_COLLECTIVE)))

    assert (verdict.exit_code, verdict.ranks) == (12, (0, 1, 2, 3))


def test_hang_names_the_rank_that_is_behind() -> None:
    beats = {rank: [(0.0, 4 if rank == 1 else 5, "denoise")] for rank in range(4)}
    verdict = watched(Ranks(beats=beats, stacks=dict.fromkeys(range(4), IN_MODEL)))

    assert told(verdict)[2:] == ("rank 1 at step 4 while others are at step 5; no rank got on for 10 s", (1,))


def test_one_rank_that_works_while_the_others_wait_is_no_hang() -> None:
    """GIVEN a rank 0 that decodes for a minute THEN nobody is asked where they are."""
    beats = {**STALLED, 0: [(float(second), second, "decode") for second in range(60)]}
    ranks = Ranks([(60.0, ok(rank)) for rank in range(4)], beats=beats)

    assert watched(ranks).status == "ok"
    assert ranks.asked_where == 0


def test_ranks_that_have_ended_do_not_count_as_standing_still() -> None:
    beats = {0: [(0.0, 5, "denoise")], 1: [(float(second), second, "save") for second in range(20)]}
    ranks = Ranks([(1.0, ok(0)), (20.0, ok(1))], beats=beats)

    assert watched(ranks, nodes=("a", "a")).status == "ok"


def test_ranks_that_waited_for_one_that_works_end_after_it_one_by_one() -> None:
    """GIVEN a rank 1 that others waited for, longer than a standstill may last THEN none of them hangs at the end."""
    beats = {**STALLED, 1: [(float(second), second, "decode") for second in range(30)]}
    ends = [(30.0, ok(1)), (30.1, ok(2)), (30.5, ok(3)), (31.5, ok(0))]

    assert watched(Ranks(ends, beats=beats, stacks=dict.fromkeys(range(4), "not running"))).status == "ok"


def test_a_standstill_because_of_a_node_that_is_gone_is_put_down_to_it() -> None:
    """GIVEN a host without power, which breaks no connection THEN its ranks are lost, not hung."""
    ranks = Ranks(beats=STALLED, stacks=dict.fromkeys((0, 1), IN_COLLECTIVE), lost_at={2: 1.0, 3: 1.0})

    assert told(watched(ranks, nodes=TWO_NODES)) == NODE_LOST
    assert ranks.asked_where == 0


def test_a_rank_that_never_beats_stands_still() -> None:
    verdict = watched(Ranks(stacks={}), nodes=("a",))

    assert told(verdict) == ("hung", 12, "rank 0 does not answer; no rank got on for 10 s", (0,))


def meeting(*ranks: int) -> dict[int, list[tuple[float, int, str]]]:
    """Ranks that wait to meet; the others get on with something else."""
    return {
        rank: [(0.0, 1, "comm.init")]
        if rank in ranks
        else [(float(second), second, "load.dit") for second in range(60)]
        for rank in range(4)
    }


def test_a_rank_that_does_not_come_to_the_meeting_is_named() -> None:
    ranks = Ranks(beats=meeting(0, 1, 2), stacks={3: IN_MODEL})
    verdict = watched(ranks)

    assert told(verdict) == ("never_started", 23, "waiting for ranks [3]: not met within 30 s", (3,))
    assert verdict.stacks == {3: IN_MODEL}
    assert LIMITS.init_s <= ranks.now < LIMITS.init_s + 2


def getting_ready(until: float) -> dict[int, list[tuple[float, int, str]]]:
    """Rank 3 prepares data, the others wait for it to come to the meeting."""
    steady: list[tuple[float, int, str]] = [(0.0, -1, "comm.init")]
    if until < LIVES:
        steady.append((until + 1, -2, ""))
    busy = [(float(second), -2 - second, "script") for second in range(int(until) + 1)]
    return {0: steady, 1: steady, 2: steady, 3: busy}


LIVES = 200.0


def test_a_rank_that_gets_ready_holds_the_clock_of_those_that_wait_for_it() -> None:
    ranks = Ranks([(95.0 + rank, ok(rank)) for rank in range(4)], beats=getting_ready(until=90.0))
    assert LIMITS.init_s < 90.0
    assert watched(ranks).status == "ok"


def test_a_rank_that_stops_to_get_ready_is_named() -> None:
    """GIVEN another rank that moves all the time, and rank 3 that did until 50 s."""
    beats = getting_ready(until=50.0)
    beats[2] = [(float(second), -1 - second, "comm.init") for second in range(int(LIVES))]
    beats[0] = beats[1] = beats[2]
    ranks = Ranks(beats=beats)
    assert told(watched(ranks))[2:] == ("waiting for ranks [3]: not met within 30 s", (3,))
    assert 50.0 + LIMITS.init_s <= ranks.now < 50.0 + LIMITS.init_s + 2


def test_all_have_come_and_the_last_of_them_late() -> None:
    """GIVEN ranks that wait for longer than the limit for the last one THEN they have as long again to find it."""
    beats = {rank: [(0.0, 1, "comm.init")] for rank in (0, 1, 2)}
    beats[3] = [(float(second), -2 - second, "script") for second in range(45)] + [(45.0, 1, "comm.init")]
    for rank in range(4):
        beats[rank] += [(50.0 + second, 2 + second, "denoise") for second in range(9)]
    ranks = Ranks([(60.0, ok(rank)) for rank in range(4)], beats=beats)
    assert watched(ranks).status == "ok"


@pytest.mark.parametrize("when", [0.5, 9.0, 9.9])
def test_a_supervisor_that_was_itself_stopped_blames_nobody(when: float) -> None:
    """GIVEN steps a little shorter than the limit, and everything frozen for an hour in the midst of one."""
    beats = {rank: [(9.8 * step, step, "denoise") for step in range(1, 6)] for rank in range(2)}
    ranks = Ranks([(50.0, ok(0)), (50.0, ok(1))], beats=beats, sleeps={when: 3600.0, when + 20: 3600.0})
    assert watched(ranks, nodes=("a", "a")).status == "ok"


def test_ranks_that_beat_while_the_supervisor_slept_are_asked_first() -> None:
    """GIVEN a supervisor alone that wakes just before the limit THEN a beat that comes a second later counts."""
    beats = {0: [(0.0, 1, "denoise"), (11.0, 2, "denoise")]}
    ranks = Ranks([(20.0, ok(0))], beats=beats, sleeps={9.7: 3600.0})
    assert watched(ranks, nodes=("a",)).status == "ok"


def test_a_hang_is_seen_though_the_supervisor_was_stopped() -> None:
    ranks = Ranks(
        beats=STALLED, stacks=dict.fromkeys(range(4), IN_COLLECTIVE), sleeps={5.0: 400.0, 8.0: 400.0}
    )
    assert watched(ranks).status == "hung"
    assert LIMITS.stall_s <= ranks.now < LIMITS.stall_s + WAKE_S + 2


def test_news_that_came_while_the_supervisor_slept_is_heard_before_the_verdict() -> None:
    """GIVEN a peer's complaint, a sleep within the grace, and then the death that explains it."""
    ranks = Ranks([(1.0, failed(1, RESET)), (2.0, lost(2))], sleeps={1.2: 3600.0})
    assert told(watched(ranks)) == ("died", 10, "rank 2: process died", (2,))


def test_ranks_that_do_not_find_each_other() -> None:
    beats = {rank: [(float(second), second, "comm.init") for second in range(60)] for rank in range(4)}
    verdict = watched(Ranks(beats=beats))

    reason = "all ranks wait and do not find each other: not met within 30 s"
    assert told(verdict) == ("never_started", 23, reason, ())


def test_signal() -> None:
    ranks = Ranks(beats=STALLED)

    assert told(watched(ranks, signal_at=2.0)) == ("interrupted", 130, "interrupted by SIGINT", ())
    assert ranks.now <= 2.0 + POLL_S


def test_signal_within_the_grace_does_not_wait_for_it() -> None:
    ranks = Ranks([(1.0, lost(2, "unreachable"))], beats=STALLED)

    assert told(watched(ranks, signal_at=1.1))[3] == (2,)
    assert ranks.now <= 1.1 + 2 * POLL_S


def test_beats_are_shown() -> None:
    shown: list[Mapping[int, Beat]] = []
    ranks = Ranks([(1.0, ok(0))], beats={0: [(0.0, 1, "denoise")]})
    verdict = watch(
        ranks, nodes=("a",), limits=LIMITS, clock=ranks.clock, interrupted=lambda: 0, show=shown.append
    )

    assert shown[0] == {0: beat(0, 1)} == verdict.beats
