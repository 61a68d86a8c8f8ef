"""`pip install ray-memprof` without an extra: every command that answers works with what that installs, and no more."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from recorded_runs import write_recorded
from run_tables import span
from snapshots import MIB, event, snapshot, write

from ray_memprof.allocator.caching import CachingAllocator

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = {
    "torch",
    "ray",
    "diffusers",
    "transformers",
    "safetensors",
    "tokenizers",
    "PIL",
    "av",
    "mcp",
}

COMMANDS = (
    "query --list",
    "query peak_by_rank",
    "diagnose",
    "report",
    "flame",
    "compare base other --html both.html",
    "export base --format perfetto",
    "export base --format snapshot",
    "export base --format csv",
    "export base --format memory_events",
    "what-if base",
    "import theirs.pickle --name theirs",
    "launch --help",
)
# The interpreter has every package. None is how Python marks a module that no import may find.
PROGRAM = """
import json, sys, traceback
blocked, commands = map(json.loads, sys.argv[1:])
sys.modules.update(dict.fromkeys(blocked))
from ray_memprof.cli import app
for command in commands:
    code = 0
    try:
        app(command.split())
    except SystemExit as left:
        code = left.code
    except Exception:
        traceback.print_exc()
        code = 1
    print(f"{command}: {code}", file=sys.stderr)
"""


def project_name(requirement: str) -> str:
    """Of "typer>=1; extra == 'x'": typer, as it is normalised."""
    (name,) = re.findall(r"^[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


def brought_by(requirements: list[str]) -> set[str]:
    """The projects that are installed with these: themselves and what they need, extras left out."""
    found: set[str] = set()
    waiting = [project_name(one) for one in requirements]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needed = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:  # for another Python or another system
            continue
        found.add(name)
        waiting += [project_name(one) for one in needed if "extra ==" not in one]
    return found


def blocked() -> set[str]:
    """Top-level modules of all projects that an installation without extras does not bring."""
    # A wheel holds plotly.js (hatch_build.py), which .ci/run tries; here plotly itself stands for it.
    brought = brought_by([*PROJECT["dependencies"], "plotly"]) | {"ray-memprof"}
    modules = metadata.packages_distributions().items()
    return {module for module, projects in modules if not brought & {project_name(one) for one in projects}}


def call(*commands: str, blocking: set[str]) -> subprocess.CompletedProcess[str]:
    """Run commands one after the other; the last line of each on stderr is its exit code."""
    texts = [json.dumps(sorted(blocking)), json.dumps(commands)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *texts],
        capture_output=True,
        text=True,
        timeout=100,
        env=environ,
        check=False,
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two runs and a snapshot: 30 MiB, and 40."""
    monkeypatch.chdir(tmp_path)
    for name, size in (("base", 30 * MIB), ("other", 40 * MIB)):
        allocator = CachingAllocator()
        allocator.free(allocator.alloc(size))
        folder = tmp_path / "profiler_logs" / name / "20260101-000000-aaaa"
        tables = {"spans": [span(1, "denoise", (0, 99), allocated=(0, 0, size))]}
        write_recorded(folder, allocator.take_events(), tables=tables, device_total_bytes=200 * MIB)
    write(tmp_path / "theirs.pickle", snapshot([event("alloc", 0, 512)], []))
    return tmp_path


def test_torch_ray_and_their_like_are_left_out() -> None:
    assert HEAVY - blocked() == set()
    assert blocked() & {"ray_memprof", "wan", "duckdb", "pyarrow", "numpy", "typer", "jinja2"} == set()


def test_a_command_that_answers_needs_no_extra(here: Path) -> None:
    done = call(*COMMANDS, blocking=blocked())
    told = done.stderr.splitlines()
    assert [line for line in told if line in {f"{command}: 0" for command in COMMANDS}] == [
        f"{command}: 0" for command in COMMANDS
    ], done.stderr
    assert "Traceback" not in done.stderr
    pages = [path.name for path in here.rglob("*.html")]
    assert sorted(pages) == ["both.html", "flame.html", "report.html", "report.html"]


def test_what_is_blocked_is_blocked(here: Path) -> None:
    """Else the test above would show nothing: without Jinja there is no report."""
    done = call("report", blocking={"jinja2"})
    assert (done.stderr.splitlines()[-1], "halted; None in sys.modules" in done.stderr) == ("report: 1", True)


def test_a_launch_is_refused_in_one_line(here: Path) -> None:
    launch = f"launch {ROOT / 'configs' / 'cpu2.yaml'}"
    done = call(launch, blocking=blocked())
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: a launch needs ray, torch, ") and first.endswith("are not installed here")
    assert (done.stdout, rest) == ("", ["hint: pip install 'ray-memprof[run]'", f"{launch}: 2"])
