"""What the driver says about one GPU (NVML): memory in use, by whom, and how busy it is. No CUDA context is made.

    with open_device(uuid="GPU-...") as device:
        device.used_bytes(), device.process_bytes()

nvidia-smi shows the same numbers. Where there is no driver, open_device gives None.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_NOT_AVAILABLE = 2**64 - 1
"""What NVML reports as a process's bytes where it may not tell."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds memory of a GPU."""

    pid: int
    used_bytes: int | None
    """None: the driver does not tell (another container, MIG)."""


class Device:
    """One GPU, by its NVML handle."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def used_bytes(self) -> int:
        """In use by anybody, without what the driver keeps for itself: nvidia-smi's "used"."""
        return int(self._memory().used)

    def total_bytes(self) -> int:
        """All there is, what the driver keeps for itself included."""
        return int(self._memory().total)

    def reserved_bytes(self) -> int:
        """What the driver keeps for itself, used or not."""
        return int(getattr(self._memory(), "reserved", 0))

    def _memory(self) -> Any:
        version = getattr(self._nvml, "nvmlMemory_v2", None)
        if version is None:
            return self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return self._nvml.nvmlDeviceGetMemoryInfo(self._handle, version=version)

    def holders(self) -> list[Holder] | None:
        """Every process with a CUDA context on it that the driver shows here; None: it does not tell (MIG)."""
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError:
            return None
        return [
            Holder(
                int(one.pid), None if one.usedGpuMemory in (None, _NOT_AVAILABLE) else int(one.usedGpuMemory)
            )
            for one in processes
        ]

    def utilisation(self) -> float | None:
        """Share of the last sample period in which a kernel ran; None: the driver does not tell (MIG)."""
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100.0
        except self._nvml.NVMLError_NotSupported:
            return None

    def index(self) -> int:
        """Its physical index."""
        return int(self._nvml.nvmlDeviceGetIndex(self._handle))

    def name(self) -> str:
        """As the driver calls it."""
        return str(self._nvml.nvmlDeviceGetName(self._handle))

    def uuid(self) -> str:
        """Its UUID, as CUDA_VISIBLE_DEVICES takes it."""
        return str(self._nvml.nvmlDeviceGetUUID(self._handle))


@contextmanager
def open_device(*, uuid: str = "", index: int = -1) -> Iterator[Device | None]:
    """The GPU of that UUID, or else of that physical index; None where no driver or no such GPU is."""
    nvml = _started()
    if nvml is None:
        yield None
        return
    pid = os.getpid()
    try:
        yield _found(nvml, uuid, index)
    finally:
        if os.getpid() == pid:  # a forked child leaves this block too, and may not ask the driver
            nvml.nvmlShutdown()


# Not inside open_device: what its block raises would be told as raised while an NVMLError was handled.


def _started() -> Any | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _found(nvml: Any, uuid: str, index: int) -> Device | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError:
        return None
    return Device(nvml, handle)
