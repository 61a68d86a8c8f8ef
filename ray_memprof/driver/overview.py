"""The run on one screen, before it begins: what runs, then where, with which versions, and warnings about it.

    run_lines(config)                           # before Ray starts, and has lines of its own
    console.print(describe([(facts, checks), ...]))

Takes the configuration, and what every rank reported about itself; writes no file.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.preflight import check_driver, needed_bytes
from ray_memprof.rank.messages import Prepared, RankFacts
from ray_memprof.wording import rank_text, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType


def with_versions(facts: Sequence[RankFacts], prepared: Sequence[Prepared]) -> list[Mapping[str, str | int]]:
    """Versions and checks of all ranks, in rank order; without versions, a rank has those of the first of its node."""
    first: dict[str, dict[str, str | int]] = {}
    for one, ready in zip(facts, prepared, strict=True):
        first.setdefault(one.node_id, ready.versions)
    return [
        (ready.versions or first[one.node_id]) | ready.checks
        for one, ready in zip(facts, prepared, strict=True)
    ]


def gaps(checks: Sequence[Mapping[str, str | int]]) -> list[str]:
    """What the records will lack because NVIDIA's driver does not report it; `checks` in rank order."""
    ranks_of: dict[str, list[int]] = {}
    for rank, one in enumerate(checks):
        if "nvml" in one:
            ranks_of.setdefault(str(one["nvml"]), []).append(rank)
    return [f"{rank_text(ranks)}: NVML {text}" for text, ranks in ranks_of.items()]


def disagreements(checks: Sequence[Mapping[str, str | int]]) -> list[str]:
    """A line for each version or kind of device that should be the same in all ranks and is not."""
    lines = []
    for name in ("python", "torch", "cuda", "cudnn", "nccl", "ray", "driver", "device"):
        ranks_with: dict[str | int, list[int]] = {}
        for rank, one in enumerate(checks):
            ranks_with.setdefault(one.get(name, ""), []).append(rank)
        if len(ranks_with) > 1:
            versions = "; ".join(
                f"{value or 'none'} in {rank_text(ranks)}" for value, ranks in ranks_with.items()
            )
            lines.append(f"{name} differs: {versions}")
    return lines


def run_lines(config: RunConfig) -> list[str]:
    """What runs and how, in two lines."""
    return [_what(config), _how(config)]


def describe(ranks: Sequence[tuple[RankFacts, Mapping[str, str | int]]]) -> "RenderableType":
    """Where it runs, for a rich console: versions, the device of each rank, and warnings about them."""
    from rich.console import Group
    from rich.text import Text

    checks = [one for _, one in ranks]
    shown = ("python", "torch", "cuda", "cudnn", "nccl", "driver", "ray")
    versions = ", ".join(f"{name} {checks[0][name]}" for name in shown if checks[0].get(name))
    warned = [Text(f"warning: {line}", style="yellow") for line in [*disagreements(checks), *gaps(checks)]]
    return Group(Text(versions), _gpu_table(ranks), *warned)


def _what(config: RunConfig) -> str:
    if config.workload == "script":
        assert config.script is not None
        return f"{config.name}: {' '.join(config.script.command)}"
    from ray_memprof.config.wan_keys import wan_options
    from wan.options import describe as describe_options

    num_videos = config.optimization.batch_size
    batch = f", {num_videos} videos" if num_videos > 1 else ""
    # Nothing of the ranks here: _how() says how they share the work.
    return f"{config.name}: {describe_options(wan_options(config))}{batch}"


def _how(config: RunConfig) -> str:
    parallel = config.parallel
    switches = [name for name in ("dit_fsdp", "t5_fsdp") if getattr(parallel, name)]
    degrees = [f"ulysses {parallel.ulysses}", f"ring {parallel.ring}"]
    degrees += [f"cfg {parallel.cfg}"] if parallel.cfg > 1 else []
    ways = [*degrees, *switches]
    level = config.logging.level if config.logging.profile_memory else "nothing but progress"
    ranks = f"{config.num_ranks} rank" + ("s" if config.num_ranks > 1 else "")
    by = f" ({', '.join(ways)})" if config.workload == "wan" and config.num_ranks > 1 else ""
    return f"{ranks}{by}, recording {level}, about {size_text(needed_bytes(config))} on disk"


def _gpu_table(ranks: Sequence[tuple[RankFacts, Mapping[str, str | int]]]) -> "RenderableType":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("rank", "host", "GPU", "memory", "in use before"):
        table.add_column(title, justify="right" if title in ("rank", "memory", "in use before") else "left")
    for rank, (facts, checks) in enumerate(ranks):
        has_gpu = facts.gpu_index >= 0 and checks.get("device") != "cpu"
        held = checks.get("held_bytes")
        table.add_row(
            str(rank),
            facts.host,
            f"{facts.gpu_index}: {facts.gpu_name}" if has_gpu else "none, on the CPU",
            size_text(facts.device_total_bytes) if has_gpu else "",
            size_text(held) if isinstance(held, int) else "",
        )
    return table


def before_ray(config: RunConfig, run_dir: Path) -> Iterator[str]:
    """What the run is, then what the driver's machine may lack for it, line by line; see check_driver() for errors."""
    yield from run_lines(config)
    for line in check_driver(config, run_dir):
        yield f"warning: {line}"
