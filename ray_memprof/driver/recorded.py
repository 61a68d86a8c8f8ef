"""Complete a run that its ranks recorded without a launcher: python -m ray_memprof.record.

    for line in complete(run_dir): ...

Takes a folder with the tables of the ranks and logs/rankN.json. Leaves what a launched run has: the tables runs and
ranks, run.duckdb, memory_events.json and report.html. Imports no Ray; a second call changes nothing.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ray_memprof.driver.repository import commit_text, repository
from ray_memprof.errors import EXIT_RANK_DIED, ConfigError
from ray_memprof.rank.messages import Outcome
from ray_memprof.rank.session import still_running
from ray_memprof.recorder.status import ReplayCheck
from ray_memprof.report import derive
from ray_memprof.store.gather import gather
from ray_memprof.store.run_files import CONFIG_FILE, REPORT_FILE, rank_file
from ray_memprof.store.run_folder import RunFolder
from ray_memprof.store.run_tables import write_driver_tables
from ray_memprof.store.standing import RUNNING
from ray_memprof.supervision.verdict import Loss, Verdict, is_peer_error, judge
from ray_memprof.wording import rank_text

_NO_CHECK = dict.fromkeys(ReplayCheck.__dataclass_fields__, 0)
_NO_WORD = "its process ended without a word: it was killed, or its host was"
_NEVER = "it recorded nothing: it did not import torch, or ended before"


def is_recorded(run_dir: Path) -> bool:
    """Whether the ranks of this run recorded themselves."""
    return RunFolder.open(run_dir).facts.get("started_by") == "record"


def complete(run_dir: Path, *, wait_s: float = 0.0) -> list[str]:
    """Write the tables and files that no rank writes; returns the run's last lines.

    Args:
        run_dir: the folder of the run.
        wait_s: how long to wait for ranks that still run.

    Raises:
        ConfigError: a rank still runs.
        DiskFull: no room in the run folder.
    """
    num_ranks = RunFolder.open(run_dir).facts["num_ranks"]
    if left := still_running(run_dir, num_ranks, wait_s=wait_s):
        raise ConfigError(
            f"{run_dir.parent.name}/{run_dir.name} has not ended: still running: {rank_text(left)}",
            hint="wait until they have ended, or say how long to wait: --wait SECONDS",
        )
    with _alone(run_dir):
        return _completed(RunFolder.open(run_dir))


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Wait until no other process completes this run: ranks that end at the same time may each start one."""
    held = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _completed(folder: RunFolder) -> list[str]:
    run_dir, num_ranks = folder.path, folder.facts["num_ranks"]
    ranks = [_told(run_dir, rank) for rank in range(num_ranks)]
    gathered = gather(run_dir, range(num_ranks))
    problems = [f"rank {one['rank']}: {line}" for one in ranks for line in one.get("problems", ())]
    problems = list(dict.fromkeys([*problems, *gathered.problems]))
    _note_end(folder, ranks, problems)
    write_driver_tables(run_dir, _run_row(folder, ranks), [_rank_row(one, ranks) for one in ranks])
    lines = derive.derive(run_dir, problems)
    folder.note(problems=problems)
    facts = folder.facts
    ended = f"{facts['name']}: {facts['status']}" + (
        f", exit {facts['exit_code']}" if facts["exit_code"] else ""
    )
    return [ended, *(f"warning: {line}" for line in problems), *lines, f"report: {run_dir / REPORT_FILE}"]


def _told(run_dir: Path, rank: int) -> dict[str, Any]:
    """What a rank says of itself; one that was killed has not said how it ended."""
    path = run_dir / rank_file(rank)
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"rank": rank, "status": "never_started", "exit_code": EXIT_RANK_DIED, "reason": _NEVER}
    if facts["status"] == RUNNING:
        facts |= {"status": "died", "exit_code": EXIT_RANK_DIED, "reason": _NO_WORD}
    return facts


def _note_end(folder: RunFolder, ranks: Sequence[dict[str, Any]], problems: list[str]) -> None:
    """Write into run.json how the run ended: by the first rank that failed."""
    verdict = _verdict(ranks)
    ends = [one["end_ns"] for one in ranks if "end_ns" in one]
    folder.note(
        status=verdict.status,
        exit_code=verdict.exit_code,
        reason=verdict.reason,
        culprits=list(verdict.ranks),
        problems=problems,
        end_ns=max(ends, default=folder.facts["start_ns"]),
        versions=ranks[0].get("versions", {}),
        environment=ranks[0].get("environment", {}),
    )


def _verdict(ranks: Sequence[dict[str, Any]]) -> Verdict:
    """How the run ended, by what its ranks say.

    A starter kills the other ranks when one has failed. So a rank that ended without a word is the cause only if no
    other rank has an error of its own.
    """
    # A rank that was not recorded says nothing against the run.
    if all(one["status"] in ("ok", "never_started") for one in ranks) and any(
        one["status"] == "ok" for one in ranks
    ):
        return Verdict(status="ok")
    told = [
        Outcome(rank=one["rank"], status=one["status"], exit_code=one["exit_code"], reason=one["reason"])
        for one in sorted(ranks, key=lambda one: one.get("end_ns", 0))
        if one["status"] != "ok" and "end_ns" in one
    ]
    own = [one for one in told if not is_peer_error(one)]
    lost = [Loss(rank=one["rank"], kind="died", detail=_NO_WORD) for one in ranks if one["status"] == "died"]
    never = [
        Loss(rank=one["rank"], kind="died", detail=_NEVER)
        for one in ranks
        if one["status"] == "never_started"
    ]
    return judge(own or [*lost, *told] or never, [one.get("host", "") for one in ranks])


def _run_row(folder: RunFolder, ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    config = yaml.safe_load((folder.path / CONFIG_FILE).read_text(encoding="utf-8"))
    facts, script = folder.facts, config["script"]
    found = repository(Path(script["path"])) if script.get("path", "-") != "-" else None
    return {
        "run_id": folder.run_id,
        "name": facts["name"],
        "source": config["model_config"]["device"],
        "workload": "script",
        "num_ranks": facts["num_ranks"],
        "config": json.dumps(config),
        "environment": json.dumps(facts["environment"]),
        "git_commit": commit_text(found),
        "versions": json.dumps(facts["versions"]),
        "start_ns": facts["start_ns"],
        "end_ns": facts["end_ns"],
        "status": facts["status"],
        "exit_code": facts["exit_code"],
        "reason": facts["reason"],
    }


def _rank_row(one: dict[str, Any], ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    hosts = list(dict.fromkeys(other.get("host", "") for other in ranks))
    return {
        "rank": one["rank"],
        "node": hosts.index(one.get("host", "")),
        "node_id": one.get("host", ""),
        "host": one.get("host", ""),
        "clock_offset_ns": 0,
        "pid": one.get("pid", 0),
        "local_rank": one.get("local_rank", 0),
        "gpu_index": one.get("gpu_index", -1),
        "gpu_uuid": one.get("gpu_uuid", ""),
        "gpu_name": one.get("gpu_name", ""),
        "device_total_bytes": one.get("device_total_bytes", 0),
        # The recorder sees every event from the start of CUDA on.
        "inexact_bytes": 0,
        "peak_at_least": False,
        # How a program splits its work is its own affair.
        **dict.fromkeys(("ulysses", "ring", "fsdp"), 0),
        "status": one["status"],
        "exit_code": one["exit_code"],
        "reason": one["reason"],
        "path": one.get("path", ""),
        "step": one.get("step", -1),
        "oom_by": one.get("oom_by"),
        "oom_free_bytes": one.get("oom_free_bytes"),
        **(one.get("check") or _NO_CHECK),
    }
