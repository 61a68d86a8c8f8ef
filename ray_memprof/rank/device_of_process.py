"""Which device a process uses that was started without the launcher, without a call that starts CUDA.

    found = device_of_process(local_rank=1)             # device "cuda:1", and what NVML knows of that GPU

A process that has started CUDA cannot use it in forked children any more, so nothing here does.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_memprof.errors import PreflightFailed
from ray_memprof.rank.settings import Settings
from ray_memprof.recorder.meters.nvml import open_device
from ray_memprof.recorder.options import RecordingOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnDevice:
    """A device, and what is known of it."""

    device: str
    """As torch names it in this process."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Columns of the table ranks: gpu_index, gpu_uuid, gpu_name, device_total_bytes."""

    def options(self, run_dir: Path, rank: int, settings: Settings) -> RecordingOptions:
        """What is recorded of this rank."""
        return RecordingOptions(
            run_dir=run_dir,
            rank=rank,
            device=self.device,
            level=settings.level,
            sample_interval_s=settings.sample_interval_s,
            gpu_uuid=self.facts["gpu_uuid"],
            gpu_index=self.facts["gpu_index"],
            device_total_bytes=self.facts["device_total_bytes"],
        )


_NO_GPU: dict[str, Any] = {"gpu_index": -1, "gpu_uuid": "", "gpu_name": "", "device_total_bytes": 0}


def device_of_process(local_rank: int, asked: str = "") -> OwnDevice:
    """The device of a rank: that of its number on the host, or the only one that it may see.

    Args:
        local_rank: among the ranks of this host.
        asked: cpu or cuda; "": cuda where torch sees a device.

    Raises:
        PreflightFailed: cuda was asked for, and torch sees no device.
    """
    import torch

    # torch asks NVML for the number, not the CUDA runtime.
    num_devices = 0 if torch.version.cuda is None or asked == "cpu" else torch.cuda.device_count()
    if not num_devices:
        if asked == "cuda":
            raise PreflightFailed(
                f"torch {torch.__version__} sees no CUDA device", hint="record with --device cpu"
            )
        return OwnDevice(device="cpu", facts=_NO_GPU)
    number = local_rank if local_rank < num_devices else 0
    return OwnDevice(device=f"cuda:{number}", facts=_gpu(_nvml_index(number)))


def _nvml_index(number: int) -> int:
    """The physical index of torch's device `number`, by CUDA_VISIBLE_DEVICES; -1: not known (MIG)."""
    import torch

    try:
        return int(torch.cuda._get_nvml_device_index(number))
    except (AttributeError, RuntimeError, ValueError, IndexError):
        return -1


def _gpu(index: int) -> dict[str, Any]:
    if index < 0:
        return _NO_GPU
    with open_device(uuid="", index=index) as device:
        if device is None:
            return _NO_GPU | {"gpu_index": index}
        return device.facts()
