"""The state of a run that has not ended: it goes on, or its driver is gone; in query, diagnose and report."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_tables import answer, make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.analysis.comparison.compare import compare
from ray_memprof.analysis.comparison.text import warnings
from ray_memprof.analysis.diagnosis.findings import diagnosed, found_text
from ray_memprof.cli import app
from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.ending import _note_progress
from ray_memprof.driver.run_state import RunState
from ray_memprof.errors import ConfigError
from ray_memprof.recorder.status import Beat
from ray_memprof.report import run_page
from ray_memprof.store.processes import process_facts, started
from ray_memprof.store.standing import Standing, standing

NOW_NS = 1_800_000_000 * 10**9
SPANS = {"spans": [span(1, "denoise", (0, 10), step=0, allocated=(0, 0, 2**30))]}


def gone() -> dict[str, Any]:
    """A process of this host that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return {"host": socket.gethostname(), "pid": done.pid, "started": 1}


def a_run(folder: Path, **facts: Any) -> Path:
    """A run folder as a driver leaves it before the run has ended; `facts` go on top of those of run.json."""
    make_run(folder, {0: SPANS})
    known = {"run_id": folder.name, "name": folder.parent.name, "num_ranks": 2, "status": "running"}
    known |= {"start_ns": NOW_NS - 10**9, "driver": process_facts()}
    (folder / "run.json").write_text(json.dumps({**known, **facts}))
    (folder / "config.yaml").write_text("workload: script\nmodel_config:\n  device: cpu\n")
    return folder


def at(step: int, num_steps: int, *, stage: str = "denoise", ago_s: float = 1) -> dict[str, Any]:
    return {"stage": stage, "step": step, "num_steps": num_steps, "t_ns": int(NOW_NS - ago_s * 10**9)}


def test_a_folder_without_run_json_does_not_stand_anywhere(tmp_path: Path) -> None:
    assert standing(make_run(tmp_path, {0: SPANS})) is None
    assert answer(tmp_path, "run_overview") == []


@pytest.mark.parametrize(
    ("progress", "reason"),
    [
        (None, "before its first step"),
        (at(-1, -1, stage="encode.text"), "in encode.text"),
        (at(11, 50), "step 12 of 50"),
        (at(11, -1), "step 12"),
        (at(0, 3, ago_s=29), "step 1 of 3"),
        (at(0, 3, ago_s=45), "step 1 of 3, last sign of life 45 s ago"),
        (at(0, 3, ago_s=300), "step 1 of 3, last sign of life 5 min ago"),
        (at(0, 3, ago_s=10_000), "step 1 of 3, last sign of life 3 h ago"),
        (at(0, 3, ago_s=400_000), "step 1 of 3, last sign of life 5 d ago"),
    ],
)
def test_how_far_a_run_is(tmp_path: Path, progress: dict[str, Any] | None, reason: str) -> None:
    run_dir = a_run(tmp_path, progress=progress)
    last_ns = progress["t_ns"] if progress else NOW_NS - 10**9
    found = standing(run_dir, NOW_NS)
    assert found == Standing("running", reason, last_ns)
    assert found.text == f"running, {reason}"


def test_of_a_program_that_its_ranks_record_themselves_only_the_time_is_known(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path / "a", started_by="record")
    found = standing(run_dir, NOW_NS + 299 * 10**9)
    assert found is not None and found.text == "running, for 5 min now"
    found = standing(a_run(tmp_path / "b", started_by="record", driver=gone()), NOW_NS)
    assert found is not None and found.text == "unknown: its driver ended before the run did"


def test_a_driver_that_was_killed_does_not_run_for_ever(tmp_path: Path) -> None:
    reused = {**process_facts(), "started": started(os.getpid()) - 1000}
    for number, driver in enumerate((gone(), reused)):
        run_dir = a_run(tmp_path / str(number), driver=driver, progress=at(3, 9))
        found = standing(run_dir, NOW_NS)
        assert found is not None
        assert found.text == "unknown: its driver ended before the run did"
        assert diagnosed(run_dir).ending == found.text


def test_of_another_host_nobody_knows_more_than_the_last_sign_of_life(tmp_path: Path) -> None:
    elsewhere = {"host": "elsewhere", "pid": os.getpid(), "started": 1}
    found = standing(a_run(tmp_path, driver=elsewhere, progress=at(3, 9, ago_s=3600)), NOW_NS)
    assert found is not None and found.text == "running, step 4 of 9, last sign of life 60 min ago"


def test_a_run_that_has_ended_is_what_its_tables_say(tmp_path: Path) -> None:
    run_dir = make_ranks(a_run(tmp_path, status="ok"), {}, status="ok", run_id="r")
    assert standing(run_dir) is None
    assert answer(run_dir, "run_overview")[0][8] == "ok"


def test_run_json_that_cannot_be_read_is_told_in_a_line(tmp_path: Path) -> None:
    (a_run(tmp_path) / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json cannot be read: "):
        standing(tmp_path)


def test_every_answer_says_that_the_run_is_still_going_on(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path / "job" / "r1", progress=at(11, 50, ago_s=0) | {"t_ns": 2**62})
    (row,) = answer(run_dir, "run_overview")
    assert row[:5] == ("r1", "job", "cpu", "script", 1)
    assert row[8:10] == ("running", "step 12 of 50")
    told = found_text([diagnosed(run_dir)])
    assert told.startswith(
        "the run is still going on (running, step 12 of 50); what follows is of the time until now\n"
    )
    page = run_page.render(run_dir)
    assert "The run is still going on" in page and "running, step 12 of 50." in page
    assert "failed" not in page.split("</section>")[0]
    answered = CliRunner().invoke(app, ["query", "peak_by_rank", str(run_dir)])
    assert answered.exit_code == 0
    assert answered.stderr == (
        "note: job/r1: running, step 12 of 50; this is only what was recorded until now\n"
    )


def test_a_limit_is_not_held_against_a_run_that_goes_on(tmp_path: Path) -> None:
    base = make_ranks(make_run(tmp_path / "a" / "r", {0: SPANS}), {}, status="ok", num_ranks=1)
    going = a_run(tmp_path / "b" / "r", progress=at(1, 2) | {"t_ns": 2**62})
    with pytest.raises(
        ConfigError, match=r"^b has not ended \(running\): its figures cannot be checked against a limit"
    ):
        compare([base, going], ["peak_allocated > +2%"])
    assert list(warnings(compare([base, going]))) == [
        "warning: b has not ended (running: step 2 of 2): its figures end there"
    ]


def test_the_driver_notes_itself_and_how_far_the_lowest_rank_is(tmp_path: Path) -> None:
    config = RunConfig(name="test", ranks=2, logging={"output_dir": tmp_path})
    state = RunState.begin(config)
    assert standing(state.folder.path) == Standing(
        "running", "before its first step", state.folder.facts["start_ns"]
    )
    sizes = {"allocated_bytes": 0, "reserved_bytes": 0, "device_used_bytes": 0, "sequence": 1}
    beats = {
        rank: Beat(rank=rank, path="denoise", stage="denoise", step=5 - rank, num_steps=9, **sizes)
        for rank in (2, 1)
    }
    _note_progress(state, beats)
    found = standing(state.folder.path)
    assert found is not None and found.text == "running, step 5 of 9"
    facts = json.loads((state.folder.path / "run.json").read_text())
    assert facts["driver"] == process_facts()
