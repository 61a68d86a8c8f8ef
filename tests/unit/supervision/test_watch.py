"""Which verdict a sequence of ends leads to."""

from collections.abc import Mapping

import pytest
from supervised import (
    NODE_LOST,
    RESET,
    STALLED,
    TIMEOUTS,
    TWO_NODES,
    Ranks,
    beat,
    failed,
    lost,
    ok,
    told,
    watched,
)

from ray_memprof.rank.messages import Outcome
from ray_memprof.recorder.status import Beat
from ray_memprof.supervision.verdict import Loss, LossKind, Verdict
from ray_memprof.supervision.watch import POLL_S, watch


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
    assert ranks.now <= 1.0 + TIMEOUTS.grace_s + POLL_S


def test_death_that_comes_within_the_long_grace_only() -> None:
    """GIVEN complaints of peers alone THEN the supervisor waits longer: they cannot be the cause."""
    ranks = Ranks([(1.0, failed(1, RESET)), (3.5, lost(2))])

    assert told(watched(ranks)) == ("died", 10, "rank 2: process died", (2,))


def test_peers_complain_and_nobody_tells_why() -> None:
    ranks = Ranks([(1.0, failed(1, RESET)), (1.1, failed(3, RESET))])
    verdict = watched(ranks)

    assert told(verdict) == ("failed", 16, f"ranks 1 and 3: {RESET}", (1, 3))
    assert verdict.hint.startswith("it lost another rank, and none reported why")
    assert ranks.now == pytest.approx(1.0 + TIMEOUTS.node_grace_s)


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
    assert ranks.now <= 1.0 + TIMEOUTS.grace_s + POLL_S


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
        ranks, nodes=("a",), timeouts=TIMEOUTS, clock=ranks.clock, interrupted=lambda: 0, show=shown.append
    )

    assert shown[0] == {0: beat(0, 1)} == verdict.beats
