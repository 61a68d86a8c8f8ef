"""How predict and plan end by a signal: the exit code, the folder of the run, and no process that stays."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
import yaml

from ray_memprof.errors import EXIT_DISK_FULL, EXIT_INTERRUPTED, EXIT_TERMINATED
from ray_memprof.predictor.command_end import ends_as_codes
from ray_memprof.predictor.processes import Processes
from ray_memprof.store.run_files import LATEST_LINK
from ray_memprof.store.run_json import run_facts

LONG_S = 600.0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that takes minutes to predict: its blocks have many chunks, and its steps are many."""
    path = tmp_path_factory.mktemp("config") / "long.yaml"
    mapping = {
        "name": "long",
        "model_config": {"task": "t2v-1.3B"},
        "generation": {"frame_num": 81, "sample_steps": 1000},
        "optimization": {"ffn_chunks": 500},
    }
    path.write_text(yaml.safe_dump(mapping), encoding="utf-8")
    return path


def until(holds: Callable[[], bool], seconds: float = 100.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def children(pid: int) -> list[Any]:
    return list(psutil.Process(pid).children(recursive=True))


@pytest.fixture
def begun(config: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A prediction in a session of its own, once its rank is being predicted."""
    command = [
        sys.executable,
        "-m",
        "ray_memprof.predict",
        str(config),
        "--gpu=H200",
        f"--output-dir={tmp_path}",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        until(lambda: any(tmp_path.glob("long/*/logs/*")))
        yield running
        running.kill()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("number", "to_all", "code", "word"),
    [
        (signal.SIGINT, True, EXIT_INTERRUPTED, "interrupted"),
        (signal.SIGTERM, False, EXIT_TERMINATED, "terminated"),
    ],
)
def test_a_signal_ends_all_processes_and_the_run_says_so(
    begun: subprocess.Popen[str], tmp_path: Path, number: int, to_all: bool, code: int, word: str
) -> None:
    others = children(begun.pid)
    assert len(others) >= 3  # a rank, the fork server, the one that looks after semaphores
    (os.killpg if to_all else os.kill)(begun.pid, number)
    _, errors = begun.communicate(timeout=100)
    assert begun.returncode == code
    assert errors == f"{word}\n"
    psutil.wait_procs(others, timeout=20)
    assert not [one for one in others if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    facts = run_facts((tmp_path / "long" / LATEST_LINK).resolve())
    assert facts is not None
    assert (facts["status"], facts["exit_code"]) == ("interrupted", code)


@pytest.mark.timeout(240)
def test_processes_end_with_the_one_that_started_them_though_it_is_killed(
    begun: subprocess.Popen[str],
) -> None:
    others = children(begun.pid)
    begun.kill()
    psutil.wait_procs(others, timeout=20)
    assert not [one for one in others if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.timeout(120)
def test_work_is_given_up_when_an_error_ends_the_block() -> None:
    class Unlucky(Exception):
        pass

    with pytest.raises(Unlucky), Processes(1) as processes:
        work = processes.call(time.sleep, LONG_S)
        until(work.running)
        raise Unlucky
    assert processes.is_stopped
    with pytest.raises(BrokenProcessPool):
        work.result(timeout=0)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, EXIT_INTERRUPTED, "interrupted"), (signal.SIGTERM, EXIT_TERMINATED, "terminated")],
)
def test_what_a_library_makes_of_a_signal_is_the_signal(
    number: int, code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(typer.Exit) as caught, ends_as_codes():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise RuntimeError("Query interrupted") from None  # as DuckDB does
    assert (caught.value.exit_code, capsys.readouterr().err) == (code, f"{word}\n")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_full_disk_is_a_line_and_a_bug_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, ends_as_codes():
        raise OSError(errno.ENOSPC, "No space left on device", "/runs/x")
    assert caught.value.exit_code == EXIT_DISK_FULL
    assert capsys.readouterr().err.startswith("error: this command: cannot write /runs/x: No space left")
    with pytest.raises(ZeroDivisionError), ends_as_codes():
        raise ZeroDivisionError
