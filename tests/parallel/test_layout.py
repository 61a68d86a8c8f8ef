"""Layouts and the environment as data: which are legal, and what is said of the others."""

import subprocess
import sys

import pytest

from wan.config import TASKS
from wan.errors import InputError
from wan.networks.vae.slabs import Window
from wan.parallel import Layout, legal_degrees
from wan.parallel.environment import NCCL_DEFAULTS, Place, set_defaults
from wan.parallel.vae import rounds


def refusal(layout: Layout, task: str = "t2v-1.3B") -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        layout.check(task, TASKS[task].dit.num_heads)
    return str(caught.value), caught.value.hint


def test_one_rank_shares_nothing_and_is_legal() -> None:
    layout = Layout(ranks=1)
    layout.check("t2v-1.3B", 12)
    assert not layout.splits_tokens


@pytest.mark.parametrize(
    ("ranks", "heads", "degrees"),
    [
        (1, 12, [(1, 1, 1)]),
        (2, 12, [(2, 1, 1), (1, 2, 1), (1, 1, 2)]),
        (4, 40, [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)]),
        (8, 12, [(4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2)]),
        (5, 12, [(1, 5, 1)]),
        (6, 12, [(6, 1, 1), (3, 2, 1), (2, 3, 1), (1, 6, 1), (3, 1, 2), (1, 3, 2)]),
    ],
)
def test_degrees_that_use_every_rank(ranks: int, heads: int, degrees: list[tuple[int, int, int]]) -> None:
    assert legal_degrees(ranks, heads) == degrees
    assert legal_degrees(ranks, heads, is_guided=False) == [one for one in degrees if one[2] == 1]
    for ulysses, ring, cfg in degrees:
        Layout(ranks=ranks, ulysses=ulysses, ring=ring, cfg=cfg).check("a task", heads, guide_scale=5.0)


def test_eight_ranks_cannot_split_twelve_heads_and_are_offered_a_ring() -> None:
    assert refusal(Layout(ranks=8, ulysses=8)) == (
        "ulysses 8 does not divide the 12 heads of t2v-1.3B",
        "use one of 1, 2, 3, 4, 6, 12, or ring",
    )
    assert refusal(Layout(ranks=8, ulysses=4)) == (
        "ulysses 4 x ring 1 needs 4 ranks, there are 8",
        "with 8 ranks t2v-1.3B takes ulysses 4 ring 2 or ulysses 2 ring 4 or ulysses 1 ring 8, with cfg 2 ulysses 4 "
        "ring 1 or ulysses 2 ring 2 or ulysses 1 ring 4",
    )


def test_the_passes_of_guidance_may_have_half_of_the_ranks_each() -> None:
    assert refusal(Layout(ranks=8, ulysses=4, ring=2, cfg=2)) == (
        "ulysses 4 x ring 2 x cfg 2 needs 16 ranks, there are 8",
        "with 8 ranks t2v-1.3B takes ulysses 4 ring 2 or ulysses 2 ring 4 or ulysses 1 ring 8, with cfg 2 ulysses 4 "
        "ring 1 or ulysses 2 ring 2 or ulysses 1 ring 4",
    )
    assert refusal(Layout(ranks=2, cfg=3)) == (
        "cfg 3: guidance has 2 passes, conditional and unconditional",
        "cfg 2 gives each of them half of the ranks",
    )
    assert refusal(Layout(ranks=2, cfg=0)) == ("cfg 0: must be at least 1", "leave cfg out")


def test_degrees_below_one_are_refused() -> None:
    assert refusal(Layout(ranks=2, ring=0)) == ("ring 0: must be at least 1", "leave ring out")


def test_torchrun_is_read_and_half_of_it_refused() -> None:
    assert Place.of({}) == Place(rank=0, local_rank=0, num_ranks=1)
    assert Place.of({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}) == Place(
        rank=5, local_rank=1, num_ranks=8
    )
    with pytest.raises(InputError, match="environment variable RANK is '', beside WORLD_SIZE=8"):
        Place.of({"WORLD_SIZE": "8"})


def test_what_the_user_told_nccl_stays() -> None:
    environ = {"NCCL_BUFFSIZE": "7", "OTHER": "1"}
    set_defaults(environ)
    assert environ == NCCL_DEFAULTS | {"NCCL_BUFFSIZE": "7", "OTHER": "1"}


def test_layouts_and_the_environment_cost_no_torch() -> None:
    program = "import sys, wan.parallel, wan.parallel.environment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("length", "slabs", "ranks", "expected"),
    [
        (8, 1, 1, [[(0, 8)]]),
        (8, 1, 2, [[(0, 4), (4, 8)]]),
        (8, 3, 2, [[(0, 2), (4, 6)], [(2, 4), (6, 8)]]),
        (3, 1, 4, [[(0, 1), (1, 2), (2, 3), None]]),
        (5, 8, 4, [[(0, 1), (2, 3), (4, 5), None], [(1, 2), (3, 4), None, None]]),
    ],
)
def test_slabs_of_a_rank_lie_side_by_side(
    length: int, slabs: int, ranks: int, expected: list[list[tuple[int, int] | None]]
) -> None:
    wanted = [[None if part is None else Window(*part) for part in share] for share in expected]
    assert rounds(length, slabs, ranks) == wanted


def test_ranks_of_a_ulysses_group_are_neighbours_and_groups_follow_one_another_in_a_ring() -> None:
    layout = Layout(ranks=8, ulysses=2, ring=2)
    expected = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 0)]
    assert [layout.coordinates(rank) for rank in range(5)] == expected


def test_the_first_half_of_the_ranks_runs_the_conditional_pass() -> None:
    layout = Layout(ranks=8, ulysses=2, ring=2, cfg=2)
    assert [layout.coordinates(rank).cfg for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [layout.coordinates(rank)[:2] for rank in range(8)] == 2 * [(0, 0), (1, 0), (0, 1), (1, 1)]
