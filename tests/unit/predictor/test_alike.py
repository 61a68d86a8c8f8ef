"""Which ranks are alike."""

from pathlib import Path

import pytest

from ray_memprof.config.load import from_mapping
from ray_memprof.config.run_config import RunConfig
from ray_memprof.predictor.alike import alike


def config_of(**parallel: object) -> RunConfig:
    generation = {"size": "832*480", "frame_num": 81}
    mapping = {
        "name": "x",
        "model_config": {"task": "t2v-14B", "weights": "random"},
        "generation": generation,
    }
    return from_mapping({**mapping, "parallel": parallel}, source="x.yaml", overridden=[], folder=Path())


def test_one_rank_is_alone() -> None:
    assert alike(config_of()) == [[0]]


@pytest.mark.parametrize(
    ("parallel", "groups"),
    [
        # 32,760 tokens: the same for each of 4 and of 8 ranks.
        ({"ulysses": 4}, [[0], [1, 2], [3]]),
        ({"ulysses": 8}, [[0], [1, 2, 3, 4, 5, 6], [7]]),
        ({"ulysses": 4, "cfg": 2}, [[0], [1, 2, 3, 4, 5, 6], [7]]),
        ({"ring": 2}, [[0], [1]]),
    ],
)
def test_those_between_the_first_and_the_last_are(parallel: dict[str, int], groups: list[list[int]]) -> None:
    assert alike(config_of(**parallel)) == groups


def test_where_a_picture_decides_the_shape_every_rank_is_predicted() -> None:
    mapping = {
        "name": "x",
        "model_config": {"task": "i2v-14B", "weights": "random"},
        "generation": {"size": "832*480", "image": "a.png"},
        "parallel": {"ulysses": 4},
    }
    config = from_mapping(mapping, source="x.yaml", overridden=[], folder=Path())
    assert alike(config) == [[0], [1], [2], [3]]


def test_ranks_with_more_tokens_or_other_slabs_are_not() -> None:
    # 32,760 tokens over 16 ranks: 2,047 and 2,048 in turn.
    groups = alike(config_of(ulysses=8, ring=2))
    assert sorted(rank for ranks in groups for rank in ranks) == list(range(16))
    assert [len(ranks) for ranks in groups] == [1, 7, 7, 1]
    split = alike(config_of(ulysses=8, vae="split"))
    # 104 columns over 8 ranks are 13 for each.
    assert split == [[0], [1, 2, 3, 4, 5, 6], [7]]
