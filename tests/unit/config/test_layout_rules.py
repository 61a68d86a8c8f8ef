"""Which layouts of ranks a configuration may ask for, in the words of its keys."""

from itertools import product
from typing import Any

import pytest
from refusals import loaded, refusal

from wan.config import TASKS
from wan.errors import InputError
from wan.parallel import Layout

# --------------------------------------------------------------------------------
# Ranks


@pytest.mark.parametrize(
    ("task", "ulysses", "heads", "legal"),
    [
        ("t2v-1.3B", 8, 12, "1, 2, 3, 4, 6, 12"),
        ("vace-14B", 3, 40, "1, 2, 4, 5, 8, 10, 20, 40"),
        ("t2v-tiny", 8, 4, "1, 2, 4"),
    ],
)
def test_ulysses_divides_the_heads(task: str, ulysses: int, heads: int, legal: str) -> None:
    assert refusal(model={"task": task}, parallel={"ulysses": ulysses}) == (
        f"parallel.ulysses {ulysses} does not divide the {heads} heads of {task}",
        f"use one of {legal}, or parallel.ring",
    )


PAIRS_OF_4 = (
    "parallel.ulysses 4 parallel.ring 1 or parallel.ulysses 2 parallel.ring 2 or parallel.ulysses 1 parallel.ring 4, "
    "with parallel.cfg 2 parallel.ulysses 2 parallel.ring 1 or parallel.ulysses 1 parallel.ring 2"
)


@pytest.mark.parametrize(
    ("ranks", "parallel", "needs", "hint"),
    [
        (4, {"ulysses": 4, "ring": 2}, "4 x parallel.ring 2 needs 8 ranks, there are 4", PAIRS_OF_4),
        (4, {"ring": 2, "dit_fsdp": True}, "1 x parallel.ring 2 needs 2 ranks, there are 4", PAIRS_OF_4),
        (
            5,
            {"ring": 2},
            "1 x parallel.ring 2 needs 2 ranks, there are 5",
            "parallel.ulysses 1 parallel.ring 5",
        ),
        (
            4,
            {"ulysses": 4, "cfg": 2},
            "4 x parallel.ring 1 x parallel.cfg 2 needs 8 ranks, there are 4",
            PAIRS_OF_4,
        ),
        (
            4,
            {"cfg": 2, "dit_fsdp": True},
            "1 x parallel.ring 1 x parallel.cfg 2 needs 2 ranks, there are 4",
            PAIRS_OF_4,
        ),
    ],
)
def test_ulysses_times_ring_times_cfg_is_the_number_of_ranks(
    ranks: int, parallel: dict[str, Any], needs: str, hint: str
) -> None:
    told = f"with {ranks} ranks t2v-1.3B takes {hint}"
    assert refusal(ranks=ranks, parallel=parallel) == (f"parallel.ulysses {needs}", told)


def test_without_guidance_there_is_one_pass() -> None:
    assert refusal(parallel={"cfg": 2}, generation={"sample_guide_scale": 1.0}) == (
        "parallel.cfg 2 gives half of the ranks the unconditional pass, which generation.sample_guide_scale 1 "
        "leaves out",
        "leave parallel.cfg out, or set another generation.sample_guide_scale",
    )
    told, hint = refusal(ranks=4, parallel={"ring": 2}, generation={"sample_guide_scale": 1.0})
    assert "cfg" not in told + hint


def test_guidance_has_two_passes() -> None:
    assert loaded(parallel={"ulysses": 2, "cfg": 2}).num_ranks == 4
    told, _ = refusal(parallel={"cfg": 3})
    assert told.startswith("parallel.cfg")


def test_xfuser_runs_one_pass_at_a_time() -> None:
    assert refusal(parallel={"cfg": 2, "backend": "xfuser"}) == (
        "parallel.cfg 2 does not go with parallel.backend xfuser",
        "parallel.backend native runs each pass on half of the ranks",
    )


def test_one_rank_splits_nothing() -> None:
    assert refusal(ranks=1, parallel={"cfg": 2}) == (
        "parallel.ulysses 1 x parallel.ring 1 x parallel.cfg 2 needs 2 ranks, there is 1",
        "set ranks to 2",
    )
    assert refusal(ranks=1, parallel={"ring": 2}) == (
        "parallel.ulysses 1 x parallel.ring 2 needs 2 ranks, there is 1",
        "set ranks to 2",
    )


def test_ranks_that_share_nothing_are_refused() -> None:
    assert refusal(ranks=5) == (
        "5 ranks share nothing: each would make the whole video of t2v-1.3B",
        "use parallel.ulysses 1 parallel.ring 5, or parallel.dit_fsdp to share the weights alone",
    )


@pytest.mark.parametrize("name", ["dit_fsdp", "t5_fsdp"])
def test_ranks_that_share_weights_need_not_split_the_video(name: str) -> None:
    assert loaded(ranks=4, parallel={name: True}).num_ranks == 4


@pytest.mark.parametrize("name", ["dit_fsdp", "t5_fsdp"])
def test_one_rank_has_nothing_to_shard_over(name: str) -> None:
    assert refusal(parallel={name: True}) == (
        f"parallel.{name} shards over ranks, and there is 1",
        "set ranks to 2 or more; model_config.load_strategy stream fits the 14B models on one small GPU",
    )


def test_the_two_names_of_ranks_agree() -> None:
    assert refusal(ranks=4, optimization={"parallel_degree": 2}) == (
        "ranks (4) and optimization.parallel_degree (2) name the same number and differ",
        "leave one out",
    )


@pytest.mark.parametrize("task", ["t2v-1.3B", "t2v-14B", "vace-tiny"])
def test_the_ranks_that_a_file_may_ask_for_are_those_that_wan_can_lay_out(task: str) -> None:
    heads = TASKS[task].dit.num_heads
    for ranks, ulysses, ring in product((1, 2, 3, 4, 6, 8), repeat=3):
        for dit_fsdp, cfg in product((False, True), (1, 2)):
            parallel = {"ulysses": ulysses, "ring": ring, "cfg": cfg, "dit_fsdp": dit_fsdp}
            layout = Layout(ranks=ranks, ulysses=ulysses, ring=ring, cfg=cfg, dit_fsdp=dit_fsdp)
            try:
                layout.check(task, heads)
            except InputError:
                assert refusal(model={"task": task}, ranks=ranks, parallel=parallel)
            else:
                assert loaded(model={"task": task}, ranks=ranks, parallel=parallel).num_ranks == ranks
