"""What is looked at before a run costs anything: the disk on the driver, the GPU and the versions in every rank.

    notes = check_driver(config, run_dir)        # lines to show; raises PreflightFailed or DiskFull
    checks = check_rank(plan)                    # inside the rank, before torch uses CUDA
    console.print(describe(config, [(facts, checks), ...], notes))

A rank makes no CUDA context here, so all memory that its GPU has in use belongs to somebody else.
"""

import platform
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ray_memprof.device import Device, Holder, open_device
from ray_memprof.errors import DiskFull, PreflightFailed
from ray_memprof.messages import RankFacts, RankPlan
from ray_memprof.wording import rank_text, size_text
from wan.config import TASKS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ray_memprof.config import RunConfig

MAX_HELD_BYTES = 2**30
"""Most that a GPU may have in use before the run: an idle one shows some hundred MiB, a forgotten job gigabytes."""
MIB = 2**20

# For the estimate of disk space. Counted in the tiny task on the CPU, where nothing is fused: 1,100 a block.
_ALLOCS_PER_BLOCK = 1_200
_EVENTS_PER_ALLOC = 3  # made, asked to be freed, freed
_BYTES_PER_EVENT = {"event": 12, "stack": 16, "torch_profiler": 12}
_OPEN_BYTES = 64 * MIB  # segments not sealed yet lie uncompressed; logs, samples and spans are far less
_TRACE_BYTES_PER_STEP = 100 * MIB

OpenDevice = Callable[..., AbstractContextManager[Device | None]]
Checks = dict[str, str | int]


def check_driver(config: "RunConfig", run_dir: Path) -> list[str]:
    """Make sure that the run folder can take what will be written; returns warnings about the configuration."""
    _check_writable(run_dir)
    needed = needed_bytes(config)
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise DiskFull(
            f"{run_dir}: {free / MIB:,.0f} MiB are free, about {needed / MIB:,.0f} MiB will be written",
            hint="set logging.output_dir to another disk, or logging.level to stage",
        )
    return config.warnings() + _short_trace(config)


def _check_writable(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir):
            pass
    except OSError as error:
        raise PreflightFailed(
            f"logging.output_dir: {run_dir} cannot be written: {error.strerror or error}",
            hint="set logging.output_dir to a folder of yours",
        ) from error


def needed_bytes(config: "RunConfig") -> int:
    """About what the run folder grows to, rather too much than too little: every rank's tables, and its trace.

    Tables: blocks * passes * steps * videos * allocations a block * events an allocation * bytes an event. A script's
    allocations cannot be foreseen; of it only the open segments are counted.
    """
    per_rank = _OPEN_BYTES
    level = config.logging.level
    if config.logging.profile_memory and level in _BYTES_PER_EVENT and config.workload == "wan":
        num_allocs = _num_block_calls(config) * _ALLOCS_PER_BLOCK * config.optimization.batch_size
        per_rank += num_allocs * _EVENTS_PER_ALLOC * _BYTES_PER_EVENT[level]
    if config.logging.profile_memory and level == "torch_profiler":
        per_rank += config.logging.profiler.active * _TRACE_BYTES_PER_STEP
    return per_rank * config.num_ranks


def _num_block_calls(config: "RunConfig") -> int:
    """Transformer blocks that run for one video."""
    task, scale = TASKS[config.model.task], config.generation.sample_guide_scale
    num_blocks = task.dit.num_layers + len(task.dit.vace_layers)
    return num_blocks * (1 if scale == 1.0 else 2) * _num_steps(config)


def _num_steps(config: "RunConfig") -> int:
    steps = config.generation.sample_steps
    assert steps is not None  # filled in when the configuration was loaded
    return steps


def _short_trace(config: "RunConfig") -> list[str]:
    """A warning where torch.profiler waits for more steps than the run makes."""
    logging, asked = config.logging, config.logging.profiler
    if config.workload != "wan" or logging.level != "torch_profiler" or not logging.profile_memory:
        return []
    needed, made = (
        asked.wait + asked.warmup + asked.active,
        _num_steps(config) * config.optimization.batch_size,
    )
    if needed <= made:
        return []
    return [
        f"logging.profiler asks for {needed} steps (wait {asked.wait}, warmup {asked.warmup}, active "
        f"{asked.active}), the run makes {made}: traces will be short"
    ]


def check_rank(plan: RankPlan, *, devices: OpenDevice = open_device) -> Checks:
    """Versions of what this rank will use, and what its GPU has in use; raises PreflightFailed.

    Args:
        plan: of this rank, its environment already applied.
        devices: opens a GPU through NVML; tests pass another one.
    """
    checks = versions()
    if plan.config.model.device == "cpu":
        return checks | {"device": "cpu"}
    import torch

    mask = plan.visible_devices
    # NVML is asked, where there is one, and not the runtime: no context is made.
    num_devices = torch.cuda.device_count()
    if num_devices < max(1, len(mask)):
        raise PreflightFailed(
            f"rank {plan.rank} on {plan.facts.host}: torch {torch.__version__} sees {num_devices} CUDA devices, "
            f"the run gives it {', '.join(mask) or 'one'}",
            hint="model_config.device: cpu runs the tiny tasks without a GPU",
        )
    return checks | {"device": "cuda"} | check_gpu(plan.rank, plan.facts, devices=devices)


def driver_version() -> str:
    """Of the NVIDIA driver, while a device is open."""
    import pynvml

    return str(pynvml.nvmlSystemGetDriverVersion())


def check_gpu(
    rank: int,
    facts: RankFacts,
    *,
    devices: OpenDevice = open_device,
    driver: Callable[[], str] = driver_version,
) -> Checks:
    """What the driver says of the GPU of a rank; raises PreflightFailed where others hold too much of it."""
    with devices(uuid=facts.gpu_uuid, index=facts.gpu_index) as device:
        if device is None:
            return {"nvml": "not available: who holds memory of this GPU cannot be told"}
        held, holders = device.used_bytes(), device.holders()
        if held > MAX_HELD_BYTES:
            raise PreflightFailed(
                f"rank {rank} on {facts.host}: GPU {facts.gpu_index} ({device.name()}) has {size_text(held)} in use "
                f"before the run, {_told(held, holders)}",
                hint=f"end them, or use other GPUs: at most {size_text(MAX_HELD_BYTES)} may be in use",
            )
        checks: Checks = {"driver": driver(), "held_bytes": held}
        if holders is None:
            return checks | {
                "nvml": "names no process on this GPU (MIG?): what others hold of it is not recorded"
            }
        return checks | {"num_holders": len(holders)}


def gaps(checks: Sequence[Mapping[str, str | int]]) -> list[str]:
    """What will be missing of the records because the driver does not tell it; `checks` in rank order."""
    ranks_of: dict[str, list[int]] = {}
    for rank, one in enumerate(checks):
        if "nvml" in one:
            ranks_of.setdefault(str(one["nvml"]), []).append(rank)
    return [f"{rank_text(ranks)}: NVML {text}" for text, ranks in ranks_of.items()]


def _told(held_bytes: int, holders: Sequence[Holder] | None) -> str:
    """Who holds it, the largest first, and what nobody seen from here accounts for."""
    if holders is None:
        return "by processes that the driver does not name"
    ordered = sorted(holders, key=lambda holder: -(holder.used_bytes or 0))
    lines = [
        f"{process_name(holder.pid)} (pid {holder.pid}) "
        + ("an amount not told" if holder.used_bytes is None else size_text(holder.used_bytes))
        for holder in ordered
    ]
    unseen = held_bytes - sum(holder.used_bytes or 0 for holder in holders)
    if unseen > MAX_HELD_BYTES and all(holder.used_bytes is not None for holder in holders):
        lines.append(f"{size_text(unseen)} of processes that cannot be seen from here (another container?)")
    return "by " + ", ".join(lines)


def process_name(pid: int) -> str:
    """Of a process of this host, where it can be seen: in a container NVML's ids may be those of the host."""
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return "a process not visible here"


def versions() -> Checks:
    """Of everything that decides where memory goes; "" for what is not there."""
    import torch

    found: Checks = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "cudnn": "",
        "nccl": "",
        "ray": metadata.version("ray"),
    }
    if torch.version.cuda is not None:
        # Not torch.backends.cudnn.version(): it starts CUDA, before the recorder has seen anything.
        found["cudnn"] = ".".join(map(str, torch._C._cudnn.getRuntimeVersion()))
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def disagreements(checks: Sequence[Mapping[str, str | int]]) -> list[str]:
    """A line for everything that should be the same in all ranks and is not."""
    lines = []
    for name in ("python", "torch", "cuda", "cudnn", "nccl", "ray", "driver", "device"):
        ranks_with: dict[str | int, list[int]] = {}
        for rank, one in enumerate(checks):
            ranks_with.setdefault(one.get(name, ""), []).append(rank)
        if len(ranks_with) > 1:
            told = "; ".join(f"{value or 'none'} in ranks {ranks}" for value, ranks in ranks_with.items())
            lines.append(f"{name} differs: {told}")
    return lines


def describe(
    config: "RunConfig", ranks: Sequence[tuple[RankFacts, Mapping[str, str | int]]], notes: Sequence[str]
) -> "RenderableType":
    """The run in one screen, for a rich console: what runs, where, with which versions, and what to know about it."""
    from rich.console import Group
    from rich.text import Text

    checks = [one for _, one in ranks]
    lines = [_what(config), _how(config)]
    if checks:
        shown = ("python", "torch", "cuda", "cudnn", "nccl", "driver", "ray")
        lines.append(", ".join(f"{name} {checks[0][name]}" for name in shown if checks[0].get(name)))
    told = [*notes, *disagreements(checks), *gaps(checks)]
    texts = [Text(line) for line in lines]
    warnings = [Text(f"warning: {line}", style="yellow") for line in told]
    return Group(*texts, *([_places(ranks)] if ranks else []), *warnings)


def _what(config: "RunConfig") -> str:
    if config.workload == "script":
        assert config.script is not None
        return f"{config.name}: {' '.join([str(config.script.path), *config.script.args])}"
    from ray_memprof.wan_options import wan_options
    from wan.options import describe as describe_options

    num_videos = config.optimization.batch_size
    batch = f", {num_videos} videos" if num_videos > 1 else ""
    return f"{config.name}: {describe_options(wan_options(config))}{batch}"


def _how(config: "RunConfig") -> str:
    parallel = config.parallel
    switches = [name for name in ("dit_fsdp", "t5_fsdp") if getattr(parallel, name)]
    ways = [f"ulysses {parallel.ulysses}", f"ring {parallel.ring}", *switches]
    level = config.logging.level if config.logging.profile_memory else "nothing but progress"
    ranks = f"{config.num_ranks} rank" + ("s" if config.num_ranks > 1 else "")
    by = f" ({', '.join(ways)})" if config.workload == "wan" and config.num_ranks > 1 else ""
    return f"{ranks}{by}, recording {level}, about {needed_bytes(config) / MIB:,.0f} MiB on disk"


def _places(ranks: Sequence[tuple[RankFacts, Mapping[str, str | int]]]) -> "RenderableType":
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
