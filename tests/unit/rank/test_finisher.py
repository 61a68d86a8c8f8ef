"""What completes a run in the background: started once, out of the reach of the job's signals."""

import os
import sys
import time
from pathlib import Path

import pytest

from ray_memprof.rank import finisher
from ray_memprof.rank.finisher import finish_later, finished
from ray_memprof.store.run_files import FINISH_LOG

SAYS = "import os, sys; print(os.getsid(0), os.getpid(), sys.argv[1], sys.stdin.read()); print('x', file=sys.stderr)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def command(run_dir: Path) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", SAYS, str(run_dir)], dict(os.environ)

    monkeypatch.setattr(finisher, "_command", command)
    (tmp_path / FINISH_LOG).parent.mkdir()
    return tmp_path


def lines_of(log: Path) -> list[str]:
    """What stands in the log in the end."""
    until = time.monotonic() + 30
    while len(lines := log.read_text().splitlines()) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    return lines


def test_the_first_rank_that_asks_starts_it_in_a_session_of_its_own(folder: Path) -> None:
    log = finish_later(folder)
    assert log == folder / FINISH_LOG
    said, _ = sorted(lines_of(log))
    session, pid, run_dir = said.split()
    assert (session, run_dir) == (pid, str(folder))
    assert int(pid) != os.getpid()
    assert finish_later(folder) is None


def test_who_waits_for_it_hears_all_that_it_says(folder: Path) -> None:
    said, error = sorted(finished(folder))
    assert (said.split()[2], error) == (str(folder), "x")


def test_the_command_is_ours_and_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_MEMPROF", "1")
    monkeypatch.setenv("PYTHONPATH", "theirs")
    command, environ = finisher._command(tmp_path)
    assert command[1:6] == ["-P", "-m", "ray_memprof.cli", "finish", str(tmp_path)]
    assert "RAY_MEMPROF" not in environ
    ours, theirs = environ["PYTHONPATH"].split(os.pathsep)
    assert (Path(ours) / "ray_memprof" / "cli.py").is_file() or (Path(ours) / "ray_memprof" / "cli").is_dir()
    assert theirs == "theirs"
