"""ray-memprof run: a configuration or a program, up to where a run would begin; a program keeps its own arguments."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ray_memprof.cli import app

SCRIPT = "name: x\nworkload: script\nscript: {path: a.py, args: [1]}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_MEMPROF_DIR", raising=False)
    (tmp_path / "train.py").touch()
    (tmp_path / "x.yaml").write_text(SCRIPT)
    return tmp_path


def run(*arguments: str) -> dict[str, Any]:
    """The configuration that would be run."""
    done = CliRunner().invoke(app, ["run", "--dry-run", *arguments])
    assert (done.exit_code, done.stderr) == (0, "")
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


def refused(*arguments: str) -> list[str]:
    done = CliRunner().invoke(app, ["run", "--dry-run", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    return done.stderr.splitlines()


def test_nothing_is_refused() -> None:
    hint = "hint: ray-memprof run CONFIG.yaml, or ray-memprof run --ranks 4 train.py [ARGUMENTS]"
    assert refused() == ["error: there is nothing to run", hint]


def test_a_program_is_run_without_a_configuration(folder: Path) -> None:
    found = run("train.py")
    assert (found["name"], found["workload"], found["ranks"]) == ("train", "script", 1)
    script = found["script"]
    assert (script["path"], script["module"], script["args"]) == (str(folder / "train.py"), None, [])


@pytest.mark.parametrize(
    "own",
    [
        ["--lr", "1e-3"],
        ["--set", "a=b", "--ranks", "9", "--help", "-m", "x", "--", "007"],
        ["other.yaml", "--dry-run"],
        ["yes", "null", "", "a: b", "[", "#"],
    ],
)
def test_the_arguments_of_a_program_are_its_own(own: list[str]) -> None:
    options = ("--ranks", "4", "--set", "name=y", "--output-dir", "there", "--module-spans", "blocks.*")
    for before, kind in ((["train.py"], "path"), (["-m", "pkg.train"], "module")):
        found = run(*options, *before, *own)
        assert (found["script"]["args"], found["script"]["module_spans"]) == (own, ["blocks.*"])
        assert found["script"][kind] is not None
        assert (found["ranks"], found["name"], found["logging"]["output_dir"]) == (4, "y", "there")


def test_a_run_has_the_name_that_a_recorded_one_would_have() -> None:
    assert run("-m", "pkg.demo.__main__")["name"] == "demo"
    assert run("my train.py")["name"] == "my-train"


def test_a_configuration_is_launched_with_options_on_either_side() -> None:
    for arguments in (("x.yaml", "--ranks", "3"), ("--ranks", "3", "x.yaml"), ("--ranks=3", "x.yaml")):
        found = run(*arguments, "--set", "script.args=[7]")
        assert (found["name"], found["ranks"], found["script"]["args"]) == ("x", 3, ["7"])


def test_a_configuration_takes_no_arguments() -> None:
    assert refused("x.yaml", "7", "8") == [
        "error: x.yaml is a configuration, and takes no arguments: 7 8",
        "hint: those of a script stand in it, under script.args",
    ]


def test_what_cannot_be_used_is_one_line() -> None:
    assert refused("nope.yaml")[0].startswith("error: nope.yaml: No such file")
    assert refused("--set", "script.modul=x", "train.py")[0].startswith("error: --set")
    done = CliRunner().invoke(app, ["run", "nope.py"])
    assert done.exit_code == 2
    assert "nope.py" in done.stderr and "Traceback" not in done.stderr


def test_an_option_without_its_value_is_refused() -> None:
    assert CliRunner().invoke(app, ["run", "-m"]).exit_code == 2
    assert CliRunner().invoke(app, ["run", "--ranks"]).exit_code == 2
    assert CliRunner().invoke(app, ["run", "--nope", "train.py"]).exit_code == 2
