"""Whether this rank can begin: whether its GPU is there, and how much of its memory others hold.

    checks = check_rank(plan)                    # inside the rank, before torch uses CUDA; raises PreflightFailed

A rank makes no CUDA context here, so all memory in use on its GPU belongs to other processes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from ray_memprof.errors import PreflightFailed
from ray_memprof.rank.messages import RankFacts
from ray_memprof.rank.plan import RankPlan
from ray_memprof.rank.versions import Checks
from ray_memprof.recorder.meters.nvml import Device, Holder, open_device
from ray_memprof.wording import size_text

MAX_HELD_BYTES = 2**30
"""Most memory that may be in use on a GPU before the run: an idle GPU shows a few hundred MiB, a forgotten job shows
gigabytes."""
OpenDevice = Callable[..., AbstractContextManager[Device | None]]


def check_rank(plan: RankPlan, *, devices: OpenDevice = open_device) -> Checks:
    """The kind of its device, and what its GPU has in use; raises PreflightFailed.

    Args:
        plan: of this rank, whose environment is set already.
        devices: opens a GPU through NVML; tests pass another function.
    """
    kind = plan.config.model.device
    checks: Checks = {"device": kind}
    if kind == "cpu":
        return checks
    if plan.asks_torch:
        _check_count(plan)
    return checks | check_gpu(plan.rank, plan.facts, devices=devices)


def _check_count(plan: RankPlan) -> None:
    import torch

    mask = plan.visible_devices
    # torch asks NVML if it is available, not the CUDA runtime, so that no context is made.
    num_devices = torch.cuda.device_count()
    if num_devices < max(1, len(mask)):
        raise PreflightFailed(
            f"rank {plan.rank} on {plan.facts.host}: torch {torch.__version__} sees {num_devices} CUDA devices, "
            f"the run gives it {', '.join(mask) or 'one'}",
            hint="model_config.device: cpu runs the tiny tasks without a GPU",
        )


def driver_version() -> str:
    """The version of the NVIDIA driver; works only while a device is open in NVML."""
    import pynvml

    return str(pynvml.nvmlSystemGetDriverVersion())


def check_gpu(
    rank: int,
    facts: RankFacts,
    *,
    devices: OpenDevice = open_device,
    driver: Callable[[], str] = driver_version,
) -> Checks:
    """What NVML reports about the GPU of a rank; raises PreflightFailed if others hold too much of its memory."""
    with devices(uuid=facts.gpu_uuid, index=facts.gpu_index) as device:
        if device is None:
            return {"nvml": "not available: who holds memory of this GPU is not known"}
        held, holders = device.used_bytes(), device.holders()
        if held > MAX_HELD_BYTES:
            raise PreflightFailed(
                f"rank {rank} on {facts.host}: GPU {facts.gpu_index} ({device.name()}) has {size_text(held)} in use "
                f"before the run, {_holders_text(held, holders)}",
                hint=f"end them, or use other GPUs: at most {size_text(MAX_HELD_BYTES)} may be in use",
            )
        checks: Checks = {"driver": driver(), "held_bytes": held}
        if holders is None:
            return checks | {
                "nvml": "names no process on this GPU (MIG?): what others hold of it is not recorded"
            }
        return checks | {"num_holders": len(holders)}


def _holders_text(held_bytes: int, holders: Sequence[Holder] | None) -> str:
    """Which processes hold the memory, the largest first, and how much belongs to processes not visible here."""
    if holders is None:
        return "by processes that the driver does not name"
    ordered = sorted(holders, key=lambda holder: -(holder.used_bytes or 0))
    lines = [
        f"{process_name(holder.pid)} (pid {holder.pid}) "
        + ("an unknown amount" if holder.used_bytes is None else size_text(holder.used_bytes))
        for holder in ordered
    ]
    unseen = held_bytes - sum(holder.used_bytes or 0 for holder in holders)
    if unseen > MAX_HELD_BYTES and all(holder.used_bytes is not None for holder in holders):
        lines.append(f"{size_text(unseen)} of processes that cannot be seen from here (another container?)")
    return "by " + ", ".join(lines)


def process_name(pid: int) -> str:
    """The name of a process, if it is visible here: in a container, NVML's pids may be those of the host."""
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return "a process not visible here"
