"""Programs in which little is as usual: what they record is written all the same, and what is theirs reaches them."""

import enum
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow.parquet as pq
import pytest
from handed_over import PATHS, event, no_rest, parcels, plan, reading, record
from recorder_fakes import FakeMeter

from ray_memprof.recorder import writer_process as module
from ray_memprof.recorder.meters.meter import Batch
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.problems import MOST_PROBLEMS, Problems
from ray_memprof.recorder.recording import recording
from ray_memprof.recorder.rows import Parcel
from ray_memprof.recorder.spans import span
from ray_memprof.recorder.writer_process import WriterProcess
from ray_memprof.store.gather import gather
from ray_memprof.store.run_files import manifest_path
from ray_memprof.store.writer_lock import has_ended


def num_spans(folder: Path) -> int:
    """Rows of spans, sealed or not."""
    gathered = gather(folder, [0])
    assert gathered.problems == ()
    return gathered.ranks[0].rows["spans"]


def test_a_default_timeout_of_sockets_is_not_for_ours(tmp_path: Path) -> None:
    """GIVEN a program that downloads with a time limit: all its new sockets do not block, for the kernel."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5.0)
    try:
        writer = WriterProcess(plan(tmp_path), Problems())
    finally:
        socket.setdefaulttimeout(before)
    for parcel in parcels(4, 3000):  # larger than the buffer of a socket
        writer.write(parcel, no_rest)
    writer.close()
    assert (writer.problems.texts, num_spans(tmp_path)) == ((), 4)


def test_no_socket_where_the_program_has_none_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", none_left)
    writer = WriterProcess(plan(tmp_path), Problems())
    writer.write(next(parcels(1)), no_rest)
    writer.close()
    (text,) = writer.problems.texts
    assert "Too many open files" in text
    assert num_spans(tmp_path) == 1


PROGRAM = """
import os, sys
sys.path[:0] = sys.argv[2].split(os.pathsep)
from pathlib import Path
from handed_over import no_rest, parcels, plan
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.writer_process import WriterProcess
for number in range(3):
    os.close(number)
writer = WriterProcess(plan(Path(sys.argv[1])), Problems())
for parcel in parcels(4):
    writer.write(parcel, no_rest)
writer.close()
Path(sys.argv[1], "problems").write_text("".join(writer.problems.texts))
"""


def test_a_program_that_has_closed_its_standard_streams(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), PATHS]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "problems").read_text() == ""
    assert num_spans(tmp_path) == 4


def test_a_program_that_is_kept_from_its_environment(tmp_path: Path) -> None:
    """GIVEN `python -I` where PYTHONHOME is no home of Python."""
    command = [sys.executable, "-I", "-c", PROGRAM, str(tmp_path), PATHS]
    subprocess.run(command, check=True, timeout=60, env=os.environ | {"PYTHONHOME": str(tmp_path)})
    assert (tmp_path / "problems").read_text() == ""
    assert num_spans(tmp_path) == 4


NEVER_LEFT = """
import sys
sys.path[:0] = sys.argv[2].split(sys.argv[3])
from pathlib import Path
from recorder_fakes import FakeMeter
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.recording import recording
from ray_memprof.recorder.spans import span
meter = FakeMeter(source="cuda")
options = RecordingOptions(run_dir=Path(sys.argv[1]), device="cuda:0", sample_interval_s=0.0)
block = recording(options, predicted=meter)
recorder = block.__enter__()
with span("forward"):
    meter.alloc(10)
recorder.seal(20.0)
"""


def test_a_program_that_ends_inside_its_recording(tmp_path: Path) -> None:
    """GIVEN a block that is never left: Python closes it when none of its threads runs any longer."""
    command = [sys.executable, "-c", NEVER_LEFT, str(tmp_path), PATHS, os.pathsep]
    done = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True)
    assert "the program ended inside the recording: the last rows are missing" in done.stderr
    assert has_ended(manifest_path(tmp_path, 0), 20.0)
    assert num_spans(tmp_path) == 1


ADOPTS = """
import ctypes, sys
sys.path[:0] = sys.argv[2].split(sys.argv[3])
from pathlib import Path
import psutil
from handed_over import no_rest, parcels, plan
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.writer_process import WriterProcess
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
writer = WriterProcess(plan(Path(sys.argv[1])), Problems())
writer.write(next(parcels(1)), no_rest)
(child,) = psutil.Process().children()
print(child.status() == psutil.STATUS_ZOMBIE)
writer.close()
print(psutil.Process().children(), *writer.problems.texts)
"""


def test_a_program_that_adopts_orphans_keeps_no_zombie(tmp_path: Path) -> None:
    """GIVEN a program that is what init is elsewhere: the first process of a container, or a subreaper."""
    command = [sys.executable, "-c", ADOPTS, str(tmp_path), PATHS, os.pathsep]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "False\n[]\n"


def test_a_program_that_closes_all_files_is_told(tmp_path: Path) -> None:
    """GIVEN os.closerange, as daemons call it, inside the recording."""
    writer = WriterProcess(plan(tmp_path), Problems())
    first, second = parcels(2)
    writer.write(first, no_rest)
    os.close(writer._ends[0].fileno())
    num_events = second.num_events
    writer.write(second, no_rest)
    writer.close()
    (text,) = writer.problems.texts
    assert text.endswith("has ended: nothing more is written")
    assert writer.followed().num_lost_events >= num_events
    assert has_ended(manifest_path(tmp_path, 0), 20.0)
    assert num_spans(tmp_path) == 1


@contextmanager
def alarms() -> Iterator[Callable[[], None]]:
    """A handler of SIGALRM that raises, as timeouts of programs do; yields what sends the signal."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the program's own")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield lambda: signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_alarm_while_the_process_starts_is_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.run
    with alarms() as alarm:
        for has_started in (False, True):

            def interrupted(*args: Any, has_started: bool = has_started, **more: Any) -> None:
                if has_started:
                    start(*args, **more)
                alarm()

            monkeypatch.setattr(module.subprocess, "run", interrupted)
            folder, problems, num_files = tmp_path / str(has_started), Problems(), len(os.listdir("/dev/fd"))
            with pytest.raises(TimeoutError, match="the program's own"):
                WriterProcess(plan(folder), problems)
            assert problems.texts == ()
            assert has_ended(manifest_path(folder, 0), 20.0)
            assert len(os.listdir("/dev/fd")) == num_files


@pytest.mark.parametrize("num_parcels", [0, 2])
def test_an_alarm_at_the_end_is_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_parcels: int
) -> None:
    """GIVEN an alarm while the process is waited for: it gets ready, or it closes the store."""
    writer = WriterProcess(plan(tmp_path), Problems())
    for parcel in parcels(num_parcels):
        writer.write(parcel, no_rest)
    with alarms() as alarm, monkeypatch.context() as patch:
        patch.setattr(module.pickle, "loads", lambda answer: alarm())
        with pytest.raises(TimeoutError, match="the program's own"):
            writer.close()
    assert writer.problems.texts == ()
    assert has_ended(manifest_path(tmp_path, 0), 20.0)  # although the program still has the writer
    assert num_spans(tmp_path) == num_parcels


def test_a_child_that_is_forked_while_the_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a thread of the program that forks at that moment, and a child that outlives the recording."""
    start, (lives, ends), children = subprocess.run, os.pipe(), []

    def forking(*args: Any, **more: Any) -> Any:
        child = os.fork()
        if not child:
            os.close(ends)
            os.read(lives, 1)
            os._exit(0)
        children.append(child)
        return start(*args, **more)

    monkeypatch.setattr(module.subprocess, "run", forking)
    try:
        writer = WriterProcess(plan(tmp_path), Problems())
        writer.write(next(parcels(1)), no_rest)
        del writer
        assert has_ended(manifest_path(tmp_path, 0), 20.0)
    finally:
        os.close(ends)
        os.close(lives)
        os.waitpid(children[0], 0)
    assert num_spans(tmp_path) == 1


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    """GIVEN a child that has the writer before it has begun, and closes it."""
    writer = WriterProcess(plan(tmp_path), Problems())
    child = os.fork()
    if not child:
        writer.write(next(parcels(1)), no_rest)
        writer.close()
        os._exit(len(writer.problems.texts))
    assert os.waitpid(child, 0) == (child, 0)
    writer.write(next(parcels(1)), no_rest)
    writer.close()
    assert (writer.problems.texts, num_spans(tmp_path)) == ((), 1)


class Phase(str, enum.Enum):  # noqa: UP042 - str() of it is no name
    """Names of spans that a program may have: text, but of a class that only the program knows."""

    FORWARD = "forward"


class Number(enum.IntEnum):
    THIRD = 3


def test_names_and_numbers_of_the_programs_own_classes(tmp_path: Path) -> None:
    meter = FakeMeter(source="cuda")
    options = RecordingOptions(run_dir=tmp_path, device="cuda:0", sample_interval_s=0.0)
    with recording(options, predicted=meter) as recorder:
        with span(Phase.FORWARD, step=Number.THIRD), span(Phase.FORWARD, index=True):
            meter.alloc(7)
    assert recorder.problems == ()
    (part,) = tmp_path.rglob("tables/spans/**/*.parquet")
    rows = pq.read_table(part).to_pylist()
    assert [(row["name"], row["path"], row["stage"], row["step"]) for row in rows] == [
        ("forward", "forward/forward", "forward", 3),
        ("forward", "forward", "forward", 3),
    ]


@pytest.mark.parametrize("value", [Phase.FORWARD, lambda: None], ids=["unknown there", "cannot be sent"])
def test_what_cannot_cross_is_told_and_counted_and_the_rest_is_written(tmp_path: Path, value: Any) -> None:
    writer = WriterProcess(plan(tmp_path), Problems())
    first, second, third = parcels(3)
    writer.write(first, no_rest)
    lost = second.num_events
    writer.write(replace(second, categories={2: value}), no_rest)
    num_before = writer.followed().num_lost_events
    writer.write(third, no_rest)
    writer.close()
    (text,) = writer.problems.texts
    assert text.startswith("what was recorded could not be sent to the process that writes it: ")
    assert num_before >= lost
    assert num_spans(tmp_path) == 2


def test_problems_of_the_process_are_counted_once(tmp_path: Path) -> None:
    """GIVEN more different problems than are kept."""
    writer = WriterProcess(plan(tmp_path), Problems())
    for number in range(MOST_PROBLEMS + 3):
        bad = replace(record(1, start=reading(), end=reading()), step=f"{number} no number")
        writer.write(Parcel(spans=[bad]), no_rest)  # type: ignore[arg-type]
    writer.write(Parcel(), no_rest)
    writer.close()
    assert len(writer.problems.texts) == MOST_PROBLEMS + 1
    assert writer.problems.texts[-1] == "3 more problems of the recording"


def test_sizes_that_no_column_takes_are_told_and_counted(tmp_path: Path) -> None:
    writer = WriterProcess(plan(tmp_path), Problems())
    writer.write(Parcel(batch=Batch([event("segment_alloc", 2**70, 7)], None)), no_rest)
    writer.write(next(parcels(1)), no_rest)
    writer.close()
    (text,) = writer.problems.texts
    assert text.startswith("events could not be written: ")
    assert writer.followed().num_lost_events >= 1
    assert num_spans(tmp_path) == 1


def test_the_process_imports_no_torch() -> None:
    code = (
        "import ray_memprof.recorder.writer_process, sys\n"
        "found = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names\n"
        "print(*sorted(found & {'torch', 'ray', 'duckdb', 'yaml', 'pydantic', 'pandas', 'jinja2'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
