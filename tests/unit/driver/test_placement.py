"""Which actor becomes which rank."""

from pathlib import Path

from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.placement import node_names, node_places, rank_order, rank_plans
from ray_memprof.rank.messages import RankFacts

CONFIG = RunConfig(name="test")


def facts(node_id: str, gpu: int, *, ip: str = "10.0.0.1", host: str = "h") -> RankFacts:
    return RankFacts(
        node_id=node_id,
        host=host,
        node_ip=ip,
        pid=100 + gpu,
        gpu_index=gpu,
        visible_device=str(gpu) if gpu >= 0 else "",
    )


def test_no_actor() -> None:
    assert (rank_order([]), rank_plans([], CONFIG, "run", Path("/run"), {}), node_names([])) == ([], [], [])


def test_ranks_are_contiguous_on_a_node_in_the_order_of_its_gpus() -> None:
    """GIVEN two nodes of one address, as on one host, and actors that came in any order."""
    actors = [facts("b", 1), facts("a", 3), facts("b", 0), facts("a", 10), facts("a", 2)]

    assert [(actors[i].node_id, actors[i].gpu_index) for i in rank_order(actors)] == [
        ("a", 2),
        ("a", 3),
        ("a", 10),
        ("b", 0),
        ("b", 1),
    ]


def test_plans_of_two_nodes() -> None:
    ordered = [facts("a", 2), facts("a", 5), facts("b", 0, ip="10.0.0.2")]
    plans = rank_plans(ordered, CONFIG, "run", Path("/run"), {"NCCL_DEBUG": "INFO"})

    assert [
        (
            one.rank,
            one.local_rank,
            one.local_world_size,
            one.node,
            one.num_nodes,
            one.visible_devices,
            one.master_addr,
        )
        for one in plans
    ] == [
        (0, 0, 2, 0, 2, ("2", "5"), "10.0.0.1"),
        (1, 1, 2, 0, 2, ("2", "5"), "10.0.0.1"),
        (2, 0, 1, 1, 2, ("0",), "10.0.0.1"),
    ]
    assert {(one.run_id, one.world_size, one.run_dir, tuple(one.environment.items())) for one in plans} == {
        ("run", 3, Path("/run"), (("NCCL_DEBUG", "INFO"),))
    }
    assert [one.facts for one in plans] == ordered


def test_one_node_meets_on_the_loopback_and_a_rank_without_gpu_has_no_mask() -> None:
    (plan,) = rank_plans([facts("a", -1)], CONFIG, "run", Path("/run"), {})

    assert (plan.master_addr, plan.visible_devices) == ("127.0.0.1", ())


def test_names_of_nodes_tell_them_apart() -> None:
    alike = [facts("a" * 20, 0), facts("b" * 20, 0)]
    different = [facts("a", 0, host="one"), facts("b", 0, host="two")]

    assert node_names(alike) == ["h (aaaaaaaa)", "h (bbbbbbbb)"]
    assert node_names(different) == ["one", "two"]


def test_ranks_of_a_node_are_numbered_there_wherever_its_other_ranks_are() -> None:
    facts = [
        RankFacts(node_id=node, host="h", node_ip="1", pid=1, gpu_index=index)
        for index, node in enumerate("baabc")
    ]
    assert node_places(facts) == [(0, 0), (1, 0), (1, 1), (0, 1), (2, 0)]
