"""A run without a launcher is completed from what its ranks left."""

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from run_tables import make_run, span

from ray_memprof.driver.recorded import complete, is_recorded
from ray_memprof.errors import ConfigError
from ray_memprof.query import database
from ray_memprof.store.processes import started
from ray_memprof.store.run_folder import RunFolder

CONFIG = "name: nano\nworkload: script\nscript: {path: train.py}\nmodel_config: {device: cpu}\n"


def make(tmp_path: Path, *ranks: dict[str, Any] | None) -> Path:
    """A run whose ranks say this of themselves; None: not a word."""
    folder = RunFolder.create(tmp_path, "nano", config_text=CONFIG, num_ranks=len(ranks))
    folder.note(started_by="record")
    for rank, told in enumerate(ranks):
        if told is not None:
            make_run(folder.path, {rank: {"spans": [span(1, "script", (0, 9), allocated=(0, 0, 10 + rank))]}})
            about = {
                "rank": rank,
                "host": "a",
                "pid": 4,
                "started": 1,
                "local_rank": rank,
                "status": "running",
            }
            (folder.path / f"logs/rank{rank}.json").write_text(json.dumps(about | told))
    return folder.path


def ok(end_ns: int = 50, **more: Any) -> dict[str, Any]:
    return {"status": "ok", "exit_code": 0, "reason": "", "end_ns": end_ns, **more}


def failed(reason: str, end_ns: int = 50, exit_code: int = 1) -> dict[str, Any]:
    return ok(end_ns) | {"status": "failed", "exit_code": exit_code, "reason": reason}


def verdict(run_dir: Path) -> tuple[Any, ...]:
    facts = RunFolder.open(run_dir).facts
    return tuple(facts[name] for name in ("status", "exit_code", "reason", "culprits"))


PEER = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer"
KILLED = {"host": socket.gethostname(), "pid": 2**22 + 1}


def test_ranks_that_ended_well(tmp_path: Path) -> None:
    run_dir = make(tmp_path, ok(60, gpu_name="H"), ok(70))
    assert is_recorded(run_dir)
    lines = complete(run_dir)
    assert lines[0] == "nano: ok"
    assert lines[-1] == f"report: {run_dir / 'report.html'}"
    assert verdict(run_dir) == ("ok", 0, "", [])
    (row,) = database.query(run_dir, "run_overview").to_pylist()
    assert (row["num_ranks"], row["gpu_name"], row["workload"], row["source"]) == (2, "H", "script", "cpu")
    peaks = database.query(run_dir, "peak_by_rank").to_pylist()
    assert [one["allocated_peak_bytes"] for one in peaks] == [10, 11]
    assert RunFolder.open(run_dir).facts["end_ns"] == 70


def test_completing_it_again_changes_nothing(tmp_path: Path) -> None:
    run_dir = make(tmp_path, ok(), failed("ValueError: no luck"))
    first = complete(run_dir)
    facts = RunFolder.open(run_dir).facts
    assert complete(run_dir) == first
    assert RunFolder.open(run_dir).facts == facts


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        # The first error of a rank's own counts, whatever others lost.
        (
            (failed(PEER, 40), failed("ValueError: late", 60, 3), failed("KeyError: 'x'", 55, 7)),
            ("failed", 7, "rank 2: KeyError: 'x'", [1, 2]),
        ),
        # The starter killed the rank that had no word of its own.
        ((KILLED, failed("ValueError: no luck")), ("failed", 1, "rank 1: ValueError: no luck", [1])),
        # Here it is what the others lost.
        ((failed(PEER), KILLED), ("died", 10, "rank 1: process died: ", [1])),
        # A starter that lost a rank sends the others away.
        (
            (failed("exit code 143", exit_code=143), KILLED),
            ("died", 10, "rank 1: process died: ", [1]),
        ),
        (
            (failed("KeyboardInterrupt") | {"status": "interrupted"}, KILLED),
            ("died", 10, "rank 1: ", [1]),
        ),
        ((failed(PEER), ok()), ("failed", 1, f"rank 0: {PEER}", [0])),
        # A rank that was not recorded says nothing against the run.
        ((ok(), None), ("ok", 0, "", [])),
        ((None, None), ("died", 10, "ranks 0 and 1: process died: it recorded nothing", [0, 1])),
        (
            (ok() | {"status": "oom", "exit_code": 1, "reason": "out of memory"}, ok()),
            ("oom", 1, "rank 0: out", [0]),
        ),
    ],
)
def test_the_cause_is_named(
    tmp_path: Path, ranks: tuple[dict[str, Any] | None, ...], expected: tuple[str, int, str, list[int]]
) -> None:
    run_dir = make(tmp_path, *ranks)
    complete(run_dir)
    status, code, reason, culprits = verdict(run_dir)
    assert (status, code, culprits) == (expected[0], expected[1], expected[3])
    assert reason.startswith(expected[2])


def test_a_run_that_goes_on_is_not_completed(tmp_path: Path) -> None:
    here = {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())}
    run_dir = make(tmp_path, here, ok(), {"host": f"not-{socket.gethostname()}"})
    with pytest.raises(ConfigError, match=r"^nano/\S+ has not ended: still running: ranks 0 and 2$"):
        complete(run_dir)
    assert RunFolder.open(run_dir).facts["status"] == "running"
    assert not (run_dir / "tables" / "runs").exists()


def test_a_silent_rank_of_another_host_has_ended(tmp_path: Path) -> None:
    run_dir = make(tmp_path, ok(), {"host": f"not-{socket.gethostname()}"})
    for file in [*run_dir.glob("tables/*/rank=1/*"), run_dir / "logs/rank1.json"]:
        os.utime(file, (time.time() - 3600,) * 2)
    complete(run_dir)
    assert verdict(run_dir)[0] == "died"


def test_two_that_complete_a_run_at_the_same_time_do_it_one_after_the_other(tmp_path: Path) -> None:
    run_dir = make(tmp_path, ok(), ok())
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(complete, [run_dir, run_dir])
    assert first == second


def test_what_went_wrong_with_the_recording_is_told_by_rank(tmp_path: Path) -> None:
    run_dir = make(tmp_path, ok(problems=["the disk was slow"]), None)
    lines = complete(run_dir)
    told = [line for line in lines if line.startswith("warning: ")]
    assert told[0] == "warning: rank 0: the disk was slow"
    assert told[1].startswith("warning: rank 1: recorded nothing")
