"""A recorded run is predicted afterwards: both stand side by side, and the run stays as it was."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from measured import as_measured
from run_tables import answer, make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.config.load import from_mapping
from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import ConfigError, RunError
from ray_memprof.predictor import audit
from ray_memprof.predictor.audit import audit_after, audited
from ray_memprof.predictor.run import predict
from ray_memprof.store.run_files import table_dir
from ray_memprof.store.run_list import listed_runs

GIB = 2**30


def config_of(folder: Path, **sections: Any) -> RunConfig:
    model = {"task": "t2v-tiny", "weights": "random", **sections.pop("model_config", {})}
    generation = {"size": "64*48", "frame_num": 9, "sample_steps": 2, "prompt": "a boat"}
    logging = {"output_dir": str(folder / "runs"), **sections.pop("logging", {})}
    mapping = {"name": "x", "model_config": model, "generation": generation, "logging": logging, **sections}
    return from_mapping(mapping, source="x.yaml", folder=folder)


@pytest.mark.usefixtures("warm")
@pytest.mark.timeout(300)
def test_a_run_that_is_as_predicted_and_one_that_takes_more(tmp_path: Path) -> None:
    # GIVEN a run that a GPU measured exactly as it is predicted
    code, run_dir = predict(config_of(tmp_path), gpu="H200", say=lambda _: None)
    assert code == 0
    as_measured(run_dir)
    # WHEN it is audited
    lines = list(audited(run_dir))
    # THEN nothing differs, and no second run has appeared
    assert lines[0].startswith("predicting x: 1 x NVIDIA H200 (measured on one H200")
    assert lines[1].startswith(
        "predicted against measured, the worst rank: allocated +0.00% (stated: 0.5%), reserved +0.00% "
        "(stated: 1.5%), device used +0.00% (stated: 1.5%); "
    )
    assert len(lines) == 2 and [one.run_id for one in listed_runs(tmp_path / "runs")] == [run_dir.name]
    rows = answer(run_dir, "predicted_vs_measured")
    assert {row[1] for row in rows} >= {None, "device.init", "encode.text", "denoise", "decode"}
    assert {row[2] for row in rows} == {
        *("allocated", "reserved", "device_used", "context", "nccl", "libraries"),
    }
    assert all(row[3] == row[4] for row in rows)
    facts = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["prediction"]
    assert (facts["gpu"], facts["reason"]) == ("NVIDIA H200", "")
    # WHEN it had taken a GiB more in one stage THEN the command names it, the report too
    as_measured(run_dir, added_bytes=GIB)
    result = CliRunner().invoke(app, ["audit", str(run_dir), "--gpu", "h200"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == (
        "beyond the stated error: allocated in the whole run on rank 0; reserved in the whole run on rank 0; "
        "device used in the whole run on rank 0; allocated in decode on rank 0; reserved in decode on rank 0; "
        "device used in decode on rank 0: ray-memprof diagnose says what it means"
    )
    assert "1.00 GiB more in tensors in decode" in (run_dir / "report.html").read_text(encoding="utf-8")


def recorded(
    folder: Path, *, source: str = "cuda", workload: str = "wan", spans: int = 1, **rank: Any
) -> Path:
    run_dir = make_run(folder, {0: {"spans": [span(1, "denoise", (0, 9))] * spans}})
    make_ranks(run_dir, rank, source=source, workload=workload, status="ok")
    (run_dir / "run.json").write_text('{"run_id": "r", "name": "x"}', encoding="utf-8")
    (run_dir / "config.yaml").write_text(
        "name: x\nmodel_config: {task: t2v-tiny, weights: random}\n", encoding="utf-8"
    )
    return run_dir


@pytest.mark.parametrize(
    ("run", "error"),
    [
        ({"source": "predicted"}, "is a run of source predicted: only what a GPU has measured"),
        ({"source": "cpu"}, "is a run of source cpu"),
        ({"workload": "script"}, "is no run of wan"),
        ({"spans": 0}, "recorded nothing"),
        ({"gpu_name": "Voodoo 2"}, "there is no profile of the GPU of this run: Voodoo 2"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(
    run: dict[str, Any], error: str, tmp_path: Path
) -> None:
    run_dir = recorded(tmp_path, **run)
    with pytest.raises(ConfigError, match=error):
        list(audited(run_dir))
    assert not table_dir(run_dir, "predicted").exists()


def said_after(config: RunConfig) -> list[str]:
    lines: list[str] = []
    audit_after(config, Path("a b"), lines.append)
    return lines


def test_a_launch_predicts_only_where_it_is_quick_unless_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "audited", lambda run_dir: iter([f"predicted {run_dir}"]))
    monkeypatch.setattr(audit, "estimated_s", lambda config: 9.9)
    assert said_after(config_of(tmp_path)) == ["predicted a b"]
    assert said_after(config_of(tmp_path, logging={"predict": False})) == []
    assert said_after(config_of(tmp_path, logging={"profile_memory": False})) == []
    assert said_after(config_of(tmp_path, model_config={"device": "cpu"})) == []
    monkeypatch.setattr(audit, "estimated_s", lambda config: 61.7)
    assert said_after(config_of(tmp_path)) == [
        "not predicted afterwards, for it takes about 62 s: ray-memprof audit 'a b'"
    ]
    assert said_after(config_of(tmp_path, logging={"predict": True})) == ["predicted a b"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunError("no profile", hint="make one"), "no profile"),
        (RuntimeError("two\nlines"), "RuntimeError: two"),
        (KeyboardInterrupt(), "interrupted; the run itself is complete"),
    ],
)
def test_what_goes_wrong_is_one_line(
    error: BaseException, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(run_dir: Path) -> Iterator[str]:
        yield "predicting"
        raise error

    monkeypatch.setattr(audit, "audited", failing)
    assert said_after(config_of(tmp_path)) == ["predicting", f"not predicted afterwards: {line}"]


def test_more_blocks_frames_and_kinds_of_ranks_take_longer(tmp_path: Path) -> None:
    tiny = audit.estimated_s(config_of(tmp_path))
    assert 5 < tiny < 8
    several = config_of(tmp_path, optimization={"batch_size": 3})
    assert audit.estimated_s(several) == pytest.approx(3 * tiny - 2 * 5.0)
    two = config_of(tmp_path, parallel={"ulysses": 2})
    assert audit.estimated_s(two) == pytest.approx(tiny)  # side by side
    three = config_of(tmp_path, parallel={"cfg": 2, "ulysses": 2})
    assert audit.estimated_s(three) == pytest.approx(2 * tiny)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model_config": {"device": "cpu"}}, "model_config.device is cpu"),
        ({"logging": {"predict": True, "profile_memory": False}}, "logging.profile_memory is false"),
    ],
)
def test_a_prediction_that_is_asked_for_and_impossible_is_refused(
    sections: dict[str, Any], key: str, tmp_path: Path
) -> None:
    given = {"logging": {"predict": True}, **sections}
    with pytest.raises(ConfigError, match=f"logging.predict is true, and {key}"):
        config_of(tmp_path, **given)
