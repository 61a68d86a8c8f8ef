"""--fit of wan.generate: what it asks for, what it sets, and what it refuses."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wan import fit, generate
from wan.errors import EXIT_INPUT, InputError
from wan.fit import fitted

FLAGS = {
    "load_strategy": "stream", "offload_model": True, "t5_cpu": False, "weights_dtype": "precision",
    "matmul": "precision", "attention_slicing": True, "ffn_chunks": 16, "vae_slabs": 6, "fused_kernels": True,
    "expandable_segments": True, "ulysses_size": 1,
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[3]
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ASKED = ["--task", "t2v-14B", "--weights", "random"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run; the answer is one row, or what a test puts in its place."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        row = {"flags": FLAGS, "device_used_bytes": 6 * 2**30}
        return SimpleNamespace(stdout=json.dumps({"rows": [row], "limit_bytes": 1}), returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return commands


def test_without_fit_nothing_is_asked(asked: list[list[str]]) -> None:
    assert fitted(ASKED) == ASKED and asked == []


def test_levers_of_the_first_row_are_set_and_told_in_one_line(
    asked: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    made = fitted([*ASKED, "--fit", "--fit_limit", "8 GiB", "--frame_num", "33"])
    assert "--attention_slicing=True" in made and "--load_strategy=stream" in made
    assert not any("ulysses" in flag for flag in made)
    assert capsys.readouterr().err == (
        "fit: --load_strategy stream --attention_slicing True --ffn_chunks 16 --vae_slabs 6 "
        "(predicted: 6.0 GiB of the device)\n"
    )
    (command,) = asked
    assert {"--json", "--rows=1", "--gpu=here", "--task=t2v-14B", "--limit=8 GiB", "--frames=33"} < set(
        command
    )
    options = generate.parse(made)
    assert options.levers.ffn_chunks == 16 and options.load_strategy == "stream"


def test_what_the_user_gives_stays(asked: list[list[str]]) -> None:
    made = fitted([*ASKED, "--fit", "True", "--ffn_chunks=4", "--offload_model", "False"])
    assert generate.parse(made).levers.ffn_chunks == 4 and not generate.parse(made).offload_model
    assert {"--flag=ffn_chunks=4", "--flag=offload_model=false"} < set(asked[0])


def test_where_nothing_fits_it_is_told_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"rows": [], "limit_bytes": 8 * 2**30, "nearest": {"misses_by_bytes": 2**30}}
    found = SimpleNamespace(stdout=json.dumps(answer), returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: found)
    with pytest.raises(InputError, match=r"nothing fits under 8\.0 GiB; the nearest misses by 1\.0 GiB"):
        fitted([*ASKED, "--fit"])


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--fit_limit", "8 GiB"], "error: --fit_limit is given without --fit"),
        (["--fit", "--device", "cpu"], "error: --fit is for a GPU, --device is cpu"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    flags: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main([*ASKED, *flags]) == EXIT_INPUT
    first, hint = capsys.readouterr().err.splitlines()
    assert first == error and hint.startswith("hint: ")


def test_a_plan_that_fails_and_several_ranks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="", returncode=2))
    with pytest.raises(InputError, match="the plan ended with exit code 2"):
        fitted([*ASKED, "--fit"])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match="there are several ranks"):
        fitted([*ASKED, "--fit"])


@pytest.mark.parametrize(
    ("there", "error"),
    [
        # wan alone, and ray_memprof as a folder of files: of a clone whose packages were never installed.
        (["wan"], "error: --fit asks ray_memprof for a plan, which is not installed here"),
        (
            ["wan", "ray_memprof"],
            "error: --fit asks ray_memprof for a plan, which needs pydantic, yaml, rich, typer, duckdb, jinja2, numpy, "
            "pyarrow, pynvml, psutil, which are not installed here",
        ),
    ],
)
def test_without_ray_memprof_fit_ends_in_one_line(there: list[str], error: str, tmp_path: Path) -> None:
    for name in there:
        (tmp_path / name).symlink_to(ROOT / name)
    # -S: no installed packages.
    command = [sys.executable, "-S", "-m", "wan.generate", *ASKED, "--fit"]
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == EXIT_INPUT, done.stderr
    assert done.stderr == f"{error}\nhint: pip install 'ray-memprof[run]'\n"


def test_what_a_plan_needs_is_what_the_package_requires() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    modules = {"pyyaml": "yaml", "nvidia-ml-py": "pynvml"}
    assert fit._NEEDED == ("ray_memprof", *(modules.get(name, name) for name in requires))
