"""The driver's view of a GPU, against a driver written here, and where there is none."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ray_memprof.device import Holder, open_device


class NVMLError(Exception):
    pass


class NotSupported(NVMLError):
    pass


class FakeNvml(ModuleType):
    """NVML of a host with one GPU: index 0, UUID GPU-a."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NotSupported

    def __init__(self, *, has_driver: bool = True) -> None:
        super().__init__("pynvml")
        self.has_driver = has_driver
        self.num_open = 0
        self.is_mig = False

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise NVMLError("no driver")
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid != "GPU-a":
            raise NVMLError(uuid)
        return 7

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index != 0:
            raise NVMLError(index)
        return 7

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> Any:
        memory = SimpleNamespace(used=100, total=1000)
        if version is not None:
            memory.used, memory.reserved = 80, 20
        return memory

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        if self.is_mig:
            raise NotSupported
        sizes = {1: 50, 2: None, 3: 2**64 - 1}
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in sizes.items()]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if self.is_mig:
            raise NotSupported
        return SimpleNamespace(gpu=25)

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return 0

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "GPU A"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return "GPU-a"


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_without_a_driver_there_is_no_device(nvml: FakeNvml) -> None:
    nvml.has_driver = False
    with open_device(uuid="GPU-a") as device:
        assert device is None
    assert nvml.num_open == 0


@pytest.mark.parametrize(
    "wanted", [{"uuid": "GPU-b"}, {"index": 3}, {}, {"uuid": "GPU-b", "index": 0}], ids=str
)
def test_a_gpu_that_is_not_there_is_no_device(nvml: FakeNvml, wanted: dict[str, Any]) -> None:
    with open_device(**wanted) as device:
        assert (device, nvml.num_open) == (None, 1)
    assert nvml.num_open == 0


@pytest.mark.parametrize("wanted", [{"uuid": "GPU-a"}, {"index": 0}, {"uuid": "GPU-a", "index": 5}], ids=str)
def test_all_that_the_driver_tells(nvml: FakeNvml, wanted: dict[str, Any]) -> None:
    with open_device(**wanted) as device:
        assert device is not None
        assert (device.index(), device.name(), device.uuid()) == (0, "GPU A", "GPU-a")
        assert (device.used_bytes(), device.total_bytes(), device.reserved_bytes()) == (100, 1000, 0)
        assert device.holders() == [Holder(1, 50), Holder(2, None), Holder(3, None)]
        assert device.utilisation() == 0.25
    assert nvml.num_open == 0


def test_a_driver_that_tells_its_own_share_is_asked_for_it(nvml: FakeNvml) -> None:
    nvml.nvmlMemory_v2 = 2  # type: ignore[attr-defined]
    with open_device(index=0) as device:
        assert device is not None
        assert (device.used_bytes(), device.total_bytes(), device.reserved_bytes()) == (80, 1000, 20)


def test_a_slice_of_a_gpu_has_no_utilisation_and_no_processes(nvml: FakeNvml) -> None:
    nvml.is_mig = True
    with open_device(index=0) as device:
        assert device is not None
        assert (device.utilisation(), device.holders(), device.used_bytes()) == (None, None, 100)


@pytest.mark.parametrize(("has_driver", "uuid"), [(False, ""), (True, "GPU-b"), (True, "GPU-a")])
def test_an_error_of_the_block_passes_through_and_does_not_name_the_driver(
    nvml: FakeNvml, has_driver: bool, uuid: str
) -> None:
    nvml.has_driver = has_driver
    with pytest.raises(KeyError) as raised, open_device(uuid=uuid):
        raise KeyError
    assert raised.value.__context__ is None
    assert nvml.num_open == 0
