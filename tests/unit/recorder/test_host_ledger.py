"""Every byte of a process has an account: by the kind of its page, and whether it is a tensor."""

import ctypes
import errno
import gc
import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext, suppress
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_memprof.recorder import host_ledger
from ray_memprof.recorder.host_ledger import HostLedger
from ray_memprof.recorder.ledger import Where
from ray_memprof.recorder.meters.host import HostMeter
from ray_memprof.recorder.meters.mapped_files import MappedFiles
from ray_memprof.recorder.meters.meter import Pages, Reading

MIB = 1 << 20


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """malloc keeps 10 bytes at the start."""
    monkeypatch.setattr(host_ledger, "kept_by_malloc", lambda: 10)


def reading(
    private: int, files: int = 0, shared: int = 0, *, tensors: tuple[int, int, int] = (0, 0, 0)
) -> Reading:
    """`tensors`: private, in files, in shared memory."""
    used, live = private + files + shared, sum(tensors)
    return Reading(
        5, live, live, live, used, used, -1, -1, -1, 0, 0, 0, Pages(files, shared, tensors[1], tensors[2])
    )


class Books:
    """What each account holds after each reading."""

    def __init__(self) -> None:
        self.ledger, self.held = HostLedger(), Counter[str]()

    def book(self, now: Reading, path: str = "", account: str = "") -> dict[str, int]:
        entries = self.ledger.book(now, Where(True, 3, path, None), account=account)
        assert all((one.t_ns, one.span_id) == (now.t_ns, 3) and one.bytes for one in entries)
        self.held.update({one.account: one.bytes for one in entries})
        return {name: size for name, size in self.held.items() if size}


def test_all_that_is_there_at_the_start_is_the_start() -> None:
    books = Books()
    assert books.book(reading(100, 50, 3)) == {"context": 153}
    assert books.ledger.has_context
    assert books.ledger.book(reading(100, 50, 3), Where(True)) == []


def test_growth_goes_to_the_kind_of_its_pages_and_tensors_are_left_out() -> None:
    books = Books()
    books.book(reading(100, 50, 3))
    now = reading(190, 80, 24, tensors=(60, 20, 20))
    assert books.book(now) == {"context": 153, "heap": 30, "files": 10, "shared": 1}
    # A span that runs for the first time is no sign of a library: the kernel knows the kind.
    assert books.book(reading(197, 80, 24, tensors=(60, 20, 20)), path="step")["heap"] == 37
    assert books.book(reading(100, 50, 3)) == {"context": 153}


def test_what_a_group_takes_is_its_own() -> None:
    books = Books()
    books.book(reading(100))
    assert books.book(reading(107), account="nccl") == {"context": 100, "nccl": 7}
    assert books.book(reading(109), path="init/comm.init") == {"context": 100, "nccl": 9}
    assert books.book(reading(115)) == {"context": 100, "nccl": 9, "heap": 6}
    assert books.book(reading(111), account="nccl") == {"context": 100, "nccl": 5, "heap": 6}


def test_the_start_of_a_device_belongs_to_the_start() -> None:
    books = Books()
    books.book(reading(100))
    assert books.book(reading(104, 2), path="device.init") == {"context": 106}


def test_tensors_first_take_what_malloc_kept_and_then_are_absent() -> None:
    books = Books()
    books.book(reading(100))
    assert books.book(reading(100, tensors=(8, 0, 0))) == {"context": 92}
    assert books.book(reading(100, tensors=(30, 0, 0))) == {"context": 90, "absent": -20}
    # Written by now.
    assert books.book(reading(130, tensors=(30, 0, 0))) == {"context": 100}


def test_a_file_of_tensors_that_is_not_read_yet_is_absent() -> None:
    books = Books()
    books.book(reading(100, 50))
    assert books.book(reading(100, 55, tensors=(0, 40, 0))) == {"context": 150, "absent": -35}
    assert books.book(reading(100, 90, tensors=(0, 40, 0))) == {"context": 150}


def test_pages_of_the_start_that_are_given_back_are_no_tensors() -> None:
    books = Books()
    books.book(reading(100, 50))
    assert books.book(reading(70, 20)) == {"context": 90}


def test_a_kernel_that_tells_no_kinds_leaves_growth_unexplained() -> None:
    ledger, plain = HostLedger(), Reading(5, 0, 0, 0, 100, 100, -1, -1, -1, 0, 0, 0)
    assert [(one.account, one.bytes) for one in ledger.book(plain, Where(True))] == [("context", 100)]
    grown = Reading(6, 0, 0, 0, 130, 130, -1, -1, -1, 0, 0, 0)
    assert ledger.book(grown, Where(True)) == []


def test_a_booking_that_was_interrupted_is_booked_again() -> None:
    books = Books()
    books.book(reading(100))
    state = books.ledger.state()
    first = books.ledger.book(reading(120, 7), Where(True), account="nccl")
    books.ledger.restore(state)
    assert books.ledger.book(reading(120, 7), Where(True), account="nccl") == first != []


sizes = st.integers(0, 1000)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(sizes, sizes, sizes, sizes, sizes, sizes, st.sampled_from(["", "nccl", "context"])))
)
def test_the_books_always_close(steps: list[tuple[int, int, int, int, int, int, str]]) -> None:
    books = Books()
    for private, files, shared, *tensors, account in steps:
        now = reading(private, files, shared, tensors=(tensors[0], tensors[1], tensors[2]))
        held = books.book(now, account=account)
        assert now.allocated + sum(held.values()) == now.device_used
        assert all(held.get(name, 0) >= 0 for name in ("nccl", "heap", "files", "shared"))
        assert -now.allocated <= held.get("absent", 0) <= 0


class Process:
    """The books of this very process, in MiB since they began."""

    def __init__(self, meter: HostMeter) -> None:
        self.meter, self.books = meter, Books()
        self.start = self.now()

    def now(self) -> dict[str, float]:
        now = self.meter.peek()
        held = self.books.book(now)
        assert now.allocated + sum(held.values()) == now.device_used
        return {name: size / MIB for name, size in held.items()}

    def grown(self) -> dict[str, float]:
        now = self.now()
        names = ("heap", "files", "shared", "absent")
        return {name: now.get(name, 0) - self.start.get(name, 0) for name in names}


Check = Callable[[Process, Path], None]


@pytest.fixture(scope="module")
def alone() -> Iterator[Executor]:
    """A process that only these tests use: in a worker of pytest, what other tests have left takes and gives back."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


def booked(check: Check, tmp_path: Path) -> None:
    """Run a check in books that begin now; and once before, for the code of libraries is read as it is first used."""
    for name in ("before", "now"):
        folder = tmp_path / name
        folder.mkdir()
        with suppress(AssertionError) if name == "before" else nullcontext():
            run_in_books(check, folder)


def run_in_books(check: Check, folder: Path) -> None:
    # What checks before this one have left would be given back, or used again, in the middle of it.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    meter = HostMeter(events=False)
    meter.start()
    try:
        check(Process(meter), folder)
    finally:
        meter.stop()


def only(process: Process, **expected: float) -> None:
    """All accounts have grown by what is expected, to 8 MiB."""
    grown = process.grown()
    assert grown == pytest.approx({**dict.fromkeys(grown, 0.0), **expected}, abs=8), grown


def an_array_of_numpy_is_heap(process: Process, tmp_path: Path) -> None:
    array = np.ones(40 * MIB, np.uint8)
    only(process, heap=40)
    del array
    only(process)


def a_tensor_is_no_heap_and_absent_until_it_is_written(process: Process, tmp_path: Path) -> None:
    tensor = torch.empty(64 * MIB, dtype=torch.uint8)
    only(process, absent=-64)
    tensor.fill_(1)
    only(process)


def a_file_that_numpy_maps_counts_as_it_is_read(process: Process, tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"x" * (48 * MIB))
    mapped = np.memmap(path, np.uint8, mode="r")
    mapped[: 24 * MIB].max()
    only(process, files=24)
    mapped.max()
    only(process, files=48)


def weights_in_a_mapped_file_are_tensors_and_count_once(process: Process, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.ones(48 * MIB, dtype=torch.uint8)}, path)
    process.start = process.now()
    weights = torch.load(path, mmap=True)["w"]
    only(process, absent=-48)
    assert weights.max() == 1
    only(process)
    del weights
    only(process)


def shared_memory_is_told_apart_from_tensors_in_it(process: Process, tmp_path: Path) -> None:
    tensor = torch.ones(48 * MIB, dtype=torch.uint8)
    only(process)
    tensor.share_memory_()
    only(process)
    memory = SharedMemory(create=True, size=32 * MIB)
    try:
        memory.buf[:] = b"x" * (32 * MIB)
        only(process, shared=32)
    finally:
        memory.close()
        memory.unlink()


def anonymous_mappings_are_heap(process: Process, tmp_path: Path) -> None:
    # 40: what malloc gives back below 32 MiB it may keep, and the text that is written is given back.
    with mmap.mmap(-1, 40 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(b"x" * (40 * MIB))
        only(process, heap=40)
    only(process)


CHECKS = (
    an_array_of_numpy_is_heap,
    a_tensor_is_no_heap_and_absent_until_it_is_written,
    a_file_that_numpy_maps_counts_as_it_is_read,
    weights_in_a_mapped_file_are_tensors_and_count_once,
    shared_memory_is_told_apart_from_tensors_in_it,
    anonymous_mappings_are_heap,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_books_of_a_process(check: Check, alone: Executor, tmp_path: Path) -> None:
    alone.submit(booked, check, tmp_path).result(timeout=60)


def test_a_program_without_file_descriptors_hears_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(4096))
    files = MappedFiles()
    storage = files.hearing(torch.UntypedStorage.from_file).__func__(str(path), False, 4096)
    assert files.holds(storage)

    def none_left(*args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("builtins.open", none_left)
    assert files.holds(storage)
