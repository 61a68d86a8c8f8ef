"""The flags of the launcher, up to where a run would begin; and a run that is left at once."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ray_memprof import launch
from ray_memprof.driver.interrupts import Abandoned
from ray_memprof.launch import app

CPU2 = Path(__file__).parents[3] / "configs" / "cpu2.yaml"
MOST_LINES = 120
SCRIPT = "name: x\nworkload: script\nscript: {path: a.py, module_spans: [own]}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def dry_run(config: Path, text: str, *flags: str) -> tuple[int, str, str]:
    config.write_text(text)
    done = CliRunner().invoke(app, [str(config), "--dry-run", *flags])
    return done.exit_code, done.stdout, done.stderr


def test_the_file_to_read_first_is_short() -> None:
    assert len(Path(launch.__file__).read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_without_flags_the_file_is_in_effect(config: Path) -> None:
    code, out, err = dry_run(config, SCRIPT)
    assert (code, yaml.safe_load(out)["script"]["module_spans"], err) == (0, ["own"], "")


def test_module_spans_are_taken_as_they_are_typed_and_in_place_of_the_file_s(config: Path) -> None:
    patterns = ["blocks.*", "a'b: [", '"']
    flags = [part for pattern in patterns for part in ("--module-spans", pattern)]
    code, out, _ = dry_run(config, SCRIPT, *flags)
    assert (code, yaml.safe_load(out)["script"]["module_spans"]) == (0, patterns)


def test_module_spans_go_with_a_script_only(config: Path) -> None:
    flags = ("--module-spans", "blocks.*")
    refusal = "error: --set: script is given, but workload is wan\nhint: workload: script\n"
    assert dry_run(config, "name: x\n", *flags) == (2, "", refusal)


def test_the_path_of_a_script_is_still_asked_for(config: Path) -> None:
    flags, missing = ("--module-spans", "blocks.*"), "script.path is missing, or script.module"
    code, _, err = dry_run(config, "name: x\nworkload: script\n", *flags)
    assert (code, err) == (2, f"error: {config}: {missing}\nhint: script: {{path: train.py, args: []}}\n")


def test_a_run_that_is_left_at_once_says_so_before_its_cluster_goes_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a cluster that takes longer to go down than Interrupts lets it."""
    found = []

    class Cluster:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> "Cluster":
            return self

        def __exit__(self, *_: object) -> None:
            (path,) = tmp_path.glob("logs/x/2*/run.json")
            found.append(json.loads(path.read_text())["status"])

        def start(self) -> None:
            raise Abandoned(2)

    monkeypatch.setattr("ray_memprof.driver.cluster.Cluster", Cluster)
    flags = ["--plain", "--set", "name=x", "--set", f"logging.output_dir={tmp_path / 'logs'}"]
    done = CliRunner().invoke(app, [str(CPU2), *flags])
    assert (done.exit_code, found) == (130, ["interrupted"])


def output_dir(config: Path, text: str, *flags: str) -> str:
    code, out, _ = dry_run(config, text, *flags)
    assert code == 0
    return str(yaml.safe_load(out)["logging"]["output_dir"])


def test_runs_are_kept_where_the_option_the_file_or_the_environment_says(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = f"{SCRIPT}logging: {{output_dir: in_file}}\n"
    monkeypatch.delenv("RAY_MEMPROF_DIR", raising=False)
    assert output_dir(config, SCRIPT) == "profiler_logs"
    monkeypatch.setenv("RAY_MEMPROF_DIR", "007: there")
    assert output_dir(config, SCRIPT) == "007: there"
    assert output_dir(config, f"{SCRIPT}logging: {{output_dir: null}}\n") == "007: there"
    assert output_dir(config, named) == "in_file"
    assert output_dir(config, named, "--output-dir", "1e3") == "1e3"


def test_a_section_that_is_none_is_refused_as_before(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, without = dry_run(config, f"{SCRIPT}logging: nothing\n")
    monkeypatch.setenv("RAY_MEMPROF_DIR", "there")
    assert (code, dry_run(config, f"{SCRIPT}logging: nothing\n")) == (2, (2, "", without))
