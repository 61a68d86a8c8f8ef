"""Failure modes 1 to 4: a rank dies, is out of device memory, hangs, hangs so that it does not even answer.

The first run has a Ray of its own, as have those of the other files; all others join one that is there.
"""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from launcher import RANKS, config_of, joining, launch, rows_of, start, wait_until_gone
from ray.cluster_utils import Cluster

VERDICT_S = 15.0
"""From the fault to the verdict."""
DEAD_S = 10.0
"""From the verdict to the last process of a rank."""


def test_a_run_in_which_nothing_happens(tmp_path: Path) -> None:
    code, run = launch(tmp_path, config_of(tmp_path, args=["--steps", 3]))

    assert (code, *run.verdict()) == (0, 0, "ok", "")
    assert run.errors() == []
    assert run.living() == []
    assert {rank: rows > 0 for rank, rows in rows_of(run, "spans").items()} == dict.fromkeys(
        range(RANKS), True
    )
    assert (run.run_dir / "report.html").exists()
    # A run as short as this one may be over before its first step is seen.
    stages = [name for name in run.facts["stages_s"] if "first step" not in name]
    assert stages == ["ray", "places", "actors", "torch", "report"]
    logs = {path.name: path.read_text() for path in (run.run_dir / "logs").glob("rank*.log")}
    assert logs == {f"rank{rank}.log": f"rank {rank} of {RANKS} runs\ndone\n" for rank in range(RANKS)}
    # The console shows the first rank only.
    assert [line for _, line in run.lines if line.startswith("[rank")] == [
        f"[rank 0] rank 0 of {RANKS} runs",
        "[rank 0] done",
    ]


@pytest.mark.parametrize(
    ("fault", "detail", "ranks"),
    [("sigkill", "killed by SIGKILL", 3), ("segv", "killed by SIGSEGV", 2), ("exit", "exit code 17", 2)],
)
def test_1_process_dies(tmp_path: Path, shared: Cluster, fault: str, detail: str, ranks: int) -> None:
    struck, last = ["--fault", fault, "--at-step", 50, "--rest", 4], ranks - 1
    run = start(tmp_path, joining(tmp_path, shared, ranks=ranks, args=["--steps", 500, *struck]))
    run.wait_for(lambda: f"error: rank {last}" in run.text)
    assert wait_until_gone(run.rank_pids(), 2 * DEAD_S) < DEAD_S
    code = run.wait()

    exit_code, status, reason = run.verdict()
    assert (code, exit_code, status) == (10, 10, "died")
    assert reason == f"rank {last}: process died: {detail}"
    assert run.facts["culprits"] == [last]
    assert run.at(f"error: rank {last}: process died") - run.struck_at() < VERDICT_S
    assert run.living() == []
    assert run.errors()[0] == f"error: {reason}"
    assert "Traceback" not in run.text
    # The recorder flushes every 2 s; before the fault it has, and that is there, of the dead rank too.
    assert set(rows_of(run, "spans")) == set(range(ranks))
    assert (run.run_dir / "report.html").exists()


def test_2_device_out_of_memory_in_one_rank(tmp_path: Path, shared: Cluster) -> None:
    code, run = launch(tmp_path, joining(tmp_path, shared, args=["--steps", 500, "--fault", "oom"]))

    exit_code, status, reason = run.verdict()
    assert (code, exit_code, status) == (11, 11, "oom")
    assert reason.startswith("rank 1: device out of memory in script/denoise of step 3: allocated ")
    assert re.search(r", reserved [0-9.]+ (B|KiB|MiB), asked 2\.00 GiB$", reason), reason
    assert run.at("error: rank 1: device out of memory") - run.struck_at() < VERDICT_S
    assert run.living() == []
    # Sealed before the error left the rank: the span in which it happened is closed, as failed.
    assert failed_spans(run.run_dir, rank=1) == ["script/denoise", "script"]
    assert (run.run_dir / "report.html").exists()
    assert "OutOfMemoryError" in (run.run_dir / "logs" / "rank1.log").read_text()


def failed_spans(run_dir: Path, rank: int) -> list[str]:
    import pyarrow.parquet as pq

    parts = sorted((run_dir / "tables" / "spans" / f"rank={rank}").glob("part-*.parquet"))
    rows = [row for part in parts for row in pq.ParquetFile(part).read(["path", "failed"]).to_pylist()]
    return [row["path"] for row in rows if row["failed"]]


def test_2_any_other_error_keeps_its_name(tmp_path: Path, shared: Cluster) -> None:
    code, run = launch(tmp_path, joining(tmp_path, shared, args=["--steps", 500, "--fault", "error"]))

    assert (code, *run.verdict()) == (16, 16, "failed", "rank 1: ValueError: a wrong number: 42")
    assert run.errors() == [
        "error: rank 1: ValueError: a wrong number: 42",
        "hint: the traceback is in logs/rank1.log",
    ]
    assert "ValueError: a wrong number: 42" in (run.run_dir / "logs" / "rank1.log").read_text()


@pytest.mark.parametrize(
    ("error", "code", "reason", "hint"),
    [
        ("ValueError", 16, "ValueError: a prompt of no words", "the traceback is in logs/rank0.log"),
        ("WeightsError", 3, "t5.pth: cut off", "load it again"),
    ],
    ids=["any error", "an error with a code of its own"],
)
def test_2_error_of_the_first_rank_alone_while_the_others_wait_for_what_it_makes(
    tmp_path: Path, shared: Cluster, error: str, code: int, reason: str, hint: str
) -> None:
    arguments = ["--who", "first", "--error", error]
    ended, run = launch(tmp_path, joining(tmp_path, shared, script="once.py", args=arguments))

    assert (ended, *run.verdict()) == (code, code, "failed", f"rank 0: {reason}")
    assert run.facts["culprits"] == [0]
    assert run.errors() == [f"error: rank 0: {reason}", f"hint: {hint}"]
    assert run.at("error: rank 0: ") - run.struck_at() < 30  # and not process_group_s, half an hour
    assert run.living() == []


def test_2_error_of_every_rank_is_told_once(tmp_path: Path, shared: Cluster) -> None:
    arguments = ["--who", "all", "--error", "WeightsError"]
    # Ends as soon as all have told; on a busy host that is not within the usual second.
    config = joining(tmp_path, shared, ranks=3, script="once.py", args=arguments, timeouts={"grace_s": 20.0})
    code, run = launch(tmp_path, config)

    assert (code, *run.verdict()) == (3, 3, "failed", "ranks 0 to 2: t5.pth: cut off")
    assert run.facts["culprits"] == [0, 1, 2]
    assert run.errors() == ["error: ranks 0 to 2: t5.pth: cut off", "hint: load it again"]
    assert run.text.count("t5.pth") == 1


STALL_S = 3.0
STALL = {"stall_s": STALL_S}


def test_3_hang_of_a_rank_that_answers(tmp_path: Path, shared: Cluster) -> None:
    arguments = ["--steps", 500, "--fault", "sleep", "--at-step", 30]
    code, run = launch(tmp_path, joining(tmp_path, shared, ranks=3, args=arguments, timeouts=STALL))

    exit_code, status, reason = run.verdict()
    assert (code, exit_code, status) == (12, 12, "hung")
    assert reason.startswith("rank 2 in no collective while the others wait: File ")
    assert "in strike" in reason
    assert run.facts["culprits"] == [2]
    assert run.at("error: rank 2") - run.struck_at() < STALL_S + 15
    stacks = {path.name: path.read_text() for path in (run.run_dir / "logs").glob("*.stack.txt")}
    inside = {name: "distributed_c10d.py" in stack for name, stack in stacks.items()}
    assert inside == {f"rank{rank}.stack.txt": rank != 2 for rank in range(3)}
    assert run.living() == []


@pytest.mark.parametrize("fault", ["gil", "sigstop"])
def test_4_hang_of_a_rank_that_does_not_answer(tmp_path: Path, shared: Cluster, fault: str) -> None:
    arguments = ["--steps", 500, "--fault", fault, "--at-step", 30]
    code, run = launch(tmp_path, joining(tmp_path, shared, args=arguments, timeouts=STALL))

    reason = "rank 1 does not answer; no rank made progress for 3 s"
    assert (code, *run.verdict()) == (12, 12, "hung", reason)
    assert run.facts["culprits"] == [1]
    assert run.at("error: rank 1") - run.struck_at() < STALL_S + 15
    assert run.living() == []
    assert (
        run.ended_at - run.at("error: rank 1") < 10 + 20
    )  # the ranks within 10 s, then the report and Ray's own end


def test_3_a_rank_whose_child_works_is_waited_for(tmp_path: Path, shared: Cluster) -> None:
    """GIVEN a rank that waits for a program of its own for far longer than a standstill may last THEN all is well."""
    limits = {"stall_s": 4.0}
    code, run = launch(
        tmp_path, joining(tmp_path, shared, args=["--steps", 5, "--fault", "child"], timeouts=limits)
    )

    assert (code, *run.verdict()) == (0, 0, "ok", "")


def test_4_a_rank_that_renamed_itself_is_ended(tmp_path: Path, shared: Cluster) -> None:
    limits = {"stall_s": 5.0}
    code, run = launch(tmp_path, joining(tmp_path, shared, args=["--fault", "renamed"], timeouts=limits))

    assert (code, run.facts["culprits"]) == (12, [1])
    assert run.living() == []
    assert run.facts["problems"] == []


def test_3_a_launcher_that_was_itself_stopped_blames_nobody(tmp_path: Path, shared: Cluster) -> None:
    """GIVEN a launcher that is stopped for longer than a standstill may last, as a suspended terminal does it."""
    stall_s = 5.0
    limits = {"stall_s": stall_s}
    run = start(tmp_path, joining(tmp_path, shared, args=["--steps", 600], timeouts=limits))
    run.wait_for(lambda: "runs" in run.text)
    os.kill(run.process.pid, signal.SIGSTOP)
    time.sleep(1.5 * stall_s)
    os.kill(run.process.pid, signal.SIGCONT)

    assert run.wait() == 0
    assert run.verdict() == (0, "ok", "")
