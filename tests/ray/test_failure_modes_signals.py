"""Failure mode 9: the driver is interrupted, once, twice, or killed."""

import os
import signal
import time
from pathlib import Path

import pytest
from launcher import RANKS, Launch, config_of, launch, rows_of, start, wait_until_gone

RUNNING = "runs"


def running(tmp_path: Path, name: str = "test") -> Launch:
    """A run in the middle of its loop, with something recorded."""
    run = start(tmp_path, config_of(tmp_path, name=name, args=["--steps", 5000]))
    run.wait_for(lambda: len(run.rank_pids()) == RANKS and "first step" in run.text)
    time.sleep(3)  # longer than the recorder keeps rows to itself
    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_9_first_signal(tmp_path: Path, number: signal.Signals, code: int) -> None:
    run = running(tmp_path)
    began = time.time()
    os.kill(run.process.pid, number)

    assert wait_until_gone(run.rank_pids(), 12) < 10
    assert run.wait() == code
    assert run.ended_at - began < 20
    assert run.verdict() == (code, "interrupted", f"interrupted by {number.name}")
    stages_s = run.facts["stages_s"]
    assert stages_s["launch to first step"] > stages_s["first step"] > 0
    rows = rows_of(run, "spans")
    assert {rank: num > 0 for rank, num in rows.items()} == dict.fromkeys(range(RANKS), True)
    assert (run.run_dir / "report.html").exists()
    assert "Traceback" not in run.text


def test_9_second_signal(tmp_path: Path) -> None:
    run = running(tmp_path)
    os.kill(run.process.pid, signal.SIGINT)
    run.wait_for(lambda: "a second signal ends at once" in run.text)
    began = time.time()
    os.kill(run.process.pid, signal.SIGINT)

    assert run.wait() == 130
    assert run.ended_at - began < 15  # not the minute that collecting may take
    assert "what is not collected yet stays where it is" in run.text
    assert not (run.run_dir / "report.html").exists()
    assert run.facts["status"] == "interrupted"
    assert wait_until_gone(run.rank_pids(), 12) < 10


def test_9_signal_while_ranks_start(tmp_path: Path) -> None:
    run = start(tmp_path, config_of(tmp_path))
    run.wait_for(lambda: "  ray: " in run.text)
    began = time.time()
    os.kill(run.process.pid, signal.SIGTERM)

    assert run.wait() == 143
    assert run.ended_at - began < 20
    assert run.verdict() == (143, "interrupted", "interrupted by SIGTERM")


def test_9_driver_killed(tmp_path: Path) -> None:
    run = running(tmp_path)
    run.process.kill()

    assert wait_until_gone(run.rank_pids(), 15) < 12
    assert run.facts["status"] == "running"
    code, after = launch(tmp_path, config_of(tmp_path, name="after", ranks=2, args=["--steps", 2]))
    assert (code, *after.verdict()) == (0, 0, "ok", "")
