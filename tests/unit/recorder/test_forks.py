"""The recorder is silent in forked children: it waits for nothing, writes nothing; the parent's rows stay whole."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from recorder_fakes import FakeMeter
from torch.utils.data import DataLoader, Dataset

from ray_memprof.allocator.replay import Replay
from ray_memprof.recorder import recorder as module
from ray_memprof.recorder.meters.host import HostMeter
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.recorder import Recorder
from ray_memprof.recorder.recording import recording
from ray_memprof.recorder.rows import Sample
from ray_memprof.recorder.scribe import Scribe
from ray_memprof.recorder.spans import listening, span
from ray_memprof.recorder.torch_trace import StepTrace, TraceSchedule
from ray_memprof.recorder.writer import Writer
from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.run_files import table_dir
from ray_memprof.workload.module_spans import naming_modules

SAMPLE = Sample(1, 2, None, 40, 5, 6, 7, None)


def in_a_child(work: Callable[[], None], limit_s: float = 30.0) -> int:
    """Exit code of a forked child that does `work`: 0 it ended, 1 it raised, -9 it hung and was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def recorded(folder: Path, meter: Any) -> Iterator[Recorder]:
    scribe = Scribe(Writer(RankStore(folder, 0), Replay(), categories={}))
    recorder = Recorder(0, meter, scribe)
    recorder.start()
    with listening(recorder):
        yield recorder
    recorder.close()


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    parts = sorted(table_dir(folder, table, 0).glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()]


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Another thread holds the lock, as the scribe's thread may at the moment of a fork."""
    has_it, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            has_it.set()
            may_go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has_it.wait(20)
    yield
    may_go.set()
    thread.join()


def test_a_child_that_goes_on_with_the_program_records_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "FLUSH_S", 0.0
    )  # every boundary hands over a parcel: a queue that no thread empties is soon full
    meter = FakeMeter()
    with recorded(tmp_path, meter) as recorder, span("script"):

        def work() -> None:
            for number in range(100):
                with span("dit.block", index=number):
                    meter.alloc(5)
                assert recorder.begin_collective() is None
                recorder.tick(SAMPLE)
                recorder.on_step(number, 100)
                recorder.beat()
            recorder.seal()
            assert in_a_child(lambda: span("again").__enter__()) == 0
            recorder.close()

        with held(recorder._lock):
            assert in_a_child(work) == 0
        with span("decode"):
            meter.alloc(7)
    assert [(row["path"], row["failed"]) for row in rows_of(tmp_path, "spans")] == [
        ("script/decode", False), ("script", False)
    ]  # fmt: skip
    assert [row["size_bytes"] for row in rows_of(tmp_path, "allocs")] == [7]
    assert recorder.problems == ()


def test_a_child_that_leaves_every_block_of_the_recording_ends_and_leaves_it_whole(tmp_path: Path) -> None:
    class Left(Exception):
        pass

    try:
        with recording(RecordingOptions(run_dir=tmp_path, device="cpu")), span("script"), naming_modules(()):
            parent, pid = os.getpid(), os.fork()
            if pid == 0:
                torch.nn.Linear(2, 2)(torch.zeros(1, 2))
                raise Left
            assert os.waitpid(pid, 0)[1] == 0
            torch.zeros(512)
    except Left:
        os._exit(0)
    finally:
        if os.getpid() != parent:
            os._exit(1)
    assert [(row["path"], row["failed"]) for row in rows_of(tmp_path, "spans")] == [("script", False)]
    assert [row["size_bytes"] for row in rows_of(tmp_path, "allocs") if row["action"] == "alloc"] == [2048]


def test_tensors_that_a_child_makes_and_frees_wait_for_no_lock() -> None:
    meter = HostMeter(events=True)
    meter.start()
    kept = [torch.zeros(64)]

    def work() -> None:
        kept.clear()
        torch.zeros(64).untyped_storage().resize_(0)
        thread = threading.Thread(target=lambda: torch.ones(64))
        thread.start()
        thread.join()

    try:
        with held(meter._lock):
            assert in_a_child(work) == 0
        assert meter.peek().allocated == 256
    finally:
        meter.stop()


def test_a_trace_is_the_parents_alone(tmp_path: Path) -> None:

    path = tmp_path / "trace.json"
    trace = StepTrace(TraceSchedule(wait=0, warmup=0, active=1), path)
    with listening(trace), span("denoise", step=0):

        def work() -> None:
            with span("denoise", step=1):
                torch.zeros(1)
            trace.exit("denoise", False)
            trace.stop()
            assert not path.exists()

        assert in_a_child(work) == 0
    trace.stop()
    assert path.exists()


def test_a_child_writes_nothing_of_what_the_parent_is_about_to_write(tmp_path: Path) -> None:
    """GIVEN a store with an open stream WHEN a child ends as a program does, its files closed THEN no byte is added."""
    import gc

    store = RankStore(tmp_path, 0)
    rows = {"t_ns": [1], "span_id": [0], "account": ["nccl"], "bytes": [5]}
    store.append("ledger", rows)

    def work() -> None:
        nonlocal store
        del store
        gc.collect()

    assert in_a_child(work) == 0
    store.append("ledger", rows)
    store.close()
    assert len(rows_of(tmp_path, "ledger")) == 2


class Numbers(Dataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self.transform = torch.nn.Identity()

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> torch.Tensor:
        result: torch.Tensor = self.transform(torch.full((4,), float(index)))
        return result


def test_the_workers_of_a_data_loader_give_all_their_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.0)
    with recorded(tmp_path, HostMeter(events=True)) as recorder, naming_modules(()), span("script"):
        loader = DataLoader(
            Numbers(), num_workers=2, batch_size=1, multiprocessing_context="fork", timeout=60
        )
        assert sum(1 for _ in loader) == 60
    assert [row["path"] for row in rows_of(tmp_path, "spans")] == ["script"]
    assert recorder.problems == ()


def test_a_child_waits_for_nobody_who_was_noting_a_problem() -> None:
    problems = Problems()
    with held(problems._lock):
        assert in_a_child(lambda: problems.add("of the child"), 10.0) == 0
    assert problems.texts == ()
