"""What an import drags in: import-linter reads the code, this looks at sys.modules of a fresh interpreter."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_tables import make_ranks, make_run, span

from ray_memprof.rank.messages import Outcome, Prepared
from ray_memprof.rank.versions import versions

WAN = Path(__file__).resolve().parents[2] / "wan"
MODULES = sorted(
    ".".join(path.relative_to(WAN.parent).with_suffix("").parts)
    for path in WAN.rglob("*.py")
    if path.name != "__init__.py"
)
# A CUDA build of torch brings triton; where it is missing, nothing imports these.
NEED_TRITON = {
    "wan.networks.kernels",
    "wan.networks.attention_fp8_kernels",
    "wan.networks.extremes",
    "wan.networks.vae.kernels",
}
PROFILER_SIDE = {"ray", "pyarrow", "duckdb", "ray_memprof"}

PROGRAM = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def modules_after_importing(*names: str) -> set[str]:
    """The modules that a fresh interpreter holds after importing `names`."""
    # torch loads the entry points of other packages; ray_memprof has one.
    environ = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-c", PROGRAM, *names]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=WAN.parent, env=environ, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def packages_after_importing(*names: str) -> set[str]:
    """The top-level packages of these modules."""
    return {name.partition(".")[0] for name in modules_after_importing(*names)}


def test_importing_nothing_brings_none_of_the_packages_in_question() -> None:
    assert packages_after_importing() & (PROFILER_SIDE | {"torch"}) == set()


@pytest.mark.parametrize("name", ["wan.config", "wan.errors", "wan.levers", "wan.options", "wan.spans"])
def test_tasks_flags_spans_and_errors_cost_no_torch(name: str) -> None:
    assert "torch" not in packages_after_importing(name)


def test_wan_imports_nothing_of_the_profiler() -> None:
    absent: set[str] = NEED_TRITON if importlib.util.find_spec("triton") is None else set()
    modules = [name for name in MODULES if name not in absent]
    assert packages_after_importing(*modules) & PROFILER_SIDE == set()


def test_what_runs_a_script_leaves_the_names_of_other_packages_free() -> None:
    found = modules_after_importing("ray_memprof.rank.script_child")
    assert {name.partition(".")[0] for name in found} & {
        "wan",
        "ray",
        "torch",
        "pyarrow",
        "pydantic",
    } == set()
    assert "ray_memprof.config" not in found


RECORDED = """
import json, sys
from pathlib import Path
import torch
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.recording import recording
from ray_memprof.workload.observed import observed

with recording(RecordingOptions(run_dir=Path(sys.argv[1]), device="cpu")) as recorder, observed(recorder):
    torch.nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
print(json.dumps(sorted({"torch._dynamo", "torch.distributed.fsdp", "sympy"} & sys.modules.keys())))
"""


def test_a_recording_imports_nothing_that_only_some_programs_use(tmp_path: Path) -> None:
    """torch.compile and FSDP take seconds to import, and 100 MB."""
    assert printed(RECORDED, str(tmp_path)) == []


UNPICKLED = """
import json, pickle, sys
from pathlib import Path
pickle.loads(Path(sys.argv[1]).read_bytes())
print(json.dumps(sorted({"torch", "ray"} & sys.modules.keys())))
"""


def test_what_a_rank_tells_is_read_without_torch(tmp_path: Path) -> None:
    """The driver has no other use for it: the version of torch is a class of torch."""
    told = Prepared(run_dir=tmp_path, shared=True, environment={}, versions=versions(), checks={})
    (tmp_path / "told").write_bytes(pickle.dumps([told, Outcome(rank=0, status="ok")]))
    assert printed(UNPICKLED, str(tmp_path / "told")) == []


RANK_OF_A_SCRIPT = """
import json, os, sys
from pathlib import Path
from ray_memprof.config.load import from_mapping
from ray_memprof.rank.actor import Rank
from ray_memprof.rank.messages import RankFacts
from ray_memprof.rank.plan import RankPlan
folder = Path(sys.argv[1])
(folder / "job.py").write_text("import torch")
config = from_mapping(
    {"name": "x", "workload": "script", "ranks": 2, "model_config": {"device": "cpu"},
     "script": {"path": str(folder / "job.py")}, "ray": {"scratch_dir": str(folder)}}, source="test",
)
facts = RankFacts(node_id="n", host="h", node_ip="127.0.0.1", pid=os.getpid(), gpu_index=-1)
plan = RankPlan(
    run_id="r", config=config, rank=1, world_size=2, local_rank=1, local_world_size=2, node=0,
    visible_devices=(), facts=facts, run_dir=folder,
)
actor, log = Rank(), os.dup(1)
actor.prepare(plan)
ended = actor.run(("127.0.0.1", 1))
os.dup2(log, 1)
print(json.dumps([ended.status, sorted({"torch", "duckdb"} & sys.modules.keys())]))
sys.stdout.flush()
"""


def test_an_actor_whose_script_runs_beside_it_imports_no_torch(tmp_path: Path) -> None:
    """It would take a second and 128 MiB for every rank, more with a build for CUDA."""
    assert printed(RANK_OF_A_SCRIPT, str(tmp_path)) == ["ok", []]


def printed(program: str, *arguments: str) -> Any:
    """What a program prints last, as JSON, in an interpreter of its own."""
    environ = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=WAN.parent, env=environ, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


ANSWERS = """
import json, sys
import ray_memprof
before = len(sys.modules)
run = ray_memprof.runs(output_dir=sys.argv[1])[0]
assert len(ray_memprof.open_run(run.path).ask("peak_by_rank")) == 1, "one rank"
run._repr_html_()
print(json.dumps([before, sorted({"torch", "ray", "wan", "pydantic", "typer"} & sys.modules.keys())]))
"""


def test_answers_in_python_cost_no_torch_and_no_ray_and_the_package_alone_costs_nothing(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "a" / "r1", {0: {"spans": [span(1, "denoise", (0, 10), allocated=(0, 0, 5))]}})
    make_ranks(run, {}, run_id="r1", name="a", status="ok")
    command = [sys.executable, "-c", ANSWERS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=WAN.parent, timeout=100, check=False)
    # Nothing on the standard error: DuckDB would tell there that it could not be taken down at the end.
    assert (done.returncode, done.stderr) == (0, "")
    num_modules, heavy = json.loads(done.stdout)
    assert (num_modules < 60, heavy) == (True, [])
