"""Complete a run that its ranks recorded without a launcher: python -m ray_memprof.record.

    for line in complete(run_dir): ...

Takes a folder with the tables of the ranks and logs/rankN.json. Leaves what a launched run has: the tables runs and
ranks, run.duckdb, memory_events.json and report.html. Imports no Ray; a second call changes nothing.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ray_memprof.driver.placement import node_places
from ray_memprof.driver.repository import commit_text, repository
from ray_memprof.errors import EXIT_INTERRUPTED, EXIT_RANK_DIED, EXIT_TERMINATED, ConfigError
from ray_memprof.rank.messages import Outcome, RankFacts
from ray_memprof.rank.rank_rows import rank_columns
from ray_memprof.recorder.status import ReplayCheck
from ray_memprof.report import derive
from ray_memprof.report.last_lines import ended_lines, first_line
from ray_memprof.store.gather import gather
from ray_memprof.store.rank_notes import rank_note, still_running
from ray_memprof.store.run_files import CONFIG_FILE
from ray_memprof.store.run_folder import RunFolder
from ray_memprof.store.run_tables import run_columns, write_driver_tables
from ray_memprof.store.standing import RUNNING
from ray_memprof.supervision.verdict import Loss, Verdict, is_peer_error, judge
from ray_memprof.wording import rank_text

_NO_WORD = "it was killed, or its host was"
_NEVER = "it recorded nothing: it did not import torch, or ended before"
_GPU = ("gpu_index", "gpu_uuid", "gpu_name", "device_total_bytes")
CLOCK_OFFSET = "clock_offset_ns"
"""Fact of a rank: by how much its clock was ahead, which was subtracted from its times when folders were joined."""
_HOW = ("status", "exit_code", "reason", "path", "step", "oom_by", "oom_free_bytes")


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
    with alone(run_dir):
        return _completed(RunFolder.open(run_dir))


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Wait until no other process completes this run: ranks that end at the same time may each start one."""
    held = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _completed(folder: RunFolder) -> list[str]:
    run_dir, num_ranks = folder.path, folder.facts["num_ranks"]
    notes = [rank_note(run_dir, rank) for rank in range(num_ranks)]
    facts, outcomes = zip(*(_report(rank, note) for rank, note in enumerate(notes)), strict=True)
    gathered = gather(run_dir, range(num_ranks))
    problems = [f"rank {one.rank}: {line}" for one in outcomes for line in one.problems]
    problems = list(dict.fromkeys([*problems, *gathered.problems]))
    _note_end(folder, notes, _verdict(facts, outcomes, notes), problems)
    config = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    # How a program splits its work is its own affair.
    no_place = dict.fromkeys(("ulysses", "ring", "cfg", "fsdp"), 0)
    rows = [
        {**rank_columns(*report), **_place(note or {}), "node": node, **no_place}
        for report, note, (node, _) in zip(
            zip(facts, outcomes, strict=True), notes, node_places(facts), strict=True
        )
    ]
    write_driver_tables(run_dir, run_columns(folder.facts, config), rows)
    lines = derive.derive(run_dir, problems)
    folder.note(problems=problems)
    lines = ended_lines(run_dir, first_line(folder.facts), problems, lines)
    return lines + _elsewhere_lines(run_dir, notes)


def _report(rank: int, note: Mapping[str, Any] | None) -> tuple[RankFacts, Outcome]:
    """Where a rank was and how it ended; one that was killed has not said how."""
    known = dict(note or {})
    if note is None:
        known |= {"status": "never_started", "exit_code": EXIT_RANK_DIED, "reason": _NEVER}
    elif note["status"] == RUNNING:
        known |= {"status": "died", "exit_code": EXIT_RANK_DIED, "reason": _NO_WORD}
    host = known.get("host", "")
    where = {"node_id": host, "host": host, "node_ip": "", "pid": known.get("pid", 0)}
    gpu = {name: known[name] for name in _GPU if name in known}
    check = known.get("check")
    how = {name: known[name] for name in _HOW if name in known}
    return (
        RankFacts(**{"gpu_index": -1, **where, **gpu}),
        Outcome(
            **{**how, "rank": rank, "problems": tuple(known.get("problems", ()))},
            check=None if check is None else ReplayCheck(**check),
        ),
    )


def _place(note: Mapping[str, Any]) -> dict[str, int]:
    """Columns of the table ranks; joining.py notes a clock offset where it has found one."""
    return {name: note.get(name, 0) for name in ("local_rank", CLOCK_OFFSET)}


def _elsewhere_lines(run_dir: Path, notes: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """What is said of ranks that left nothing here: a host without this disk keeps a folder of its own."""
    absent = [rank for rank, note in enumerate(notes) if note is None]
    if not absent or len(absent) == len(notes):
        return []
    return [
        f"hint: {rank_text(absent)} left nothing here; if their host keeps a run folder of its own: "
        f"ray-memprof finish {run_dir} FOLDER"
    ]


def _note_end(
    folder: RunFolder, notes: Sequence[Mapping[str, Any] | None], verdict: Verdict, problems: list[str]
) -> None:
    """Write into run.json how the run ended, and with what it ran."""
    first = notes[0] or {}
    path = yaml.safe_load((folder.path / CONFIG_FILE).read_text(encoding="utf-8"))["script"].get("path", "-")
    program = None if path == "-" else repository(Path(path))
    folder.note(
        status=verdict.status,
        exit_code=verdict.exit_code,
        reason=verdict.reason,
        culprits=list(verdict.ranks),
        problems=problems,
        end_ns=max(
            (note["end_ns"] for note in notes if note and note.get("end_ns")),
            default=folder.facts["start_ns"],
        ),
        program_git=program,
        git_commit=commit_text(program),
        ray_memprof_git=repository(Path(__file__).parent),
        versions=first.get("versions", {}),
        environment=first.get("environment", {}),
    )


def _verdict(
    facts: Sequence[RankFacts], outcomes: Sequence[Outcome], notes: Sequence[Mapping[str, Any] | None]
) -> Verdict:
    """How the run ended, by what its ranks say.

    A starter kills the other ranks when one has failed. So a rank that ended without a word is the cause only if no
    other rank has an error of its own.
    """
    # A rank that was not recorded says nothing against the run.
    if {one.status for one in outcomes} <= {"ok", "never_started"} and any(
        one.status == "ok" for one in outcomes
    ):
        return Verdict(status="ok")
    ends = {rank: note["end_ns"] for rank, note in enumerate(notes) if note and "end_ns" in note}
    failed = sorted(
        (one for one in outcomes if one.status != "ok" and one.rank in ends), key=lambda one: ends[one.rank]
    )
    own = [one for one in failed if not (is_peer_error(one) or _is_sent_away(one))]
    lost = [Loss(rank=one.rank, kind="died", detail=one.reason) for one in outcomes if one.status == "died"]
    never = [Loss(rank=one.rank, kind="died", detail=one.reason) for one in outcomes if one.rank not in ends]
    return judge(own or [*lost, *failed] or never, [one.host for one in facts])


def _is_sent_away(outcome: Outcome) -> bool:
    """Whether a rank only followed the signal by which a starter ends all ranks."""
    return outcome.status == "interrupted" or outcome.exit_code in (EXIT_INTERRUPTED, EXIT_TERMINATED)
