"""Several GPUs: every layout, and xfuser's attention, agree with one GPU over NCCL, at full size in bf16."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ray_memprof.recorder.collectives import joined, watching
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.status import Group

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench_parallel.py"
NUM_GPUS = min(4, torch.cuda.device_count())
LIMIT_S = 300.0
MOST_DIFFERENCE = 1e-2
"""Relative to the norm of what one GPU gives."""

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
several = pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs two CUDA devices, torch sees {NUM_GPUS}")
CASES = ["agree ulysses N", "agree ring N", "agree ulysses N/2 x ring 2", "agree cfg 2 x ulysses N/2"]


class Deaf:
    """Keeps nothing of what it hears."""

    def begin_collective(self) -> Reading | None:
        return None

    def end_collective(self, before: Reading, **facts: object) -> None:
        raise AssertionError("nothing had begun")


def difference(case: str) -> float:
    """Of the forward pass of t2v-1.3B at 480P on NUM_GPUS ranks, the worst rank's."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(NUM_GPUS),
    ]
    done = subprocess.run(
        [*command, str(BENCH), "--case", case], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("result: "))
    return max(row["relative difference"] for row in json.loads(line.removeprefix("result: ")))


@several
@pytest.mark.parametrize("case", CASES)
def test_a_layout_agrees_with_one_gpu(case: str) -> None:
    assert difference(case) <= MOST_DIFFERENCE


@several
@pytest.mark.skipif(find_spec("xfuser") is None, reason="needs xfuser, which is not installed")
@pytest.mark.parametrize("case", ["xfuser agree ulysses N", "xfuser agree ulysses N/2 x ring 2"])
def test_xfuser_agrees_with_one_gpu(case: str) -> None:
    assert difference(case) <= MOST_DIFFERENCE


def test_collectives_and_batches_are_counted(tmp_path: Path) -> None:
    """What tells, among ranks that stand still, who keeps the others waiting."""
    device = torch.device("cuda", 0)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        second = dist.new_group([0])
        assert second is not None
        names = [group.group_name for group in (dist.group.WORLD, second)]
        groups = [Group(name=name, first_rank=0) for name in names]
        x, y = torch.ones(4, device=device), torch.empty(4, device=device)
        for group in (None, second):
            dist.all_reduce(x, group=group)
        before = joined()
        with watching(Deaf()):
            dist.all_reduce(x)
            for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, 0), dist.P2POp(dist.irecv, y, 0)]):
                work.wait()
            dist.all_reduce(x, group=second)
        assert [joined()[group] - before[group] for group in groups] == [1, 1]
        assert joined()[Group(name=f"{names[0]} between ranks 0 and 0", first_rank=0, second_rank=0)] == 2
    finally:
        dist.destroy_process_group()
