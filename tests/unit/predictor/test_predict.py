"""python -m ray_memprof.predict: a run folder like any other, and refusals in one line."""

import json
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ray_memprof.analysis.diagnosis.findings import diagnosed, found_text
from ray_memprof.driver import exporting
from ray_memprof.errors import EXIT_CONFIG, EXIT_DEVICE_OOM, EXIT_OK, EXIT_START_FAILED
from ray_memprof.predict import app
from ray_memprof.predictor import run
from ray_memprof.query.ask import ask
from ray_memprof.store.find_run import find_run

TINY = """
name: tiny
model_config: {task: t2v-tiny, weights: random}
generation: {size: 64*48, frame_num: 9, sample_steps: 2, prompt: a boat}
"""


def call(folder: Path, text: str, *arguments: str) -> Result:
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    output = f"logging.output_dir={folder / 'runs'}"
    return CliRunner().invoke(app, [str(path), "--set", output, *arguments])


@pytest.mark.timeout(300)
def test_ranks_of_their_own_processes_make_one_run_that_answers(tmp_path: Path) -> None:
    result = call(
        tmp_path, TINY + "parallel: {ulysses: 4, vae: split, dit_fsdp: true}\n", "--gpu", "RTX 4090"
    )
    assert result.exit_code == EXIT_OK, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "tiny: 4 x NVIDIA GeForce RTX 4090 (data sheet; what lies outside the allocator is estimated from an H200's)"
    )
    assert "ranks 1, 2 alike: ok, " in result.stdout
    assert "replay: exact to the byte on 4 of 4 ranks" in lines
    assert not any("at least" in line for line in lines)
    folder = find_run(lines[1].removeprefix("  into "))
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (facts["status"], facts["source"], facts["num_ranks"]) == ("ok", "predicted", 4)
    assert ask("SELECT source FROM runs", [folder]).to_pylist() == [{"source": "predicted"}]
    peaks = ask("peak_by_rank", [folder]).to_pylist()
    assert [row["rank"] for row in peaks] == [0, 1, 2, 3]
    assert peaks[1]["allocated_peak_bytes"] == peaks[2]["allocated_peak_bytes"] > 33 * 2**20
    assert {row["device_total_bytes"] for row in peaks} == {int(23.64 * 1024) * 2**20}
    (headlines,) = ask("headlines", [folder]).to_pylist()
    assert headlines["unexplained_fraction"] == 0
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.usefixtures("warm")
def test_a_process_that_is_killed_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(run, "_predict_ranks", killed)
    result = call(tmp_path, TINY)
    assert result.exit_code == EXIT_START_FAILED
    (folder,) = (tmp_path / "runs" / "tiny").glob("2*")
    assert result.stderr.splitlines() == [
        f"error: a process that predicts a rank was killed: see {folder / 'logs'}",
        "hint: is host memory short? Predicting a rank takes 1 to 2 GiB",
    ]
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (facts["status"], facts["exit_code"]) == ("failed", EXIT_START_FAILED)


@pytest.mark.usefixtures("warm")
@pytest.mark.timeout(300)
def test_the_runs_of_a_matrix_are_set_side_by_side(tmp_path: Path) -> None:
    rows = "matrix:\n  - name: plain\n  - name: sliced\n    set: {optimization.attention_slicing: true}\n"
    result = call(tmp_path, TINY + rows)
    assert result.exit_code == EXIT_OK, result.output
    assert [line for line in result.stdout.splitlines() if line.endswith(": ok, exit 0")] == [
        "tiny-plain: ok, exit 0",
        "tiny-sliced: ok, exit 0",
    ]
    assert (tmp_path / "runs" / "tiny-matrix.html").stat().st_size > 10_000


@pytest.mark.usefixtures("warm")
@pytest.mark.timeout(300)
def test_the_stages_are_those_of_a_launch_and_what_has_no_effect_is_told(tmp_path: Path) -> None:
    sets = ("generation.save_file=/nowhere/boat.mp4", "logging.level=stack", "ray.placement=spread")
    result = call(tmp_path, TINY, "--gpu", "H200", *(f"--set={one}" for one in sets))
    assert result.exit_code == EXIT_OK, result.output
    lines = result.stdout.splitlines()
    assert lines[2:4] == [
        "warning: logging.level stack: a prediction has no Python stacks, its rows are those of level event",
        "warning: ray.placement: no effect on a prediction, which needs no Ray",
    ]
    stages = ask(
        "SELECT DISTINCT stage FROM spans ORDER BY ALL", [find_run(lines[1].removeprefix("  into "))]
    )
    assert stages.column("stage").to_pylist() == [
        "decode", "denoise", "device.init", "encode.text", "load.dit", "residency.offload", "residency.onload", "save",
        "warmup",
    ]  # fmt: skip


@pytest.mark.usefixtures("warm")
@pytest.mark.timeout(300)
def test_a_gpu_that_is_too_small_ends_in_11_and_tells_what_was_free(tmp_path: Path) -> None:
    # 17 GB of a 14B model in bf16 beside 11 GB of the text encoder, which stays.
    text = TINY.replace("t2v-tiny", "t2v-14B, offload: false").replace("64*48", "832*480")
    result = call(tmp_path, text, "--gpu", "RTX 4090")
    assert result.exit_code == EXIT_DEVICE_OOM, result.output
    folder = find_run(result.stdout.splitlines()[1].removeprefix("  into "))
    (rank,) = ask("SELECT status, reason, oom_free_bytes AS free FROM ranks", [folder]).to_pylist()
    (event,) = ask(
        "SELECT address AS free, size_bytes AS asked FROM allocs WHERE action = 'oom'", [folder]
    ).to_pylist()
    assert rank["status"] == "oom" and rank["reason"].startswith("device out of memory in load.dit: ")
    assert rank["free"] == event["free"] < event["asked"]
    assert (
        found_text([diagnosed(folder)])
        .splitlines()[1]
        .startswith("severe: Rank 0 ran out of device memory in load.dit: ")
    )


def test_a_prediction_is_sent_as_its_configuration_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[Path, tuple[str, ...], float]] = []

    def exported(run_dir: Path, services: Sequence[str], *, limit_s: float, is_stopped: object) -> list[str]:
        sent.append((run_dir, tuple(services), limit_s))
        return [f"warning: {one}: the run was not sent" for one in services]

    monkeypatch.setattr(run, "predict", lambda config, **how: (EXIT_OK, tmp_path / config.name))
    monkeypatch.setattr(exporting, "exported", exported)
    result = call(
        tmp_path,
        TINY + "logging: {export: [wandb, mlflow]}\nray: {timeouts: {export_s: 7}}\n",
        "--gpu",
        "H200",
    )
    assert sent == [(tmp_path / "tiny", ("wandb", "mlflow"), 7.0)]
    # A service that fails is a line, and no error of the prediction.
    assert (result.exit_code, result.stdout.splitlines()) == (
        EXIT_OK,
        ["warning: wandb: the run was not sent", "warning: mlflow: the run was not sent"],
    )


@pytest.mark.parametrize(
    ("text", "arguments", "error", "hint"),
    [
        (TINY, ["--gpu", "Voodoo 2"], "--gpu Voodoo 2: there is no profile of it", "there are: a100, b200"),
        (
            TINY.replace("task:", "device: cpu, task:"),
            [],
            "model_config.device is cpu: a prediction is of GPUs",
            "model_config.device: cuda",
        ),
        (
            "name: s\nworkload: script\nscript: {module: json}\nranks: 1\n",
            [],
            "workload is script: only runs of wan are predicted",
            "workload: wan",
        ),
        (
            TINY + "parallel: {ulysses: 2, backend: xfuser}\n",
            [],
            "parallel.backend is xfuser, which cannot be imported without a GPU",
            "parallel.backend: native",
        ),
        (
            TINY,
            ["--set", "generation.use_prompt_extend=true"],
            "generation.use_prompt_extend is true",
            "generation.use_prompt_extend=false",
        ),
        (
            TINY,
            ["--set", "logging.profile_memory=false"],
            "logging.profile_memory is false: a prediction without it has no figures",
            "logging.profile_memory=true",
        ),
        (TINY, ["--set", "generation.steps=3"], "generation.steps", "sample_steps"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_a_folder_is_made(
    text: str, arguments: list[str], error: str, hint: str, tmp_path: Path
) -> None:
    result = call(tmp_path, text, *arguments)
    assert result.exit_code == EXIT_CONFIG
    first, second = result.stderr.splitlines()
    assert error in first and first.startswith("error: ")
    assert hint in second and second.startswith("hint: ")
    assert not (tmp_path / "runs").exists()
