"""On a GPU: looked at without being used, refused when others hold it, context and handles in spans of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_memprof import workload
from ray_memprof.config import RunConfig, from_mapping
from ray_memprof.device import open_device
from ray_memprof.errors import PreflightFailed
from ray_memprof.plan import RankFacts, RankPlan
from ray_memprof.preflight import check_gpu
from wan.spans import Attribute, listening

pytestmark = pytest.mark.gpu

MIB, GIB = 2**20, 2**30
# Its GPU is the only one, or the first.
HOLD = """
import sys, torch
held = torch.empty(3 << 30, dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""
LOOK = """
import torch
from ray_memprof.config import from_mapping
from ray_memprof.plan import RankFacts, RankPlan
from ray_memprof.preflight import check_rank

facts = RankFacts(node_id="n", host="h", node_ip="i", pid=1, gpu_index=0)
config = from_mapping({"name": "x"}, source="test")
plan = RankPlan(run_id="r", config=config, rank=0, world_size=1, local_rank=0, local_world_size=1, node=0,
                visible_devices=(), facts=facts, run_dir=None)
checks = check_rank(plan)
assert not torch.cuda.is_initialized()
print(__import__("json").dumps(checks))
"""


def facts() -> RankFacts:
    return RankFacts(node_id="n", host="alpha", node_ip="i", pid=os.getpid(), gpu_index=0)


def config(**logging: Any) -> RunConfig:
    generation = {"sample_steps": 2, "base_seed": 3}
    model = {"task": "t2v-tiny"}
    return from_mapping(
        {"name": "x", "model_config": model, "generation": generation, "logging": logging}, source="test"
    )


def plan(given: RunConfig, run_dir: Path) -> RankPlan:
    return RankPlan(
        run_id="r", config=given, rank=0, world_size=1, local_rank=0, local_world_size=1, node=0,
        visible_devices=(), facts=facts(), run_dir=run_dir,
    )  # fmt: skip


class Meter:
    """Notes by how many bytes device memory, and tensors in it, grow across every outermost span."""

    def __init__(self) -> None:
        self.grown: dict[str, tuple[int, int]] = {}
        self._depth = 0
        self._before = (0, 0)

    def _read(self) -> tuple[int, int]:
        if not torch.cuda.is_initialized():
            with open_device(index=0) as device:
                assert device is not None
                return device.used_bytes(), 0
        free, total = torch.cuda.mem_get_info()
        return total - free, torch.cuda.memory_allocated()

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        if not self._depth:
            self._before = self._read()
        self._depth += 1

    def exit(self, name: str, failed: bool) -> None:
        self._depth -= 1
        if not self._depth:
            used, allocated = self._read()
            self.grown[name] = (used - self._before[0], allocated - self._before[1])

    def on_step(self, step: int, steps: int) -> None:
        pass


@pytest.fixture
def environ() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_looking_at_a_gpu_makes_no_context_and_finds_it_idle() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=100, cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["device"], found["torch"], found["cuda"]) == ("cuda", torch.__version__, torch.version.cuda)
    assert found["driver"].split(".")[0].isdecimal()
    assert found["nccl"] == ".".join(map(str, torch.cuda.nccl.version()))
    assert 0 <= found["held_bytes"] <= GIB


def test_a_gpu_that_another_process_holds_is_refused() -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(PreflightFailed) as raised:
            check_gpu(0, facts())
    finally:
        other.communicate("")
    message = str(raised.value)
    assert message.startswith("rank 0 on alpha: GPU 0 (")
    # In a container the driver may hide the process, or call it by the number it has outside.
    named = f"(pid {other.pid}) 3." in message
    assert named or "not visible here" in message or "cannot be seen from here" in message


def test_context_and_handles_are_made_in_spans_of_their_own(tmp_path: Path, environ: None) -> None:
    meter = Meter()
    with listening(meter):
        workload.run(plan(config(), tmp_path), meter)
    assert list(meter.grown)[:2] == ["device.init", "warmup"]
    _, workspace = meter.grown["warmup"]
    assert 0 < workspace <= 64 * MIB  # of cuBLAS; it stays
    # What runs later finds its handles made: tensors that stay are all that is new, and none does.
    assert meter.grown["decode"][1] <= 0


def test_a_trace_holds_the_kernels_of_the_active_steps(tmp_path: Path, environ: None) -> None:
    meter = Meter()
    given = config(level="torch_profiler", profiler={"wait": 0, "warmup": 1, "active": 1})
    with listening(meter):
        workload.run(plan(given, tmp_path), meter)
    events = json.loads((tmp_path / "trace" / "rank0.pt.trace.json").read_text())["traceEvents"]
    assert {"kernel", "cpu_op", "user_annotation"} <= {event.get("cat") for event in events}
    steps = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert [name for name in steps if name.startswith("denoise")] == ["denoise step=1"]
