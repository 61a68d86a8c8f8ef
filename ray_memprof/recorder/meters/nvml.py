"""What the driver says about one GPU (NVML): memory in use, by whom, and how busy it is. No CUDA context is made.

    with open_device(uuid="GPU-...") as device:
        device.used_bytes(), device.process_bytes()

nvidia-smi shows the same numbers. Where there is no driver, open_device gives None.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

_NOT_AVAILABLE = 2**64 - 1
"""What NVML reports as a process's bytes where it is not allowed to report them."""
_MOST_OVERHEAD = 64 * 2**20
"""The most bytes that the driver needs for one process. More belongs to a process that it does not show."""
_HOST_PIDS = 0xEFFFFFFC
"""Inode that Linux gives the first namespace of process numbers, the host's."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds memory of a GPU."""

    pid: int
    used_bytes: int | None
    """None: the driver does not report it (another container, MIG)."""


class Device:
    """One GPU, by its NVML handle."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def facts(self) -> dict[str, Any]:
        """Which GPU this is, in columns of the table ranks."""
        return {
            "gpu_index": self.index(),
            "gpu_uuid": self.uuid(),
            "gpu_name": self.name(),
            "device_total_bytes": self.total_bytes(),
        }

    def used_bytes(self) -> int:
        """In use by anybody, without what the driver keeps for itself: nvidia-smi's "used"."""
        return int(self._memory().used)

    def total_bytes(self) -> int:
        """All there is, what the driver keeps for itself included."""
        return int(self._memory().total)

    def reserved_bytes(self) -> int:
        """What the driver keeps for itself, used or not."""
        return int(getattr(self._memory(), "reserved", 0))

    def has_memory(self) -> bool:
        """Whether the driver reports its memory; an integrated GPU (with the host's memory) is asked through CUDA."""
        try:
            self._memory()
        except self._not_told():
            return False
        except self._nvml.NVMLError:
            pass  # busy, or lost: the next question to it raises
        return True

    def _memory(self) -> Any:
        version = getattr(self._nvml, "nvmlMemory_v2", None)
        if version is None:
            return self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return self._nvml.nvmlDeviceGetMemoryInfo(self._handle, version=version)

    def holders(self) -> list[Holder] | None:
        """Every process with a CUDA context on it that the driver shows here; None: it shows none (MIG)."""
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
        """Share of the last sample period in which a kernel ran; None: the driver does not report it (MIG, vGPU)."""
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100.0
        except self._not_told():
            return None

    def _not_told(self) -> tuple[type[Exception], ...]:
        """Return the errors that NVML raises where a device never reports something, or not to this user."""
        names = ("NVMLError_NotSupported", "NVMLError_NoPermission")
        return tuple(getattr(self._nvml, name) for name in names if hasattr(self._nvml, name))

    def index(self) -> int:
        """Its physical index; for a slice (MIG) that of its GPU, or -1 where that is not known."""
        try:
            return int(self._nvml.nvmlDeviceGetIndex(self._handle))
        except self._nvml.NVMLError:
            pass
        try:
            whole = self._nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self._handle)
            return int(self._nvml.nvmlDeviceGetIndex(whole))
        except self._nvml.NVMLError:
            return -1

    def name(self) -> str:
        """As the driver calls it."""
        return str(self._nvml.nvmlDeviceGetName(self._handle))

    def uuid(self) -> str:
        """Its UUID, as CUDA_VISIBLE_DEVICES takes it."""
        return str(self._nvml.nvmlDeviceGetUUID(self._handle))


class OwnShare:
    """What this process holds of a GPU, by the driver's own figure for each process.

    In a container the driver may name processes by the host's numbers. Then this process is the one that remains when
    two kinds are left out: processes that held memory before it did, and those that hold less than its allocator does.

    The driver's figures leave out some MiB that it needs for each process (8.8 on an H200). For this process, they are
    what came into use with its context beyond the driver's figure; read() adds them to that figure.

    Args:
        device: to ask.
        pid: of this process, as it sees itself.
        is_contained: whether the driver may know it by another number.
    """

    def __init__(self, device: Device, pid: int, *, is_contained: bool) -> None:
        self._device, self._pid, self._is_contained = device, pid, is_contained
        self._strangers: set[int] = set()
        self._before = 0
        self._overhead: int | None = None

    def read(self, used: int, reserved: int, *, is_on: bool) -> int | None:
        """Return the bytes held now; None: not reported, or not known for which process. Takes 26 us on an H200.

        Args:
            used: in use on the device now, by anybody.
            reserved: what our allocator holds now.
            is_on: whether this process has started the device.
        """
        holders = self._device.holders()
        if holders is None:
            return None
        sizes = {one.pid: one.used_bytes for one in holders}
        if not is_on and self._pid not in sizes:
            self._strangers |= sizes.keys()
            self._before = used
            return 0
        own = self._own(sizes, reserved)
        if own is None:
            return None
        if self._overhead is None:
            listed = sum(size or 0 for size in sizes.values()) - own
            self._overhead = min(max(0, used - own - max(listed, self._before)), _MOST_OVERHEAD)
        return own + self._overhead

    def _own(self, sizes: dict[int, int | None], reserved: int) -> int | None:
        if self._pid in sizes:
            return sizes[self._pid]
        if not self._is_contained:
            return None
        self._strangers |= {pid for pid, size in sizes.items() if size is not None and size < reserved}
        left = sizes.keys() - self._strangers
        if not left:
            self._strangers.clear()  # one of them was taken for a stranger in a moment of change
        return sizes[left.pop()] if len(left) == 1 else None


def is_contained() -> bool:
    """Whether processes have other numbers on the host than here."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino != _HOST_PIDS
    except OSError:
        return True


@contextmanager
def open_device(*, uuid: str = "", index: int = -1) -> Iterator[Device | None]:
    """The GPU of that UUID, or else of that physical index; None where there is no driver, no such GPU or no memory.

    The beginning of a UUID is enough if no other GPU's UUID has the same, as in CUDA_VISIBLE_DEVICES.
    """
    nvml = _started()
    if nvml is None:
        yield None
        return
    pid = os.getpid()
    try:
        yield _found(nvml, uuid, index)
    finally:
        if os.getpid() == pid:  # a forked child leaves this block too, and may not ask the driver
            with suppress(nvml.NVMLError):  # a GPU that is lost: there is nothing left to end
                nvml.nvmlShutdown()


def driver_facts() -> dict[str, Any] | None:
    """The driver's version, and each GPU with its facts() and free_bytes; None where there is no driver.

    Raises:
        ModuleNotFoundError: the package nvidia-ml-py is not there.
    """
    nvml = _started()
    if nvml is None:
        return None
    try:
        version, num_devices = nvml.nvmlSystemGetDriverVersion(), nvml.nvmlDeviceGetCount()
    finally:
        nvml.nvmlShutdown()
    gpus = []
    for index in range(num_devices):
        with open_device(index=index) as device:
            if device is not None:
                facts = device.facts()
                gpus.append(facts | {"free_bytes": facts["device_total_bytes"] - device.used_bytes()})
    return {"version": str(version), "gpus": gpus}


# These are not inside open_device: an error of its block would be shown as raised while an NVMLError was handled.


def _started() -> Any | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _found(nvml: Any, uuid: str, index: int) -> Device | None:
    try:
        device: Device | None = Device(
            nvml, nvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else nvml.nvmlDeviceGetHandleByIndex(index)
        )
    except nvml.NVMLError:
        device = _by_beginning(nvml, uuid) if uuid else None
    return device if device is not None and device.has_memory() else None


def _by_beginning(nvml: Any, uuid: str) -> Device | None:
    """Return the only GPU whose UUID begins with `uuid`; None: there is none, or more than one."""
    found = []
    with suppress(nvml.NVMLError):  # there are no more
        for number in count():
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            if str(nvml.nvmlDeviceGetUUID(handle)).startswith(uuid):
                found.append(handle)
    return Device(nvml, found[0]) if len(found) == 1 else None
