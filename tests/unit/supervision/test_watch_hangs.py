"""Ranks that no longer get on, or do not meet: when that is a hang, and who is named."""

import pytest
from supervised import (
    IN_COLLECTIVE,
    IN_MODEL,
    NODE_LOST,
    RESET,
    STALLED,
    TIMEOUTS,
    TWO_NODES,
    Ranks,
    failed,
    lost,
    ok,
    told,
    watched,
)

from ray_memprof.supervision.watch import WAKE_S


def test_hang_names_the_rank_outside_a_collective() -> None:
    stacks = {rank: IN_MODEL if rank == 2 else IN_COLLECTIVE for rank in range(4)}
    ranks = Ranks(beats=STALLED, stacks=stacks)
    verdict = watched(ranks)

    where = 'File "/x/model.py", line 7, in forward'
    reason = f"rank 2 in no collective while the others wait: {where}; no rank made progress for 10 s"
    assert (told(verdict), verdict.stacks) == (("hung", 12, reason, (2,)), stacks)
    assert ranks.now < TIMEOUTS.stall_s + 2


def test_hang_names_the_rank_that_has_not_called_the_collective_of_the_others() -> None:
    """GIVEN collectives that return at once, as NCCL's do THEN the waiting stand in the model too: counts tell."""
    ranks = Ranks(beats=STALLED, stacks=dict.fromkeys(range(4), IN_MODEL), joined={0: 8, 1: 7, 2: 8, 3: 9})

    reason = 'rank 1 keeps the others waiting after 7 calls in group 0, others 9: File "/x/model.py", line 7'
    assert watched(ranks).reason == f"{reason}, in forward; no rank made progress for 10 s"
    assert watched(ranks).ranks == (1,)


def test_hang_names_the_rank_that_does_not_answer() -> None:
    verdict = watched(Ranks(beats=STALLED, stacks=dict.fromkeys((0, 1, 3), IN_COLLECTIVE)))

    assert told(verdict) == ("hung", 12, "rank 2 does not answer; no rank made progress for 10 s", (2,))


def test_hang_of_all_at_the_same_place_blames_nobody_in_particular() -> None:
    verdict = watched(Ranks(beats=STALLED, stacks=dict.fromkeys(range(4), IN_COLLECTIVE)))

    assert (verdict.exit_code, verdict.ranks) == (12, (0, 1, 2, 3))


def test_hang_names_the_rank_that_is_behind() -> None:
    beats = {rank: [(0.0, 4 if rank == 1 else 5, "denoise")] for rank in range(4)}
    verdict = watched(Ranks(beats=beats, stacks=dict.fromkeys(range(4), IN_MODEL)))

    assert told(verdict)[2:] == (
        "rank 1 at step 4 while others are at step 5; no rank made progress for 10 s",
        (1,),
    )


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

    assert told(verdict) == ("hung", 12, "rank 0 does not answer; no rank made progress for 10 s", (0,))


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

    assert told(verdict) == ("never_started", 23, "waiting for rank 3: not met within 30 s", (3,))
    assert verdict.stacks == {3: IN_MODEL}
    assert TIMEOUTS.init_s <= ranks.now < TIMEOUTS.init_s + 2


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
    assert TIMEOUTS.init_s < 90.0
    assert watched(ranks).status == "ok"


def test_a_rank_that_stops_to_get_ready_is_named() -> None:
    """GIVEN another rank that moves all the time, and rank 3 that did until 50 s."""
    beats = getting_ready(until=50.0)
    beats[2] = [(float(second), -1 - second, "comm.init") for second in range(int(LIVES))]
    beats[0] = beats[1] = beats[2]
    ranks = Ranks(beats=beats)
    assert told(watched(ranks))[2:] == ("waiting for rank 3: not met within 30 s", (3,))
    assert 50.0 + TIMEOUTS.init_s <= ranks.now < 50.0 + TIMEOUTS.init_s + 2


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
    assert TIMEOUTS.stall_s <= ranks.now < TIMEOUTS.stall_s + WAKE_S + 2


def test_news_that_came_while_the_supervisor_slept_is_heard_before_the_verdict() -> None:
    """GIVEN a peer's complaint, a sleep within the grace, and then the death that explains it."""
    ranks = Ranks([(1.0, failed(1, RESET)), (2.0, lost(2))], sleeps={1.2: 3600.0})
    assert told(watched(ranks)) == ("died", 10, "rank 2: process died", (2,))


def test_ranks_that_do_not_find_each_other() -> None:
    beats = {rank: [(float(second), second, "comm.init") for second in range(60)] for rank in range(4)}
    verdict = watched(Ranks(beats=beats))

    reason = "all ranks wait and do not find each other: not met within 30 s"
    assert told(verdict) == ("never_started", 23, reason, ())
