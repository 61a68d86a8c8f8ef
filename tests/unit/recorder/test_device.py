"""The driver's view of a GPU, against a driver written here, and on a host without a driver."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ray_memprof.recorder.meters.nvml import (
    Device,
    Holder,
    OwnShare,
    is_contained,
    open_device,
)


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


def test_the_beginning_of_a_uuid_will_do_and_more_gpus_than_one_will_not(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handle(index: int) -> int:
        if index > 2:
            raise NVMLError(index)
        return index

    uuids = ("GPU-ab1", "GPU-ab2", "GPU-c")
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", handle)
    monkeypatch.setattr(nvml, "nvmlDeviceGetUUID", uuids.__getitem__)
    found = []
    for uuid in ("GPU-c", "GPU-ab2", "GPU-ab", "GPU-d"):
        with open_device(uuid=uuid) as device:
            found.append(None if device is None else device.uuid())
    assert found == ["GPU-c", "GPU-ab2", None, None]


def test_a_slice_of_a_gpu_has_the_index_of_its_gpu_or_none(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def index(handle: int) -> int:
        if handle == 7:
            raise NotSupported
        return 3

    monkeypatch.setattr(nvml, "nvmlDeviceGetIndex", index)
    monkeypatch.setattr(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", lambda handle: 8, raising=False)
    with open_device(index=0) as device:
        assert device is not None and device.index() == 3
    monkeypatch.setattr(nvml, "nvmlDeviceGetIndex", lambda handle: index(7))
    with open_device(index=0) as device:
        assert device is not None and device.index() == -1


def test_a_gpu_that_is_lost_at_the_end_is_no_error(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def shut() -> None:
        raise NVMLError("GPU is lost")

    monkeypatch.setattr(nvml, "nvmlShutdown", shut)
    with open_device(index=0) as device:
        assert device is not None


@pytest.mark.parametrize(("error", "is_there"), [(NotSupported, False), (NVMLError, True)])
def test_a_gpu_whose_memory_is_the_hosts_is_none_for_the_driver(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, error: type[Exception], is_there: bool
) -> None:
    def refuse(handle: int) -> Any:
        raise error("no")

    monkeypatch.setattr(nvml, "nvmlDeviceGetMemoryInfo", refuse)
    with open_device(index=0) as device:
        assert (device is not None) is is_there


# --------------------------------------------------------------------------------
# What this process holds


class Held(Device):
    """A GPU with these holders."""

    def __init__(self) -> None:
        self.sizes: dict[int, int | None] | None = {}

    def holders(self) -> list[Holder] | None:
        return None if self.sizes is None else [Holder(pid, size) for pid, size in self.sizes.items()]


ME, ALIAS = 40, 71_040
"""This process, as it sees itself and as the host does."""


def read(share: OwnShare, device: Held, reserved: int, *, is_on: bool, more: int = 0) -> int | None:
    """Read the share; `more` bytes are in use beyond the figures of all processes."""
    used = sum(size or 0 for size in (device.sizes or {}).values())
    return share.read(used + more, reserved, is_on=is_on)


def test_a_process_among_the_holders_holds_what_the_driver_says() -> None:
    device = Held()
    share = OwnShare(device, ME, is_contained=False)
    assert read(share, device, 0, is_on=False) == 0
    for sizes, own in (({ME: 500, 7: 80}, 500), ({ME: None, 7: 80}, None), ({7: 80}, None), ({}, None)):
        device.sizes = dict(sizes)
        assert read(share, device, 100, is_on=True) == own
    device.sizes = None
    assert read(share, device, 100, is_on=True) is None


def test_in_a_container_ours_is_the_one_that_came_when_we_began() -> None:
    device = Held()
    share = OwnShare(device, ME, is_contained=True)
    device.sizes = {7: 900, 8: 50}
    assert read(share, device, 0, is_on=False) == 0
    device.sizes = {7: 900, 8: 50, ALIAS: 500}
    assert read(share, device, 0, is_on=True) == 500
    # WHEN another process comes THEN it is known as another one once our allocator holds more than it
    device.sizes[9] = 100
    assert read(share, device, 0, is_on=True) is None
    assert read(share, device, 300, is_on=True) == 500
    device.sizes |= {9: 2000, ALIAS: 600}
    assert read(share, device, 0, is_on=True) == 600


def test_in_a_container_two_that_may_be_ours_are_neither() -> None:
    device = Held()
    share = OwnShare(device, ME, is_contained=True)
    device.sizes = {ALIAS: 500, 9: 600}
    assert read(share, device, 400, is_on=True) is None
    device.sizes = {ALIAS: 500}
    assert read(share, device, 400, is_on=True) == 500


def test_on_a_host_a_stranger_that_is_alone_is_not_us() -> None:
    device = Held()
    device.sizes = {9: 600}
    assert read(OwnShare(device, ME, is_contained=False), device, 0, is_on=True) is None


def test_one_that_was_taken_for_a_stranger_is_found_again() -> None:
    device = Held()
    share = OwnShare(device, ME, is_contained=True)
    device.sizes = {ALIAS: 500}
    assert read(share, device, 600, is_on=True) is None
    assert read(share, device, 400, is_on=True) == 500


def test_a_container_is_told_by_its_process_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for inode, told in ((0xEFFFFFFC, False), (0xF0000001, True)):
        monkeypatch.setattr("os.stat", lambda path, inode=inode: SimpleNamespace(st_ino=inode))
        assert is_contained() is told


@pytest.mark.parametrize("hidden", [0, 5000])
def test_what_the_driver_needs_for_a_process_is_told_with_it(hidden: int) -> None:
    """GIVEN 9 bytes for each process beyond its figure, and maybe a process that is not shown."""
    device = Held()
    share = OwnShare(device, ME, is_contained=False)
    device.sizes = {7: 80}
    assert read(share, device, 0, is_on=False, more=9 + hidden) == 0
    device.sizes = {7: 80, ME: 500}
    assert read(share, device, 0, is_on=True, more=18 + hidden) == 509
    # WHEN others come and go THEN our overhead stays the same
    device.sizes = {7: 80, ME: 600, 8: 70}
    assert read(share, device, 100, is_on=True, more=27 + hidden) == 609


def test_what_is_not_shown_from_the_start_is_no_overhead_of_ours() -> None:
    device = Held()
    share = OwnShare(device, ME, is_contained=False)
    device.sizes = {ME: 500}
    assert read(share, device, 0, is_on=True, more=2**30) == 500 + 64 * 2**20
