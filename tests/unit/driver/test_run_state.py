"""What the driver records of a run, and what becomes of an error on the way."""

import json
from pathlib import Path

import pytest

from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.ending import ending, settle, summary
from ray_memprof.driver.interrupts import Abandoned, Interrupted, Interrupts
from ray_memprof.driver.live import Live
from ray_memprof.driver.run_state import RunState
from ray_memprof.errors import DiskFull, GpusBusy
from ray_memprof.rank.messages import Outcome, RankFacts
from ray_memprof.recorder.status import Beat, ReplayCheck
from ray_memprof.store.run_folder import RunFolder
from ray_memprof.store.schema import RANKS, RUNS
from ray_memprof.supervision.verdict import Loss, Verdict

CHECK = ReplayCheck(**{name: number for number, name in enumerate(ReplayCheck.__dataclass_fields__)})
DIED = Verdict(status="died", exit_code=10, reason="rank 1: process died", hint="see the log", ranks=(1,))


def record_of(tmp_path: Path, *, ranks: int = 0) -> RunState:
    config = RunConfig(name="test", ranks=max(ranks, 1), logging={"output_dir": tmp_path})
    state = RunState.begin(config)
    state.facts = [
        RankFacts(node_id="ab"[rank // 2], host="h", node_ip="1", pid=rank, gpu_index=rank)
        for rank in range(ranks)
    ]
    return state


def live(state: RunState) -> Live:
    return Live(state.config, 1, plain=True)


def run_json(state: RunState) -> dict[str, object]:
    facts = json.loads((state.folder.path / "run.json").read_text())
    return {name: facts[name] for name in ("status", "exit_code", "reason", "hint", "culprits")}


def test_run_that_never_had_ranks(tmp_path: Path) -> None:
    state = record_of(tmp_path)
    state.settle(Verdict(status="never_started", exit_code=21, reason="busy"))

    assert state.rank_rows() == []
    row = state.run_row()
    # The tables take what schema.py names; the version is added where they are written.
    assert set(row) | {"schema_version"} == {column.name for column in RUNS.columns}
    assert (row["status"], row["exit_code"], row["reason"], row["source"]) == (
        "never_started",
        21,
        "busy",
        "cuda",
    )
    assert row["end_ns"] >= row["start_ns"] > 0


def test_rows_of_ranks(tmp_path: Path) -> None:
    """GIVEN one rank that told, one that is to blame, one that died beside it and one that was ended with the run."""
    beat = Beat(
        rank=3,
        sequence=9,
        path="denoise/dit.block",
        stage="denoise",
        step=0,
        num_steps=5,
        allocated_bytes=0,
        reserved_bytes=0,
        device_used_bytes=0,
    )
    told = Outcome(
        rank=0,
        status="failed",
        exit_code=16,
        reason="RuntimeError: reset",
        path="decode",
        step=-1,
        oom_by="NCCL",
        oom_free_bytes=0,
        check=CHECK,
    )
    state = record_of(tmp_path, ranks=4)
    state.settle(
        Verdict(
            status="died",
            exit_code=10,
            reason="rank 1: process died",
            ranks=(1,),
            outcomes={0: told},
            losses={2: Loss(rank=2, kind="host_oom", detail="full")},
            beats={3: beat},
        )
    )
    rows = state.rank_rows()

    assert {frozenset(row) for row in rows} == {frozenset(column.name for column in RANKS.columns) | {"rank"}}
    assert [(row["oom_by"], row["oom_free_bytes"]) for row in rows] == [("NCCL", 0), *[(None, None)] * 3]
    names = ("rank", "node", "local_rank", "status", "exit_code", "reason", "path", "step", "recorder_bytes")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (0, 0, 0, "failed", 16, "RuntimeError: reset", "decode", -1, CHECK.recorder_bytes),
        (1, 0, 1, "died", 10, "rank 1: process died", "", -1, 0),
        (2, 1, 0, "host_oom", 10, "full", "", -1, 0),
        (3, 1, 1, "interrupted", 10, "ended with the run: rank 1: process died", "denoise/dit.block", 0, 0),
    ]


def test_what_a_workload_set_itself_is_recorded_too(tmp_path: Path) -> None:
    state = record_of(tmp_path, ranks=2)
    state.environment = {"NCCL_BUFFSIZE": "1048576", "RANK": "0"}
    ends = {
        rank: Outcome(rank=rank, status="ok", environment={"NCCL_BUFFSIZE": str(2**rank)}) for rank in (0, 1)
    }
    state.settle(Verdict(status="ok", exit_code=0, reason="", outcomes=ends))

    assert json.loads(state.run_row()["environment"]) == {"NCCL_BUFFSIZE": "1", "RANK": "0"}


def test_what_went_wrong_with_recording_is_in_run_json_by_rank_and_once(tmp_path: Path) -> None:
    state = record_of(tmp_path, ranks=2)
    state.problems = ["gap"]
    ends = {
        1: Outcome(rank=1, status="ok", problems=("memory could not be read: KeyError", "no events")),
        0: Outcome(rank=0, status="ok", problems=("no events",)),
    }
    for _ in range(2):
        state.settle(Verdict(status="ok", exit_code=0, reason="", outcomes=ends))
    told = [
        "gap", "rank 0: no events", "rank 1: memory could not be read: KeyError", "rank 1: no events"
    ]  # fmt: skip
    assert state.problems == state.folder.facts["problems"] == told


def test_the_seconds_of_each_stage_are_kept_as_far_as_the_run_came(tmp_path: Path) -> None:
    state = record_of(tmp_path)
    state.stages_s["ray"] = 3.5
    state.settle(DIED)
    assert json.loads((state.folder.path / "run.json").read_text())["stages_s"] == {"ray": 3.5}
    state.stages_s["report"] = 1.25
    state.note()
    facts = json.loads((state.folder.path / "run.json").read_text())
    assert facts["stages_s"] == {"ray": 3.5, "report": 1.25}


def test_stacks_are_kept(tmp_path: Path) -> None:
    state = record_of(tmp_path)
    state.settle(Verdict(status="hung", exit_code=12, reason="r", stacks={2: "File x\n"}))

    assert (state.folder.path / "logs" / "rank2.stack.txt").read_text() == "File x\n"


@pytest.mark.parametrize(
    ("error", "status", "code", "reason"),
    [
        (GpusBusy("others hold them", hint="wait"), "never_started", 21, "others hold them"),
        (Interrupted(15), "interrupted", 143, "interrupted by SIGTERM"),
        (Abandoned(2), "interrupted", 130, "interrupted by SIGINT"),
        (KeyError("x"), "failed", 1, "internal error: KeyError: 'x'"),
    ],
)
def test_error_on_the_way_becomes_the_verdict(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: str,
    code: int,
    reason: str,
) -> None:
    state = record_of(tmp_path)
    screen = live(state)
    with ending(state, screen, Interrupts(screen.say)):
        raise error

    facts = run_json(state)
    assert (facts["status"], facts["exit_code"], facts["reason"], state.exit_code) == (
        status,
        code,
        reason,
        code,
    )
    assert capsys.readouterr().err.splitlines()[0] == f"error: {reason}"
    assert state.is_abandoned == isinstance(error, Abandoned)
    assert (state.folder.path / "logs" / "driver.log").exists() == isinstance(error, KeyError)


def test_an_error_of_our_own_behind_a_run_that_ended_well_leaves_its_ranks_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report that cannot be made takes no run out of later comparisons; the exit code tells of it."""
    state = record_of(tmp_path, ranks=2)
    screen = live(state)
    outcomes = {rank: Outcome(rank=rank, status="ok") for rank in (0, 1)}
    settle(state, Verdict(status="ok", outcomes=outcomes), screen)
    with ending(state, screen, Interrupts(screen.say)):
        raise KeyError("x")

    facts = run_json(state)
    assert (facts["status"], facts["exit_code"], state.exit_code) == ("ok", 1, 1)
    assert facts["reason"] == "internal error: KeyError: 'x'" and "ray-memprof finish" in str(facts["hint"])
    assert [row["status"] for row in state.rank_rows()] == ["ok", "ok"]
    assert capsys.readouterr().err.splitlines()[0] == "error: internal error: KeyError: 'x'"
    assert (state.folder.path / "logs" / "driver.log").exists()


def test_the_second_signal_is_no_bug_whatever_compiled_code_makes_of_it(tmp_path: Path) -> None:
    state = record_of(tmp_path)
    screen = live(state)
    interrupts = Interrupts(screen.say)
    with ending(state, screen, interrupts):
        interrupts.last_signal = 2
        raise SystemError("wait returned a result with an exception set") from Abandoned(2)
    assert (state.exit_code, state.is_abandoned, run_json(state)["reason"]) == (
        130,
        True,
        "interrupted by SIGINT",
    )
    assert not (state.folder.path / "logs" / "driver.log").exists()


def test_the_second_signal_while_the_verdict_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = record_of(tmp_path)
    screen = live(state)
    with ending(state, screen, Interrupts(screen.say)):
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "note", lambda self, **facts: (_ for _ in ()).throw(Abandoned(2)))
            settle(
                state, Verdict(status="interrupted", exit_code=130, reason="interrupted by SIGINT"), screen
            )
    assert run_json(state)["status"] == "interrupted"
    assert (state.exit_code, state.is_abandoned, state.problems) == (130, True, [])


def test_first_failure_stays_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = record_of(tmp_path)
    screen = live(state)
    with ending(state, screen, Interrupts(screen.say)):
        settle(state, DIED, screen)
        raise DiskFull("no room", hint="make room")

    assert run_json(state) == {
        "status": "died",
        "exit_code": 10,
        "reason": "rank 1: process died",
        "hint": "see the log",
        "culprits": [1],
    }
    assert capsys.readouterr().err.splitlines() == ["error: rank 1: process died", "hint: see the log"]
    assert summary(state) == ["test: died, exit 10", "warning: no room", f"run folder: {state.folder.path}"]


def test_good_run_whose_records_could_not_be_written_is_none(tmp_path: Path) -> None:
    state = record_of(tmp_path)
    screen = live(state)
    with ending(state, screen, Interrupts(screen.say)):
        settle(state, Verdict(status="ok"), screen)
        raise DiskFull("no room", hint="make room")

    assert run_json(state)["exit_code"] == state.exit_code == 15
