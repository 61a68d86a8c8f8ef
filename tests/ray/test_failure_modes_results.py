"""Failure mode 12: what failed or remote ranks recorded is brought in, counted, and never made up."""

import shutil
import subprocess
from pathlib import Path

import pytest
from launcher import RANKS, config_of, joining, launch, rows_of, start
from ray.cluster_utils import Cluster

TABLES = ("spans", "samples")
FLUSHED_S = 8
"""Four times the recorder's flush interval: time for two flushes on a busy machine."""


def manifest_rows(run_dir: Path) -> dict[tuple[str, int], int]:
    """Rows by table and rank as the ranks counted them."""
    import json

    found: dict[tuple[str, int], int] = {}
    for path in run_dir.glob("tables/manifest-rank=*.jsonl"):
        rank = int(path.stem.partition("=")[2])
        for line in path.read_text().splitlines():
            part = json.loads(line)
            found[part["table"], rank] = found.get((part["table"], rank), 0) + part["rows"]
    return found


def test_12_rank_killed_while_writing(tmp_path: Path, shared: Cluster) -> None:
    """Every step is a span: all of them that were with the recorder longer than its flush interval are there."""
    steps = 50
    struck = ["--fault", "sigkill", "--at-step", steps, "--rest", FLUSHED_S]
    code, run = launch(tmp_path, joining(tmp_path, shared, args=["--steps", 500, *struck]))

    assert code == 10
    rows = rows_of(run, "spans")
    assert rows[RANKS - 1] >= steps
    assert {("spans", rank): num for rank, num in rows.items()} == {
        key: num for key, num in manifest_rows(run.run_dir).items() if key[0] == "spans"
    }
    assert not list(run.run_dir.rglob("*.arrows")) and not list(run.run_dir.rglob("*.tmp"))


def test_12_run_folder_that_is_not_shared(tmp_path: Path, shared: Cluster) -> None:
    """GIVEN ranks that write to their node's own disk THEN all of it arrives through Ray, and nothing of it stays."""
    scratch = tmp_path / "scratch"
    config = joining(
        tmp_path,
        shared,
        args=["--steps", 30],
        ray={"scratch_dir": str(scratch)},
        logging={"sample_interval_s": 0.1},  # the steps take 0.6 s
    )
    code, run = launch(tmp_path, config)

    assert (code, run.facts["problems"]) == (0, [])
    # As the ranks counted them: their manifests came with the rows.
    counted = manifest_rows(run.run_dir)
    for table in TABLES:
        rows = rows_of(run, table)
        assert set(rows) == set(range(RANKS))
        assert {(table, rank): num for rank, num in rows.items()} == {
            key: num for key, num in counted.items() if key[0] == table
        }
    assert sorted(path.name for path in (run.run_dir / "logs").glob("rank*.log")) == [
        f"rank{rank}.log" for rank in range(RANKS)
    ]
    there = scratch / run.facts["run_id"]
    assert f"writes to {there}; its files are collected through Ray at the end" in run.text
    assert list(scratch.iterdir()) == []


def can_mount() -> bool:
    tried = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    return tried.returncode == 0


needs_mount = pytest.mark.skipif(
    shutil.which("unshare") is None or not can_mount(), reason="a full disk needs a mount of its own"
)


@needs_mount
def test_12_disk_of_a_node_fills_up_while_the_run_goes_on(tmp_path: Path) -> None:
    """GIVEN ranks whose disk is filled in the middle THEN it is told within 5 s, and the rows before it are kept."""
    disk = tmp_path / "scratch"
    disk.mkdir()
    before, steps = 150, 800
    config = config_of(
        tmp_path,
        args=["--steps", steps, "--at-step", before, "--fault", "fill", "--fill", disk, "--talk"],
        ray={"scratch_dir": str(disk)},
        logging={"sample_interval_s": 0.1},
    )
    run = start(tmp_path, config, on_disk=disk)

    assert run.wait() == 15
    warning = next(line for _, line in run.lines if line.startswith("warning: rank "))
    assert "No space left on device; what rank" in warning and warning.endswith(". The run goes on")
    assert run.at(warning) - run.struck_at() < 5.0
    # No rank was ended by it, nor by its own output that finds no room.
    assert run.ended_at - run.struck_at() > (steps - before) * 0.02
    assert run.verdict()[2].endswith("No space left on device")
    rows = rows_of(run, "spans")
    flushed_every_s, step_s = 2.0, 0.02
    assert min(rows[rank] for rank in range(RANKS)) >= before - flushed_every_s / step_s
    assert "Traceback" not in run.text


@needs_mount
def test_12_disk_of_the_driver_is_full(tmp_path: Path) -> None:
    """GIVEN a run folder on a disk that is filled during the run THEN the verdict says where the records still are."""
    scratch, disk = tmp_path / "scratch", tmp_path / "logs"
    disk.mkdir()
    config = config_of(
        tmp_path, args=["--steps", 100, "--fault", "fill", "--fill", disk], ray={"scratch_dir": str(scratch)}
    )
    run = start(tmp_path, config, on_disk=disk)

    assert run.wait() == 15
    warning, error, hint = run.errors()[:3]
    assert warning.startswith("warning: the disk of ")
    assert warning.endswith(" is full: make room before the run ends, or its report is lost")
    assert error.startswith("error: ") and "No space left on device" in error
    assert str(scratch) in run.text
    assert set(manifest_rows(next(scratch.iterdir()))) >= {("spans", rank) for rank in range(RANKS)}
    assert hint.startswith("hint: ")
    assert "Traceback" not in run.text
