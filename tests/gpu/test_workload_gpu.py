"""On a GPU: looked at without being used, refused when others hold it, context and handles in spans of their own.

What depends on a process that has not used CUDA yet runs in one of its own: other tests may have run in this one
before. The GPU may be one of several, and hold what this process and others put there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_memprof.errors import PreflightFailed
from ray_memprof.rank.checks import check_gpu
from ray_memprof.rank.messages import RankFacts
from ray_memprof.recorder.meters.nvml import open_device

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
MIB, GIB = 2**20, 2**30
# Holds 3 GiB of torch's first GPU until its input is closed.
HOLD = """
import sys, torch
held = torch.empty(3 << 30, dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""
PLAN = """
import json, sys
from pathlib import Path

from ray_memprof.config.load import from_mapping
from ray_memprof.rank.messages import RankFacts
from ray_memprof.rank.plan import RankPlan

facts = RankFacts(node_id="n", host="h", node_ip="i", pid=1, gpu_index=0, gpu_uuid=sys.argv[1])
config = from_mapping(json.loads(sys.argv[2]), source="test")
plan = RankPlan(run_id="r", config=config, rank=0, world_size=1, local_rank=0, local_world_size=1, node=0,
                visible_devices=(), facts=facts, run_dir=Path(sys.argv[3]))
"""
# What this process holds already, for tests may run in any order, is no reason to refuse the GPU here.
LOOK = f"""{PLAN}
import torch
from ray_memprof.rank import checks as rank_checks
from ray_memprof.rank.versions import versions

rank_checks.MAX_HELD_BYTES = 2**60
checks = versions() | rank_checks.check_rank(plan)
assert not torch.cuda.is_initialized()
print(json.dumps(checks))
"""
# Prints by how many bytes device memory, and tensors in it, grew across every outermost span.
RUN = f"""{PLAN}
import torch
from ray_memprof.workload import wan_rank
from ray_memprof.recorder.meters.nvml import open_device
from ray_memprof.recorder.spans import listening

class Meter:
    grown, depth, before = {{}}, 0, (0, 0)

    def read(self):
        if not torch.cuda.is_initialized():
            with open_device(uuid=sys.argv[1], index=0) as device:
                return device.used_bytes(), 0
        free, total = torch.cuda.mem_get_info()
        return total - free, torch.cuda.memory_allocated()

    def enter(self, name, attributes):
        if not self.depth:
            self.before = self.read()
        self.depth += 1

    def exit(self, name, failed):
        self.depth -= 1
        if not self.depth:
            used, allocated = self.read()
            self.grown[name] = (used - self.before[0], allocated - self.before[1])

    hears_claims = False

    def claim(self, tensor, owner):
        pass

    def on_step(self, step, steps):
        pass

    def problem(self, text):
        raise AssertionError(text)

meter = Meter()
with listening(meter):
    wan_rank.run(plan.config, plan.place, meter, device=plan.device, run_dir=plan.run_dir)
print(json.dumps(meter.grown))
"""


def uuid() -> str:
    """Of the GPU that torch calls the first."""
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"


def in_a_new_process(program: str, folder: Path, **logging: Any) -> dict[str, Any]:
    """Run `program` for a tiny video of two steps; the JSON of its last line."""
    config = {
        "name": "x",
        "model_config": {"task": "t2v-tiny"},
        "generation": {"sample_steps": 2, "base_seed": 3},
        "logging": logging,
    }
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", program, uuid(), json.dumps(config), str(folder)],
        capture_output=True, text=True, timeout=110, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_looking_at_a_gpu_makes_no_context_and_tells_what_is_in_use(tmp_path: Path) -> None:
    with open_device(uuid=uuid(), index=0) as device:
        assert device is not None
        in_use = device.used_bytes()
    found = in_a_new_process(LOOK, tmp_path)
    assert (found["device"], found["torch"], found["cuda"]) == ("cuda", torch.__version__, torch.version.cuda)
    assert found["driver"].split(".")[0].isdecimal()
    assert found["nccl"] == ".".join(map(str, torch.cuda.nccl.version()))
    assert abs(found["held_bytes"] - in_use) <= 64 * MIB  # a context would be 500


def test_a_gpu_that_another_process_holds_is_refused() -> None:
    facts = RankFacts(node_id="n", host="alpha", node_ip="i", pid=os.getpid(), gpu_index=0, gpu_uuid=uuid())
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(PreflightFailed) as raised:
            check_gpu(0, facts)
    finally:
        other.communicate("")
    message = str(raised.value)
    assert message.startswith("rank 0 on alpha: GPU 0 (")
    # In a container the driver may hide the process, or call it by the number it has outside.
    named = f"(pid {other.pid}) 3." in message
    assert named or "not visible here" in message or "cannot be seen from here" in message


def test_context_and_handles_are_made_in_spans_of_their_own(tmp_path: Path) -> None:
    grown = in_a_new_process(RUN, tmp_path)
    assert list(grown)[:2] == ["device.init", "warmup"]
    assert grown["device.init"][0] > 100 * MIB
    assert 0 < grown["warmup"][1] <= 64 * MIB  # workspaces of cuBLAS; they stay
    # What runs later finds its handles made: tensors that stay are all that is new, and none does.
    assert grown["decode"][1] <= 0


def test_a_trace_holds_the_kernels_of_the_active_steps(tmp_path: Path) -> None:
    in_a_new_process(RUN, tmp_path, level="torch_profiler", profiler={"wait": 0, "warmup": 1, "active": 1})
    events = json.loads((tmp_path / "trace" / "rank0.pt.trace.json").read_text())["traceEvents"]
    assert {"kernel", "cpu_op", "user_annotation"} <= {event.get("cat") for event in events}
    steps = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert [name for name in steps if name.startswith("denoise")] == ["denoise step=1"]
