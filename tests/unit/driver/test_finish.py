"""Runs that are made whole later: from a killed launcher's folder, and from copies of other hosts' folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_tables import make_run, span
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.elsewhere import Elsewhere
from ray_memprof.driver.finish import finish
from ray_memprof.driver.run_state import RunState
from ray_memprof.errors import ConfigError
from ray_memprof.rank.messages import RankFacts
from ray_memprof.supervision.verdict import Verdict

NUM_SPANS = {0: 2, 1: 3}
LOST = Verdict(status="lost", exit_code=13, reason="node host2 lost, with rank 1", ranks=(1,))


def gone() -> int:
    """A process id that nobody has."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def rows(rank: int) -> dict[str, list[dict[str, object]]]:
    return {
        "spans": [
            span(number, f"stage{number}", (number, number + 1), allocated=(1, 2, rank + 3))
            for number in range(1, NUM_SPANS[rank] + 1)
        ]
    }


def run_of(tmp_path: Path) -> RunState:
    """Two ranks on two hosts; rank 0 wrote into the run folder, rank 1 to a folder of its own host."""
    config = RunConfig(
        name="test",
        workload="script",
        script={"path": tmp_path / "x.py"},
        ranks=2,
        logging={"output_dir": tmp_path},
    )
    state = RunState.begin(config)
    state.facts = [
        RankFacts(
            node_id="ab"[rank], host=f"host{rank + 1}", node_ip=f"10.0.0.{rank + 1}", pid=7, gpu_index=rank
        )
        for rank in range(2)
    ]
    state.elsewhere = [
        Elsewhere(host="host2", node_ip="10.0.0.2", folder=Path("/tmp/x") / state.folder.run_id, ranks=(1,))
    ]
    state.note()
    make_run(state.folder.path, {0: rows(0)})
    return state


def copy_of(state: RunState, tmp_path: Path, rank: int = 1) -> Path:
    """What a rank wrote on its own host."""
    folder = tmp_path / "copies" / state.folder.run_id
    make_run(folder, {rank: rows(rank)})
    (folder / "logs").mkdir()
    (folder / "logs" / f"rank{rank}.log").write_text("its last words\n")
    return folder


def launched_by(state: RunState, pid: int) -> None:
    state.folder.note(driver={**state.folder.facts["driver"], "pid": pid})


def num_spans(run_dir: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for part in sorted(run_dir.glob("tables/spans/rank=*/part-*.parquet")):
        rank = int(part.parent.name.removeprefix("rank="))
        found[rank] = found.get(rank, 0) + pq.read_metadata(part).num_rows
    return found


def facts_of(state: RunState) -> dict[str, object]:
    return dict(json.loads((state.folder.path / "run.json").read_text()))


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    state = run_of(tmp_path)
    before = sorted(state.folder.path.rglob("*"))
    with pytest.raises(ConfigError, match=f"is running.*: its launcher is process {os.getpid()}"):
        finish(state.folder.path)
    assert sorted(state.folder.path.rglob("*")) == before


def test_a_number_that_another_process_has_by_now_is_no_launcher(tmp_path: Path) -> None:
    state = run_of(tmp_path)
    state.folder.note(driver={**state.folder.facts["driver"], "started": 1})
    assert finish(state.folder.path, [copy_of(state, tmp_path)])


def test_what_a_killed_launcher_left_becomes_a_run(tmp_path: Path) -> None:
    state = run_of(tmp_path)
    launched_by(state, gone())
    folder = copy_of(state, tmp_path)
    (state.folder.path / "live.json").write_text("{}")
    lines = finish(state.folder.path, [folder])

    assert num_spans(state.folder.path) == NUM_SPANS
    assert not (state.folder.path / "live.json").exists()  # nobody is at work there
    facts = facts_of(state)
    assert (facts["status"], facts["exit_code"]) == ("interrupted", 137)
    assert facts["reason"] == "the launcher ended without a verdict: it was killed, or its host was"
    assert (facts["elsewhere"], facts["problems"]) == ([], [])
    ranks = pq.read_table(state.folder.path / "tables" / "ranks" / "rank=1").to_pylist()
    assert [(one["host"], one["status"]) for one in ranks] == [("host2", "interrupted")]
    assert [line.partition(":")[0] for line in lines[:2]] == ["rank 0", "rank 1"]
    for name in ("run.duckdb", "report.html", "memory_events.json", "logs/rank1.log"):
        assert (state.folder.path / name).is_file(), name


def test_what_a_lost_host_held_comes_from_a_copy_and_the_verdict_stays(tmp_path: Path) -> None:
    state = run_of(tmp_path)
    state.problems = [
        "rank 1: not all came from host2:/tmp/x: the node is lost",
        "rank 1: recorded nothing: there is no manifest-rank=1.jsonl",
        "rank 0: the process that writes its records still works: only what it has sealed is there",
        "rank 0: the last 9 bytes of spans cannot be read",
    ]
    state.settle(LOST)
    state.note()
    finish(state.folder.path, [copy_of(state, tmp_path)])

    facts = facts_of(state)
    assert (facts["status"], facts["exit_code"], facts["reason"]) == ("lost", 13, LOST.reason)
    assert facts["problems"] == ["rank 0: the last 9 bytes of spans cannot be read"]
    assert facts["elsewhere"] == []
    assert num_spans(state.folder.path) == NUM_SPANS


def test_running_it_again_changes_nothing(tmp_path: Path) -> None:
    state = run_of(tmp_path)
    state.settle(LOST)
    folder = copy_of(state, tmp_path)
    first = finish(state.folder.path, [folder])
    facts = facts_of(state)
    assert finish(state.folder.path, [folder]) == first
    assert finish(state.folder.path) == first
    assert facts_of(state) == facts
    assert num_spans(state.folder.path) == NUM_SPANS


@pytest.mark.parametrize("fault", ["another run", "empty", "the run itself"])
def test_a_folder_that_is_not_one_of_its_hosts_is_refused(tmp_path: Path, fault: str) -> None:
    state = run_of(tmp_path)
    state.settle(LOST)
    folder = copy_of(state, tmp_path)
    if fault == "another run":
        folder = folder.rename(folder.with_name("20250101-000000-ffff"))
    elif fault == "empty":
        shutil.rmtree(folder / "tables")
    else:
        folder = state.folder.path
    before = state.elsewhere[0].facts()
    with pytest.raises(ConfigError, match="--from"):
        finish(state.folder.path, [folder])
    assert facts_of(state)["elsewhere"] == [{**before, "ranks": [1]}]


def test_a_ray_of_its_own_is_gone(tmp_path: Path) -> None:
    state = run_of(tmp_path)
    state.settle(LOST)
    with pytest.raises(ConfigError, match="a Ray of its own, which is gone") as raised:
        finish(state.folder.path)
    assert "--from" in raised.value.hint


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    state = run_of(tmp_path)
    state.settle(LOST)
    told = CliRunner().invoke(
        app, ["finish", str(state.folder.path), "--from", str(copy_of(state, tmp_path))]
    )
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines()[-1] == f"report: {state.folder.path / 'report.html'}"
