"""Whether a cluster can hold the ranks."""

from typing import Any

import pytest

from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.capacity import check_capacity, shortage, wanted
from ray_memprof.errors import NotEnoughGpus


def config(
    *, ranks: int | None = None, ulysses: int = 1, ring: int = 1, cfg: int = 1, **ray: Any
) -> RunConfig:
    parallel = {"ulysses": ulysses, "ring": ring, "cfg": cfg}
    return RunConfig(name="test", ranks=ranks, parallel=parallel, ray=ray)


def refusal(one: RunConfig, *nodes: dict[str, float]) -> tuple[str, str]:
    with pytest.raises(NotEnoughGpus) as raised:
        check_capacity(one, nodes)
    return str(raised.value), raised.value.hint


def test_cluster_without_nodes() -> None:
    assert refusal(config(gpus_per_rank=0)) == (
        "config asks 1 CPU, cluster has 0",
        "ray.cpus_per_rank: 0 books none",
    )


def test_cluster_that_is_large_enough() -> None:
    check_capacity(config(ulysses=4), [{"CPU": 2.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 2.0}])


@pytest.mark.parametrize(
    ("one", "nodes", "expected"),
    [
        (config(ulysses=8), [4], ("config asks 8 GPUs, cluster has 4", "parallel.ulysses: 4")),
        (config(ulysses=8), [4, 2], ("config asks 8 GPUs, cluster has 6", "parallel.ulysses: 4")),
        (config(ulysses=4, ring=2), [5], ("config asks 8 GPUs, cluster has 5", "parallel.ulysses: 2")),
        (config(ulysses=4, cfg=2), [5], ("config asks 8 GPUs, cluster has 5", "parallel.ulysses: 2")),
        (config(cfg=2), [1], ("config asks 2 GPUs, cluster has 1", "parallel.cfg: 1")),
        (config(ring=2, cfg=2), [3], ("config asks 4 GPUs, cluster has 3", "parallel.cfg: 1")),
        (config(ring=4, cfg=2), [3], ("config asks 8 GPUs, cluster has 3", "ranks: 3")),
        (config(ranks=8), [5], ("config asks 8 GPUs, cluster has 5", "ranks: 5")),
        (config(), [0], ("config asks 1 GPU, cluster has 0", "model_config.device: cpu runs without a GPU")),
        # Three GPUs are there, and no node has two of them left for a second rank.
        (config(ranks=2, gpus_per_rank=2), [2, 1], ("config asks 4 GPUs, cluster has 3", "ranks: 1")),
        (
            config(ulysses=4, placement="strict_pack"),
            [2, 3],
            (
                "config asks 4 GPUs on one node (ray.placement: strict_pack), the largest has 3",
                "ray.placement: pack",
            ),
        ),
    ],
)
def test_too_few_gpus(one: RunConfig, nodes: list[int], expected: tuple[str, str]) -> None:
    assert refusal(one, *({"CPU": 8.0, "GPU": float(num_gpus)} for num_gpus in nodes)) == expected


def test_too_few_cpus() -> None:
    told = ("config asks 4 CPUs, cluster has 3", "ray.cpus_per_rank: 0 books none, or ranks: 3")

    assert refusal(config(ranks=4), {"CPU": 3.0, "GPU": 4.0}) == told


def test_what_a_rank_books_is_never_nothing() -> None:
    assert wanted(config()) == {"CPU": 1, "GPU": 1}
    assert wanted(config(cpus_per_rank=0)) == {"GPU": 1}
    assert wanted(config(cpus_per_rank=0, gpus_per_rank=0)) == {"CPU": 1}


def test_shortage() -> None:
    assert shortage(config(ulysses=2), {"CPU": 2.0, "GPU": 2.0}) == ""
    assert shortage(config(ulysses=2), {"CPU": 2.0, "GPU": 1.0}) == "2 GPUs, 1 free"
    assert shortage(config(ulysses=2), {}) == "2 CPUs, 0 free and 2 GPUs, 0 free"
