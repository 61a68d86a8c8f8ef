"""Who is to blame when all ranks stand still: what stacks tell, and what counts of collectives."""

import pytest

from ray_memprof.rank.messages import Whereabouts
from ray_memprof.recorder import collectives
from ray_memprof.recorder.status import Beat, Group
from ray_memprof.supervision.hang import (
    Progress,
    Suspicion,
    in_collective,
    last_frame,
    suspects,
)

STACK = """  File "/x/torch/distributed/distributed_c10d.py", line 1, in run
    main()
{deep}  File "/x/model.py", line 9, in forward
    hang()
"""
DEEP = '  File "/x/a.py", line 1, in call\n    call()\n' * 10


def test_in_a_collective_by_the_inner_end_of_the_stack() -> None:
    assert not in_collective("")
    assert in_collective(STACK.format(deep=""))
    assert not in_collective(STACK.format(deep=DEEP))
    assert (last_frame(""), last_frame(STACK.format(deep=DEEP))) == (
        "no Python frame",
        'File "/x/model.py", line 9, in forward',
    )


def test_the_place_in_the_model_and_not_the_watch_around_a_collective() -> None:
    stack = STACK.format(deep="") + (
        f'  File "{collectives.__file__}", line 91, in watched\n'
        '  File "/v/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 3, in all_reduce\n'
    )
    assert in_collective(stack)
    assert last_frame(stack) == 'File "/x/model.py", line 9, in forward'


WORLD, LEFT, RIGHT = (
    Group(name="0", first_rank=0), Group(name="1", first_rank=0), Group(name="1", first_rank=2)
)  # fmt: skip
"""Of four ranks: all, and two pairs whose groups have the same name."""


def suspected(*joined: dict[Group, int], places: tuple[str, ...] = ()) -> Suspicion:
    stacks = places or (STACK.format(deep=DEEP),) * len(joined)
    found = {
        rank: Whereabouts(stack=stack, joined=counts)
        for rank, (stack, counts) in enumerate(zip(stacks, joined, strict=True))
    }
    return suspects(found, {}, range(len(joined)))


def test_who_waits_for_others_is_not_to_blame() -> None:
    """GIVEN rank 2 asleep, rank 3 waiting for it in their pair, and the others for both THEN rank 2 alone is blamed."""
    found = suspected(
        {WORLD: 6, LEFT: 40}, {WORLD: 6, LEFT: 40}, {WORLD: 5, RIGHT: 38}, {WORLD: 5, RIGHT: 39}
    )
    assert found.ranks == (2,)
    assert found.why == (
        'keeps the others waiting after 5 calls in group 0, others 6: File "/x/model.py", line 9, in forward'
    )


def test_several_that_are_missing() -> None:
    found = suspected({WORLD: 2}, {WORLD: 3}, {WORLD: 1}, {WORLD: 3})
    calls = "1 call in group 0, others 3"
    assert (found.ranks, found.why.partition(": ")[0]) == ((2,), f"keeps the others waiting after {calls}")
    found = suspected({WORLD: 1}, {WORLD: 3}, {WORLD: 1}, {WORLD: 3})
    assert (found.ranks, found.why.partition(": ")[0]) == (
        (0, 2), f"keep the others waiting, rank 0 after {calls}"
    )  # fmt: skip


def pair(one: int, other: int) -> Group:
    return Group(name=f"0 between ranks {one} and {other}", first_rank=one, second_rank=other)


def test_a_rank_that_has_sent_nothing_yet_is_behind_those_that_have() -> None:
    """GIVEN a ring of three, rank 1 asleep before the first block, and rank 3 in another node's ring."""
    found = suspected({WORLD: 6, pair(0, 1): 4, pair(0, 2): 4}, {WORLD: 6}, {WORLD: 6, pair(1, 2): 4, pair(0, 2): 4},
                      {WORLD: 6})  # fmt: skip
    assert (found.ranks, found.why.partition(" between")[0]) == (
        (1,), "keeps the others waiting after 0 calls in group 0"
    )  # fmt: skip


def test_a_pipeline_is_not_uneven_because_inner_ranks_send_more() -> None:
    pairs = [pair(rank, rank + 1) for rank in range(3)]
    counts = [{pairs[0]: 40}, {pairs[0]: 40, pairs[1]: 40}, {pairs[1]: 38, pairs[2]: 38}, {pairs[2]: 39}]
    found = suspected(*counts)
    assert (found.ranks, found.why.partition(":")[0]) == (
        (2,), "keeps the others waiting after 38 calls in group 0 between ranks 1 and 2, others 40"
    )  # fmt: skip


def test_collectives_in_different_orders() -> None:
    other = Group(name="2", first_rank=0)
    found = suspected({WORLD: 6, other: 3}, {WORLD: 5, other: 4})
    assert found == Suspicion(ranks=(0, 1), why="wait for each other, each in a collective of another group")


def test_where_all_are_even_the_stacks_tell() -> None:
    """Groups of the same name that share no rank are two."""
    inside, outside = STACK.format(deep=""), STACK.format(deep=DEEP)
    counts = ({WORLD: 6, LEFT: 40}, {WORLD: 6, LEFT: 40}, {WORLD: 6, RIGHT: 1}, {WORLD: 6, RIGHT: 1})
    found = suspected(*counts, places=(inside, outside, inside, inside))
    assert found.ranks == (1,)
    assert found.why.startswith("in no collective while the others wait: File ")
    assert suspected({}, {}, places=(inside, outside)).ranks == (1,)


def test_where_nobody_is_known_to_be_behind_it_says_where_they_are() -> None:
    """In lines of the model: that a kernel of torch was launched last says little."""
    library = (
        '  File "/venv/lib/site-packages/torch/_ops.py", line 1269, in __call__\n    return self._op(*args)\n'
    )
    outside = STACK.format(deep=DEEP)
    elsewhere = outside.replace("forward", "backward")
    forward, backward = (f'File "/x/model.py", line 9, in {name}' for name in ("forward", "backward"))
    assert suspected({}, {}, places=(outside, outside + library)).why == f"all at the same place: {forward}"
    assert suspected({}, {}, {}, places=(outside, outside + library, elsewhere)) == Suspicion(
        ranks=(0, 1, 2),
        why=f"at several places, none known to be behind: rank 0 at {forward}, rank 2 at {backward}",
    )


def beat(rank: int, step: int, sequence: int = 0, path: str = "denoise") -> Beat:
    return Beat(
        rank=rank, sequence=sequence, path=path, stage="", step=step, num_steps=-1, allocated_bytes=0, reserved_bytes=0,
        device_used_bytes=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "ranks", "why"),
    [
        ((1, 0, 1, 0), (1, 3), "at step 0 while others are at step 1"),
        ((0, 0, -1, 0), (2,), "in no step while others are at step 0"),
        ((0, 0, None, 0), (2,), "in no step while others are at step 0"),
        ((2, 2, 2, 2), (0, 1, 2, 3), "all at the same place"),
        ((-1, None, -1, None), (0, 1, 2, 3), "all at the same place"),
    ],
)
def test_who_is_a_step_behind(steps: tuple[int | None, ...], ranks: tuple[int, ...], why: str) -> None:
    """Where nobody stands in a collective and none was counted; None: a rank that has never beaten."""
    places = {rank: Whereabouts(stack=STACK.format(deep=DEEP)) for rank in range(4)}
    beats = {rank: beat(rank, step) for rank, step in enumerate(steps) if step is not None}
    found = suspects(places, beats, range(4))
    assert (found.ranks, found.why.partition(":")[0]) == (ranks, why)


@pytest.mark.parametrize("began", [0.0, 1000.0, -50.0])
def test_how_long_ranks_stand_still_and_wait(began: float) -> None:
    """By any clock: GIVEN rank 0 that waits for rank 1, which gets ready until 7 s, and rank 2, which has ended."""
    progress = Progress(range(3), now=began)
    assert (progress.stalled_s(now=began + 2), progress.meeting_s(now=began + 2)) == (2.0, 0.0)
    for second in range(3, 8):
        beats = [beat(0, -1, 5, "comm.init"), beat(1, -1, second, "load"), beat(2, -1, second, "comm.init")]
        progress.look({one.rank: one for one in beats}, (), now=began + second)
    assert progress.absent() == (1,)
    assert progress.stalled_s(now=began + 9) == 2.0
    # To end is to get on, for whoever is left too.
    progress.look({}, {2}, now=began + 9)
    assert progress.absent() == (1,)
    assert progress.stalled_s(now=began + 9.5) == 0.5
    assert progress.meeting_s(now=began + 9) == 2.0
    # It joins: from now on they look for each other.
    progress.look({1: beat(1, -1, 9, "a/comm.init/b")}, {2}, now=began + 10)
    assert (progress.absent(), progress.meeting_s(now=began + 14)) == ((), 4.0)
    progress.look({0: beat(0, 0, 6), 1: beat(1, 0, 10)}, {2}, now=began + 15)
    assert progress.meeting_s(now=began + 99) == 0.0
