"""Whether a cluster can hold the ranks: never, not now, or yes. Checked before Ray's scheduler is asked for anything.

    check_capacity(config, nodes)          # raises NotEnoughGpus if the cluster can never hold them
    short = shortage(config, free)          # "" if it can hold them now

Pure: `nodes` holds the total resources of each node, `free` those of the cluster that nobody has booked. The check is
needed because Ray waits for ever for resources that the cluster can never provide.
"""

from collections.abc import Mapping, Sequence

from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import NotEnoughGpus

Resources = Mapping[str, float]


def wanted(config: RunConfig) -> dict[str, int]:
    """The resources that one rank books; at least one CPU, since Ray cannot place an empty bundle."""
    booked = {"CPU": config.ray.cpus_per_rank, "GPU": config.ray.gpus_per_rank}
    return {name: count for name, count in booked.items() if count} or {"CPU": 1}


def check_capacity(config: RunConfig, nodes: Sequence[Resources]) -> None:
    """Raise NotEnoughGpus if the cluster could not hold the ranks even with all of it free."""
    for name, each in wanted(config).items():
        asked, most = each * config.num_ranks, max((int(node.get(name, 0)) for node in nodes), default=0)
        # Counted node by node: one rank cannot use resources of two nodes.
        ranks = sum(int(node.get(name, 0)) // each for node in nodes)
        if ranks < config.num_ranks:
            total = sum(int(node.get(name, 0)) for node in nodes)
            raise NotEnoughGpus(
                f"config asks {_count(asked, name)}, cluster has {total}", hint=_fewer(config, name, ranks)
            )
        if config.ray.placement == "strict_pack" and most < asked:
            raise NotEnoughGpus(
                f"config asks {_count(asked, name)} on one node (ray.placement: strict_pack), the largest has {most}",
                hint="ray.placement: pack",
            )


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _fewer(config: RunConfig, name: str, ranks: int) -> str:
    """The key, with a value, that would make the run fit."""
    if name == "CPU":
        return (
            f"ray.cpus_per_rank: 0 books none, or ranks: {ranks}"
            if ranks
            else "ray.cpus_per_rank: 0 books none"
        )
    if ranks == 0:
        return "model_config.device: cpu runs without a GPU"
    parallel = config.parallel
    if parallel.group_size != config.num_ranks:
        return f"ranks: {ranks}"
    if fits := ranks // (parallel.ring * parallel.cfg):
        # ulysses must divide the number of heads. A divisor of the present value does so for certain.
        largest = max(size for size in range(1, fits + 1) if parallel.ulysses % size == 0)
        return f"parallel.ulysses: {largest}"
    return "parallel.cfg: 1" if parallel.group_size // parallel.cfg <= ranks else f"ranks: {ranks}"


def shortage(config: RunConfig, free: Resources) -> str:
    """What is missing now, in words: "4 GPUs, 1 free"; "" if nothing is missing."""
    missing = [
        f"{_count(each * config.num_ranks, name)}, {int(free.get(name, 0))} free"
        for name, each in wanted(config).items()
        if free.get(name, 0) < each * config.num_ranks
    ]
    return " and ".join(missing)
