"""Two nodes of one start without a shared disk: a torchrun and a folder each; finish takes the folders together."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import LIMIT_S, MODEL, ROOT, TORCHRUN_NODES, Done

from ray_memprof.query import database

PROGRAM = (
    MODEL
    + """
import torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
train()
torch.empty(1000 * (1 + dist.get_rank()), 256).sum()
dist.barrier()
print("rank", dist.get_rank())
"""
)
QUIET = ("PYTEST_", "RAY_MEMPROF", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def two_nodes(folder: Path, *, apart: bool = True) -> list[Done]:
    """Start the program as two nodes with two ranks each; each node records into a folder of its own if `apart`."""
    (folder / "main.py").write_text(PROGRAM)
    port = str(free_port())
    kept = {name: value for name, value in os.environ.items() if not name.startswith(QUIET)}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    processes = []
    for node in range(2):
        output_dir = folder / (f"node{node}" if apart else "both")
        command = [
            *TORCHRUN_NODES,
            "--node_rank",
            str(node),
            "--master_addr",
            "127.0.0.1",
            "--master_port",
            port,
        ]
        command += ["-m", "ray_memprof.record", "--output-dir", str(output_dir), "main.py"]
        processes.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    done = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=LIMIT_S)
            done.append(Done(process.returncode, out, err, folder))
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return done


def runs_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("main/*")) if not path.is_symlink() and path.is_dir()]


def finish(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray_memprof.cli", "finish", *map(str, folders)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def rows_of(run_dir: Path, question: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = database.query(run_dir, question).to_pylist()
    return rows


@pytest.mark.timeout(2 * LIMIT_S + 40)
def test_folders_of_two_nodes_become_one_run(tmp_path: Path) -> None:
    first, second = two_nodes(tmp_path)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    (home,), (away,) = runs_of(tmp_path / "node0"), runs_of(tmp_path / "node1")
    assert "hint: ranks 2 and 3 left nothing here" in first.err
    assert f"what the ranks of this host recorded is in {away}" in second.err
    before = {path: path.read_bytes() for path in away.rglob("*") if path.is_file()}

    done = finish(away, home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {home / 'report.html'}"
    assert "warning" not in done.stdout
    assert {path: path.read_bytes() for path in away.rglob("*") if path.is_file()} == before
    rows = rows_of(home, "replay_check")
    assert [(row["rank"], row["is_exact"]) for row in rows] == [(rank, True) for rank in range(4)]
    peaks = [row["allocated_peak_bytes"] for row in rows_of(home, "peak_by_rank")]
    assert len(peaks) == 4
    assert finish(home, away).stdout == done.stdout  # a second call changes nothing


@pytest.mark.timeout(2 * LIMIT_S + 40)
def test_two_nodes_that_share_a_disk_are_one_run_without_finish(tmp_path: Path) -> None:
    first, second = two_nodes(tmp_path, apart=False)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    (run,) = runs_of(tmp_path / "both")
    assert [row["is_exact"] for row in rows_of(run, "replay_check")] == [True] * 4
