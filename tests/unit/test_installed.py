"""What is not installed: one line, the extra that brings it, exit code 2, and nothing begun."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

import ray_memprof
from ray_memprof import launch, record
from ray_memprof.config.load import load_config
from ray_memprof.driver.finish import _connected
from ray_memprof.errors import ConfigError
from ray_memprof.installed import need
from wan import generate
from wan.options_here import PACKAGES, VIDEO_PACKAGES, packages_of

CPU2 = Path(__file__).parents[2] / "configs" / "cpu2.yaml"
HINT = "hint: pip install 'ray-memprof[run]'"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def without(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Let no import find these packages: None is how Python itself marks a module that cannot be imported."""
    for name in names:
        patch.setitem(sys.modules, name, None)


def test_nothing_is_missing() -> None:
    need((), "it")
    need(("torch", "ray", *PACKAGES), "it")


def test_every_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "ray", "av")
    with pytest.raises(ConfigError) as one:
        need(("torch", "ray"), "a launch")
    with pytest.raises(ConfigError) as two:
        need(("ray", "json", "av"), "it", extra="other")
    assert (str(one.value), one.value.hint) == (
        "a launch needs ray, which is not installed here",
        "pip install 'ray-memprof[run]'",
    )
    assert (str(two.value), two.value.hint) == (
        "it needs ray, av, which are not installed here",
        "pip install 'ray-memprof[other]'",
    )


@pytest.mark.parametrize("name", ["ray", "torch", "diffusers"])
def test_a_launch_begins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without(monkeypatch, name)
    done = CliRunner().invoke(launch.app, [str(CPU2), "--set", f"logging.output_dir={tmp_path / 'logs'}"])
    refusal = [f"error: a launch needs {name}, which is not installed here", HINT]
    assert (done.exit_code, done.stdout, done.stderr.splitlines()) == (2, "", refusal)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_is_checked_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "ray", *PACKAGES)
    done = CliRunner().invoke(launch.app, [str(CPU2), "--dry-run"])
    assert (done.exit_code, yaml.safe_load(done.stdout)["name"], done.stderr) == (0, "cpu2", "")


@pytest.mark.parametrize(
    ("settings", "missing", "is_refused"),
    [
        ([], "diffusers", False),  # a script brings its own
        ([], "torch", True),
        (["ray.address=head:6379"], "torch", False),  # its hosts have theirs
        (["ray.address=head:6379"], "ray", True),
    ],
)
def test_a_run_needs_only_what_it_imports_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], missing: str, is_refused: bool
) -> None:
    from ray_memprof.config.rules import check_packages

    config = tmp_path / "x.yaml"
    config.write_text("name: x\nworkload: script\nscript: {path: a.py}\n")
    found = load_config(config, settings)
    without(monkeypatch, missing)
    if not is_refused:
        check_packages(found)
        return
    with pytest.raises(ConfigError, match=f"a launch needs {missing}, which"):
        check_packages(found)


@pytest.mark.parametrize(
    ("settings", "is_refused"),
    [
        ([], False),  # the video is made and not kept
        (["generation.save_file=x.mp4"], True),
        (["generation.save_file=x.mp4", "ray.address=head:6379"], False),  # its hosts have theirs
        (["generation.frame_num=1", "generation.save_file=x.png"], False),
        (["model_config.task=vace-tiny", "generation.src_video=x.mp4"], True),
    ],
)
def test_videos_need_their_package_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, settings: list[str], is_refused: bool
) -> None:
    from ray_memprof.config.rules import check_packages

    found = load_config(CPU2, settings)
    without(monkeypatch, *VIDEO_PACKAGES)
    if not is_refused:
        check_packages(found)
        return
    with pytest.raises(ConfigError, match="a launch needs av, which is not installed here"):
        check_packages(found)


@pytest.mark.parametrize(
    ("sources", "save_file", "is_needed"),
    [
        ({}, None, False),
        ({}, "x.PNG", False),
        ({}, "x.mp4", True),
        ({"src_mask": "mask.png"}, None, False),
        ({"src_mask": "mask.webm"}, None, True),
        ({"src_video": "clip.gif"}, "x.png", True),
    ],
)
def test_what_is_read_and_written_says_whether_videos_are(
    sources: dict[str, str], save_file: str | None, is_needed: bool
) -> None:
    files = {"src_video": None, "src_mask": None} | {name: Path(path) for name, path in sources.items()}
    found = packages_of(SimpleNamespace(**files), Path(save_file) if save_file else None)
    assert ("av" in found) == is_needed
    assert set(found) - {"av"} == set(PACKAGES)


def test_a_recording_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "torch")
    program = tmp_path / "a.py"
    program.write_text("print('it ran')")
    code = record.main([str(program)])
    told = capsys.readouterr()
    refusal = ["error: ray_memprof.record needs torch, which is not installed here", HINT]
    assert (code, told.out, told.err.splitlines()) == (2, "", refusal)
    with pytest.raises(ConfigError, match="ray_memprof.recording needs torch"):
        with ray_memprof.recording("x"):
            raise AssertionError
    assert list(tmp_path.iterdir()) == [program]


def test_a_video_is_not_begun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    without(monkeypatch, "tokenizers", "av")
    flags = ["--task", "t2v-tiny", "--weights", "random", "--device", "cpu"]
    assert (generate.main(flags), capsys.readouterr().err.splitlines()) == (
        2,
        ["error: wan.generate needs tokenizers, av, which are not installed here", HINT],
    )
    assert generate.main([*flags, "--task", "none"]) == 2
    assert "--task" in capsys.readouterr().err  # a wrong flag is told first


def test_records_on_other_hosts_need_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(CPU2, ["ray.address=head:6379"])
    without(monkeypatch, "ray")
    with pytest.raises(ConfigError, match="a Ray that reaches the hosts needs ray, which"):
        with _connected(config, None):
            raise AssertionError
