"""Which actor becomes which rank: the ranks of a node are consecutive and follow the order of its GPUs.

    order = rank_order(facts)                                  # order[rank] = index of the actor
    plans = rank_plans([facts[i] for i in order], config, ...)

Pure. Needed because Ray does not guarantee the order of bundles (ray-project/ray#51117, #59547).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ray_memprof.config.run_config import RunConfig
from ray_memprof.rank.messages import RankFacts
from ray_memprof.rank.plan import RankPlan

LOOPBACK = "127.0.0.1"


def rank_order(facts: Sequence[RankFacts]) -> list[int]:
    """Indices into `facts`, in rank order. Nodes are sorted by address, then id, since two may share an address."""

    def place(index: int) -> tuple[str, str, int, int]:
        one = facts[index]
        return one.node_ip, one.node_id, one.gpu_index, one.pid

    return sorted(range(len(facts)), key=place)


def rank_plans(
    facts: Sequence[RankFacts], config: RunConfig, run_id: str, run_dir: Path, environment: Mapping[str, str]
) -> list[RankPlan]:
    """A plan for each rank; `facts` in rank order."""
    places = node_places(facts)
    num_nodes = len({one.node_id for one in facts})
    # On one host, loopback is out of reach for other hosts and needs no correct host name or interface.
    master_addr = LOOPBACK if num_nodes <= 1 else facts[0].node_ip
    plans = []
    for rank, one in enumerate(facts):
        mates = [other for other, fact in enumerate(facts) if fact.node_id == one.node_id]
        plans.append(
            RankPlan(
                run_id=run_id,
                config=config,
                rank=rank,
                world_size=len(facts),
                local_rank=places[rank][1],
                local_world_size=len(mates),
                node=places[rank][0],
                num_nodes=num_nodes,
                visible_devices=tuple(
                    facts[mate].visible_device for mate in mates if facts[mate].visible_device
                ),
                facts=one,
                run_dir=run_dir,
                environment=dict(environment),
                working_dir=Path.cwd(),
                master_addr=master_addr,
            )
        )
    return plans


def node_places(facts: Sequence[RankFacts]) -> list[tuple[int, int]]:
    """The number of each rank's node, in rank order, and its number among the ranks there; `facts` in rank order."""
    nodes = list(dict.fromkeys(one.node_id for one in facts))
    num_there = [0] * len(nodes)
    places = []
    for one in facts:
        node = nodes.index(one.node_id)
        places.append((node, num_there[node]))
        num_there[node] += 1
    return places


def node_names(facts: Sequence[RankFacts]) -> list[str]:
    """The name of each rank's node, for people: its host, plus the start of Ray's id if the host has several nodes."""
    ids_of: dict[str, set[str]] = {}
    for one in facts:
        ids_of.setdefault(one.host, set()).add(one.node_id)
    return [one.host if len(ids_of[one.host]) == 1 else f"{one.host} ({one.node_id[:8]})" for one in facts]
