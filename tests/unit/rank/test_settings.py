"""What is recorded without the launcher: the options, their defaults, and what they become in config.yaml."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_memprof.config.load import from_mapping
from ray_memprof.errors import ConfigError
from ray_memprof.rank.command_line import parsed
from ray_memprof.rank.settings import Program, Settings
from ray_memprof.rank.starters import Start


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (Program(path=Path("src/train.py")), "train"),
        (Program(path=Path("my train (2).py")), "my-train-2"),
        (Program(path=Path("über.py")), "ber"),
        (Program(path=Path("___.py")), "program"),
        (Program(path=Path("latest.py")), "program"),
        (Program(path=Path(f"{'x' * 300}.py")), "program"),
        (Program(module="pkg.train"), "train"),
        (Program(module="pkg.__main__"), "pkg"),
        (Program(), "python"),
    ],
)
def test_the_run_has_the_name_of_its_program_as_far_as_a_folder_may(program: Program, name: str) -> None:
    assert Settings().run_name(program) == name
    assert Settings(name="mine").run_name(program) == "mine"


def test_runs_lie_where_the_option_says_else_the_environment_else_in_profiler_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings().folder({}) == tmp_path / "profiler_logs"
    assert Settings().folder({"RAY_MEMPROF_DIR": "there"}) == tmp_path / "there"
    assert Settings(output_dir=Path("here")).folder({"RAY_MEMPROF_DIR": "there"}) == tmp_path / "here"


def test_the_configuration_can_be_launched(tmp_path: Path) -> None:
    settings = Settings(level="stack", module_spans=("blocks.*",), sample_interval_s=0.5, output_dir=tmp_path)
    program = Program(path=Path("train.py"), args=("--steps", "9"))
    text = yaml.safe_dump(settings.config(program, Start(rank=0, num_ranks=4), "cpu"))
    config = from_mapping(yaml.safe_load(text), source="config.yaml")
    assert (config.name, config.num_ranks, config.model.device) == ("train", 4, "cpu")
    assert config.script is not None
    assert (config.script.path, config.script.args) == (Path("train.py"), ("--steps", "9"))
    assert config.script.module_spans == ("blocks.*",)
    assert (config.logging.level, config.logging.sample_interval_s) == ("stack", 0.5)
    assert config.logging.output_dir == tmp_path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Settings()),
        ({"name": None, "level": None}, Settings()),
        ({"name": "a", "level": "stack", "device": "cpu"}, Settings(name="a", level="stack", device="cpu")),
        ({"output_dir": "x", "sample_interval_s": 1}, Settings(output_dir=Path("x"), sample_interval_s=1.0)),
        ({"module_spans": ["a", "b"]}, Settings(module_spans=("a", "b"))),
        ({"ranges": ["nvtx", "record_function"]}, Settings(ranges=("nvtx", "record_function"))),
    ],
)
def test_a_file_of_settings(values: dict[str, Any], expected: Settings) -> None:
    assert Settings.of(values) == expected


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (None, "the file of settings is no mapping"),
        ({"names": 1}, "there is no setting 'names'"),
        ({3: 1}, "there is no setting 3"),
        ({"name": 5}, "name 5 is no text"),
        ({"name": "a b"}, "name 'a b' must be letters"),
        ({"level": "torch_profiler"}, "level 'torch_profiler' is none of stage, event, stack"),
        ({"ranges": "nvtx"}, "ranges 'nvtx' is no list of texts"),
        ({"ranges": ["nvtx", "itt"]}, "ranges 'itt' is none of nvtx, record_function"),
        ({"device": "tpu"}, "device 'tpu' is neither cpu nor cuda"),
        ({"sample_interval_s": True}, "sample_interval_s True is no number"),
        ({"sample_interval_s": float("nan")}, "sample_interval_s nan is not between"),
        ({"module_spans": [1]}, "module_spans [1] is no list of texts"),
        ({"output_dir": 4}, "output_dir 4 is no text"),
    ],
)
def test_what_cannot_be_used_is_named(values: Any, line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Settings.of(values)
    assert str(raised.value).startswith(line)


def test_what_stands_behind_the_program_is_the_programs(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text("")
    _, program = parsed(["--name", "a", str(script), "--name", "b", "-m", "c", "--", "d"])
    assert program == Program(path=script, args=("--name", "b", "-m", "c", "--", "d"))
    settings, program = parsed(["--level", "stage", "-m", "pkg.main", "--level", "x", "y.py"])
    assert settings.level == "stage"
    assert program == Program(module="pkg.main", args=("--level", "x", "y.py"))
    settings, _ = parsed(["--module-spans", "a", "--module-spans", "b", str(script)])
    assert settings.module_spans == ("a", "b")
