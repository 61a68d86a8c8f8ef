"""NCCL's memory on a device: what DistributedDataParallel takes in C++ is told from the context and from libraries.

Each run is a process of its own under torchrun, with one rank for each device up to two, as in nanoGPT's train.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ray_memprof.query.database import query

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
BEGIN = """
import os
import torch
import torch.distributed as dist
device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
"""
TRAIN = """
model = torch.nn.Linear(512, 512).to(device)
if dist.is_initialized():
    model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[device.index])
for _ in range(3):
    model(torch.randn(64, 512, device=device)).sum().backward()
torch.cuda.synchronize()
if dist.is_initialized():
    dist.destroy_process_group()
"""
WAYS = {
    "alone": "torch.cuda.set_device(device)",
    "lazy": 'dist.init_process_group("nccl"); torch.cuda.set_device(device)',
    "eager": 'dist.init_process_group("nccl", device_id=device); torch.cuda.set_device(device)',
    "barrier": 'torch.cuda.set_device(device); dist.init_process_group("nccl"); dist.barrier()',
}


def books(tmp_path: Path, way: str) -> tuple[dict[str, int], list[dict[str, object]]]:
    """The books of rank 0 at its peak, and its process groups."""
    script = tmp_path / f"{way}.py"
    script.write_text(BEGIN + WAYS[way] + TRAIN)
    ranks = min(2, torch.cuda.device_count())
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"),
        *("-m", "ray_memprof.record", "--name", way, "--output-dir", str(tmp_path), str(script)),
    ]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "NCCL_NVLS_ENABLE": "0"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (run_dir,) = [one for one in (tmp_path / way).iterdir() if not one.is_symlink()]
    rows = query(run_dir, "books_at_peak").to_pylist()
    groups = query(run_dir, "nccl_by_communicator").to_pylist()
    print(way, rows, groups)  # pytest shows it where the test fails
    return (
        {row["account"]: row["bytes"] for row in rows if row["rank"] == 0},
        [row for row in groups if row["rank"] == 0],
    )


def test_the_context_has_its_own_size_however_the_group_is_made(tmp_path: Path) -> None:
    """GIVEN the same program with and without a group THEN context and libraries are the same, and NCCL is the rest."""
    alone, no_groups = books(tmp_path, "alone")
    assert (alone["nccl"], no_groups) == (0, [])
    for way in ("lazy", "eager", "barrier"):
        found, groups = books(tmp_path, way)
        assert abs(found["context"] - alone["context"]) <= 64 * MIB, way
        # The first backward pass loads libraries while the reducer calls NCCL: they are in `shared_bytes`.
        assert found["libraries"] <= alone["libraries"] + 16 * MIB, way
        assert found["nccl"] >= 100 * MIB, way
        assert abs(found["unexplained"]) <= 16 * MIB, way
        (group,) = groups
        assert group["backend"] == "nccl", way
        assert group["how_known"] in ("own", "growth"), way
        assert not group["is_in_context"], way
