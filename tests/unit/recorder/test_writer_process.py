"""A process of its own for the writing: the same rows, and no harm to the program, however either of them ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from handed_over import PATHS, event, no_rest, parcels, plan
from recorder_fakes import FakeMeter

from ray_memprof.errors import DiskFull
from ray_memprof.recorder import writer_process as module
from ray_memprof.recorder.meters.meter import Batch
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.recording import recording
from ray_memprof.recorder.rows import (
    Parcel,
)
from ray_memprof.recorder.spans import span
from ray_memprof.recorder.writer import Writes, writer_of
from ray_memprof.recorder.writer_process import WriterProcess
from ray_memprof.store.gather import gather
from ray_memprof.store.run_files import TABLES_DIR, manifest_path
from ray_memprof.store.writer_lock import has_ended

MIB = 2**20
ENDED = "the process that writes what is recorded has ended: nothing more is written"


def rows(folder: Path) -> dict[str, Any]:
    """All sealed rows by table."""
    return {
        table.name: [
            row for part in sorted(table.rglob("*.parquet")) for row in pq.read_table(part).to_pylist()
        ]
        for table in sorted((folder / TABLES_DIR).iterdir())
        if table.is_dir()
    }


def write(writer: Writes, num: int = 10) -> None:
    for parcel in parcels(num):
        writer.write(parcel, no_rest)
    writer.close()


def test_rows_and_sums_are_those_of_a_writer_in_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    here = writer_of(plan(near), Problems())
    write(here)
    for at_once in (7, module.EVENTS_AT_ONCE, 1):  # parts of one parcel: many, one, one an event
        monkeypatch.setattr(module, "EVENTS_AT_ONCE", at_once)
        writer = WriterProcess(plan(far / str(at_once)), Problems())
        write(writer, 10)
        assert (writer.problems.texts, writer.error) == ((), None)
        assert rows(far / str(at_once)) == rows(near)
        assert writer.followed() == here.followed()
    assert len(rows(near)["allocs"]) > 4000
    assert set(rows(near)) >= {"allocs", "owners", "spans", "ledger", "communicators", "segment_pools"}


def test_others_may_work_between_the_parts_of_a_parcel(tmp_path: Path) -> None:
    writer, rests = WriterProcess(plan(tmp_path), Problems()), []
    events = [event("segment_alloc", number * MIB, MIB) for number in range(3 * module.EVENTS_AT_ONCE + 1)]
    writer.write(Parcel(batch=Batch(events, None)), lambda: rests.append(len(events)))
    writer.close()
    size = module.EVENTS_AT_ONCE
    assert rests == [3 * size + 1, 2 * size + 1, size + 1, 1, 0]
    assert writer.followed().num_events == 3 * size + 1


def test_nothing_is_a_child_of_the_program_and_its_folder_has_no_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a program started in a folder with modules of the same names as those that the process imports."""
    for name in ("pyarrow", "pickle", "numpy", "ray_memprof"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    monkeypatch.chdir(tmp_path)
    before = psutil.Process().children(recursive=True)  # of other tests, such as multiprocessing's tracker
    writer = WriterProcess(plan(Path("run")), Problems())
    assert psutil.Process().children(recursive=True) == before
    monkeypatch.chdir("/")  # the folder of the run was told from the one before
    write(writer, 2)
    assert writer.problems.texts == ()
    assert len(rows(tmp_path / "run")["ledger"]) == 2


def writing(folder: Path) -> psutil.Process:
    """The process that writes this run."""
    manifest = manifest_path(folder, 0).absolute()
    found = []
    for process in psutil.process_iter():
        try:
            if any(Path(file.path) == manifest for file in process.open_files()):
                found.append(process)
        except psutil.Error:
            continue
    assert len(found) == 1
    return found[0]


def test_a_process_that_is_killed_is_told_and_the_program_goes_on(tmp_path: Path) -> None:
    writer = WriterProcess(plan(tmp_path), Problems())
    first, second, third, *_ = parcels(4)
    writer.write(first, no_rest)
    process = writing(tmp_path)
    told = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
    for ignored in told:  # a terminal or a scheduler sends them to all of a job
        process.send_signal(ignored)
    num_lost = second.num_events
    writer.write(second, no_rest)
    assert writer.problems.texts == ()
    before = writer.followed()
    process.kill()
    process.wait(20)
    assert has_ended(manifest_path(tmp_path, 0), 0.0)
    num_lost = third.num_events
    writer.write(third, no_rest)
    writer.write(Parcel(batch=Batch([event("alloc", 1, 7)], None)), no_rest)
    writer.close()
    assert (writer.problems.texts, writer.error) == ((ENDED,), None)
    after = writer.followed()
    assert after.num_events == before.num_events
    assert after.num_lost_events == before.num_lost_events + num_lost + 1
    gathered = gather(tmp_path, [0])
    assert (gathered.problems, gathered.ranks[0].rows["ledger"]) == ((), 2)


PROGRAM = """
import os, signal, sys, time
sys.path[:0] = sys.argv[2].split(os.pathsep)
from pathlib import Path
from handed_over import no_rest, parcels, plan
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.writer_process import WriterProcess
writer = WriterProcess(plan(Path(sys.argv[1])), Problems())
for parcel in parcels(4):
    writer.write(parcel, no_rest)
if sys.argv[3] == "fork" and not os.fork():
    os.close(1)
    time.sleep(60)
print(os.getpid(), flush=True)
if sys.argv[3] == "exit":
    os._exit(3)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["exit", "kill", "fork"])
def test_it_ends_with_the_program_and_what_it_was_given_is_there(tmp_path: Path, how: str) -> None:
    """GIVEN a program that leaves by os._exit, is killed, or is killed while a child that it forked lives on."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), PATHS, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == f"{program.pid}\n"
        try:
            if how != "exit":
                program.kill()
            program.wait(20)
            # The forked child is still there.
            assert has_ended(manifest_path(tmp_path, 0), 20.0)
        finally:
            if how == "fork":
                os.killpg(program.pid, signal.SIGKILL)
    gathered = gather(tmp_path, [0])
    assert gathered.problems == ()
    assert gathered.ranks[0].rows["ledger"] == gathered.ranks[0].rows["spans"] == 4


@pytest.mark.parametrize("how", ["no program", "fails", "cannot import", "frozen", "not known"])
def test_where_no_process_can_be_started_the_program_writes_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    python = tmp_path / "python"
    if how == "no program":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    elif how == "fails":
        python.write_text("#!/bin/sh\nexit 3\n")
        python.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(python))
    elif how == "frozen":  # sys.executable would start the program once more
        python.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        python.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(python))
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif how == "not known":  # which Python the shell would find is nobody's choice
        monkeypatch.setattr(sys, "executable", None)
    else:
        (tmp_path / "pyarrow.py").write_text("raise ImportError('broken')\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    writer = WriterProcess(plan(tmp_path / "run"), Problems())
    write(writer, 3)
    (text,) = writer.problems.texts
    assert text.startswith("no process of its own writes what is recorded (")
    assert "import" not in text  # what it would have run helps nobody
    assert not (tmp_path / "started").exists()
    assert (writer.error, len(rows(tmp_path / "run")["ledger"])) == (None, 3)
    assert writer.followed().num_events > 1000


def test_a_recording_of_a_device_is_written_by_it(tmp_path: Path) -> None:
    """GIVEN a meter that counts as a GPU's."""
    meter = FakeMeter(source="cuda")
    options = RecordingOptions(run_dir=tmp_path, device="cuda:0", sample_interval_s=0.0)
    with recording(options, predicted=meter) as recorder:
        assert recorder._scribe is not None
        assert isinstance(recorder._scribe.writer, WriterProcess)
        with span("denoise", step=0), span("dit.block", index=0):
            meter._event("segment_alloc", 0, 20 * MIB)
            meter.alloc(MIB, 0)
        with span("decode"):
            meter.alloc(2 * MIB, MIB)
            meter.free(0, MIB)
    check = recorder.check()
    assert check is not None
    assert (check.num_events, check.num_lost_events, recorder.problems) == (5, 0, ())
    assert check.replayed_allocated_peak_bytes == check.allocated_peak_bytes == 3 * MIB
    written = rows(tmp_path)
    assert [(row["path"], row["allocated_peak_bytes"]) for row in written["spans"]] == [
        ("denoise/dit.block", MIB),
        ("denoise", MIB),
        ("decode", 3 * MIB),
    ]
    assert [row["action"] for row in written["allocs"]][:2] == ["segment_alloc", "alloc"]


def test_a_second_writer_of_a_rank_is_refused_at_once(tmp_path: Path) -> None:
    writer = WriterProcess(plan(tmp_path), Problems())
    with pytest.raises(DiskFull, match="rank 0"):
        WriterProcess(plan(tmp_path), Problems())
    writer.close()


FULL = """
import os, resource, signal, sys
sys.path[:0] = sys.argv[2].split(os.pathsep)
from pathlib import Path
from handed_over import no_rest, parcels, plan
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.writer_process import WriterProcess
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
writer = WriterProcess(plan(Path(sys.argv[1])), Problems())
for parcel in parcels(10):
    writer.write(parcel, no_rest)
writer.close()
print(type(writer.error).__name__, writer.error, writer.problems.texts, sep="|")
"""


def test_a_full_disk_is_the_programs_to_tell(tmp_path: Path) -> None:
    """GIVEN a limit on the size of files, which a process inherits."""
    command = [sys.executable, "-c", FULL, str(tmp_path), PATHS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    kind, text, problems = done.stdout.strip().split("|")
    assert (kind, problems) == ("DiskFull", "()")
    assert text.startswith("rank 0: ")
    assert "allocs" in text


def test_an_empty_recording_is_closed(tmp_path: Path) -> None:
    began = time.monotonic()
    writer = WriterProcess(plan(tmp_path), Problems())
    writer.close()
    assert writer.problems.texts == ()
    assert gather(tmp_path, [0]).problems == ()
    assert has_ended(manifest_path(tmp_path, 0), 5.0)
    assert time.monotonic() - began < 60
