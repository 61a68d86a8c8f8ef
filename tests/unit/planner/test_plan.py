"""python -m ray_memprof.plan: its answers, its files and its exit codes; the space is kept small by --set."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from choices import GIB, Told, asked, measured, predicted
from typer.testing import CliRunner, Result

from ray_memprof.config.load import load_config
from ray_memprof.errors import EXIT_CONFIG, EXIT_NOTHING_FITS, EXIT_OK, ConfigError
from ray_memprof.plan import app
from ray_memprof.planner import full
from ray_memprof.planner import search as searching
from ray_memprof.planner.full import Predicted
from ray_memprof.planner.space import Asked, Choice, config_of
from ray_memprof.planner.table import facts_of, seconds_text, text_of, write_rows
from ray_memprof.predictor.gpu_profile import gpu_profile

if TYPE_CHECKING:
    from ray_memprof.predictor.processes import Processes

FEW = [
    f"--set={key}"
    for key in (
        "optimization.ffn_chunks=0", "optimization.vae_slabs=0", "optimization.attention_slicing=false",
        "optimization.expandable_segments=true", "model_config.t5_cpu=false", "model_config.offload=true",
    )
]  # fmt: skip


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["--task", "t2v-tiny", "--gpu", "RTX 4090", *arguments])


@pytest.mark.usefixtures("warm")
@pytest.mark.timeout(300)
def test_rows_are_predicted_written_and_drawn_and_nothing_else_is_on_the_standard_output(
    tmp_path: Path,
) -> None:
    page, folder = tmp_path / "plan.html", tmp_path / "rows"
    result = call(*FEW, "--json", "--rows", "2", "--write", str(folder), "--html", str(page))
    assert result.exit_code == EXIT_OK, result.stderr
    plan: dict[str, Any] = json.loads(result.stdout)
    assert plan["judged"]["legal"] == 3 and plan["judged"]["predicted"] == 2
    assert [row["row"] for row in plan["rows"]] == [1, 2]
    for row in plan["rows"]:
        assert 0 < row["bound_bytes"] <= row["device_used_bytes"]
        assert row["headroom_bytes"] == plan["limit_bytes"] - row["device_used_bytes"]
        config = load_config(row["file"])
        assert config.model.load_strategy == row["flags"]["load_strategy"]
    assert "bounds" in result.stderr and "predicting 2 in full" in result.stderr
    html = page.read_text(encoding="utf-8")
    assert "2 ways fit" in html and 'data-figure="front"' in html


@pytest.mark.usefixtures("warm")
@pytest.mark.timeout(300)
def test_where_nothing_fits_the_exit_code_is_1_and_the_nearest_is_told() -> None:
    result = call(*FEW, "--limit", "500 MiB")
    assert result.exit_code == EXIT_NOTHING_FITS, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "nothing fits: t2v-tiny on NVIDIA GeForce RTX 4090 under 500 MiB"
    assert lines[1].startswith("nearest: ") and "of the device are missing in " in lines[1]
    assert lines[-1].startswith("3 legal configurations: 3 cannot fit, by a bound; ")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--limit", "22"], "error: --limit: '22' is no size"),
        (["--host-memory", "much"], "error: --host-memory: 'much' is no size"),
        (["--gpu", "Voodoo"], "error: --gpu Voodoo: there is no profile of it"),
        (["--gpu", "here"], "error: --gpu here: this machine has no GPU of which there is a profile"),
        (["--frames", "8"], "error: plan: generation.frame_num 8 is not 4n+1"),
        (["--size", "9*9"], "error: plan: generation.size 9*9 is not a size of t2v-tiny"),
        (["--task", "t2v-teeny"], "error: plan: model_config.task 't2v-teeny' is not a task"),
        (["--flag", "chunks"], "error: --flag chunks: not of the form flag=value"),
        (["--flag", "fn_chunks=3"], "error: --flag fn_chunks=3: fn_chunks is no flag of wan.generate"),
        (
            ["--set", "model_config.task=t2v-14B"],
            "error: --set model_config.task=t2v-14B and --task t2v-tiny: ",
        ),
        (
            ["--set", "generation.frame_num=5", "--frames", "9"],
            "error: --set generation.frame_num=5 and --frames 9: ",
        ),
        (
            ["--gpus", "2", "--flag", "size=64*48", "--size", "64*48"],
            "error: --set generation.size=64*48 and --size ",
        ),
        (["--set", "ranks=2"], "error: --set ranks=2 and --gpus 1: "),
        (["--write", "/dev/null"], "error: --write /dev/null: it is no folder"),
        (["--output-dir", "/dev/null/runs"], "error: cannot write /dev/null/runs/"),
        (["--write", "/proc/rows"], "error: cannot write /proc/rows/plan-1.yaml: "),
        (["--html", "/proc/page.html"], "error: cannot write /proc/page.html: "),
        (["--html", "/proc"], "error: cannot write /proc: it is a folder"),
        (["--set", "logging.profile_memory=false"], "error: logging.profile_memory is false: "),
        (
            ["--set", "model_config.ckpt_dir=/nowhere"],
            "error: model_config.ckpt_dir /nowhere: there is no such folder",
        ),
        (["--gpus", "3", "--set", "parallel.ulysses=3"], "error: plan: parallel.ulysses 3 does not divide"),
    ],
)
def test_bad_input_ends_in_one_line_and_a_hint(
    arguments: list[str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_memprof.planner import space

    monkeypatch.setattr(space, "gpu_at_hand", lambda: "")
    result = call(*arguments, "--json")
    assert result.exit_code == EXIT_CONFIG
    # Behind the lines that say how far it is. The standard output has a plan, or nothing.
    *_, first, hint = result.stderr.splitlines()
    assert first.startswith(error) and hint.startswith("hint: ") and result.stderr.count("error: ") == 1
    assert result.stdout == ""


def test_a_key_that_cannot_be_leaves_its_line_and_nothing_of_the_libraries() -> None:
    command = [
        sys.executable,
        "-m",
        "ray_memprof.plan",
        "--task",
        "t2v-tiny",
        "--gpu",
        "H200",
        "--set",
        "name=a/b",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (EXIT_CONFIG, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: plan: name 'a/b': must be letters ")


def planned_for(folder: Path) -> Result:
    """A plan of one choice, with weights from a folder."""
    one = ("--set=model_config.load_strategy=block", "--frames", "5", f"--set=model_config.ckpt_dir={folder}")
    return call(*FEW, *one, "--json")


@pytest.mark.usefixtures("warm")
@pytest.mark.timeout(300)
def test_a_checkpoint_is_planned_for(folders: dict[str, Path]) -> None:
    result = planned_for(folders["t2v-tiny"])
    assert result.exit_code == EXIT_OK, result.stderr
    assert json.loads(result.stdout)["judged"] == {
        "legal": 1, "over_by_weights": 0, "over_by_bound": 0, "over_host_memory": 0, "over_by_prediction": 0,
        "predicted": 1, "left": 0,
    }  # fmt: skip


@pytest.mark.timeout(300)
def test_a_file_of_which_no_run_can_be_made_is_an_error_and_no_lack_of_memory(
    folders: dict[str, Path],
) -> None:
    # Not with warm processes: the error ends them.
    result = planned_for(folders["i2v-tiny"])
    assert (result.exit_code, result.stdout) == (EXIT_CONFIG, "")
    assert result.stderr.splitlines()[-2] == (
        f"error: no configuration can be predicted: rank 0: folder {folders['i2v-tiny']} holds an i2v-tiny checkpoint, "
        "the task is t2v-tiny"
    )


@pytest.mark.parametrize(
    ("limit", "wanted"), [("0 GiB", 0), ("200 MiB", 200 * 2**20), ("1 TiB", None), (None, None)]
)
def test_a_limit_is_what_is_asked_for_and_no_more_than_the_gpu_has(
    limit: str | None, wanted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[int] = []

    def search(asked: Asked, **_: object) -> searching.Plan:
        asked_for.append(asked.limit_bytes)
        return searching.Plan(asked=asked)

    monkeypatch.setattr(searching, "search", search)
    result = call(*(["--limit", limit] if limit else []))
    assert result.exit_code == EXIT_NOTHING_FITS, result.stderr
    total = gpu_profile("RTX 4090").total_bytes
    assert asked_for == [total if wanted is None else wanted]
    note = "note: --limit 1 TiB: NVIDIA GeForce RTX 4090 has 23.6 GiB, which is the limit\n"
    assert result.stderr == (note if limit == "1 TiB" else "")


def test_without_a_row_no_configuration_is_said_to_be_slower_than_one() -> None:
    told = Told(lambda choice, stage: measured(20), lambda choice: predicted(25, run_s=90))
    plan = searching.search(asked(), num_rows=1, say=lambda _: None, tools=told)
    assert not plan.rows and "than a row" not in text_of(plan)


def test_fp8_is_only_proposed_where_the_device_is_short() -> None:
    line = "  --inexact tries weights and products in fp8, which change the result"
    told = Told(lambda choice, stage: measured(20), lambda choice: predicted(25, run_s=90))
    short = searching.search(asked(), num_rows=1, say=lambda _: None, tools=told)
    assert line in text_of(short).splitlines()
    wanted = asked(host_limit_bytes=2**29)
    told = Told(lambda choice, stage: measured(2), lambda choice: predicted(2.5, run_s=90))
    host = searching.search(wanted, num_rows=1, say=lambda _: None, tools=told)
    assert "512 MiB of host memory are missing" in text_of(host) and line not in text_of(host).splitlines()


def test_a_row_is_written_whole_or_an_error_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "plan-2.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot write .*plan-2\.yaml: it is a folder"):
        write_rows(found(), tmp_path)
    assert load_config(tmp_path / "plan-1.yaml").name == "plan-1"


@pytest.mark.timeout(60)
def test_when_one_prediction_is_interrupted_nobody_waits_for_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = threading.Event()
    processes = cast("Processes", SimpleNamespace(stop=stopped.set))

    def predict(asked: Asked, choice: Choice, processes: object) -> Predicted:
        if choice.t5_cpu:
            raise KeyboardInterrupt
        assert stopped.wait(30), "the other one goes on"
        return predicted(1)

    monkeypatch.setattr(full, "predict_in_full", predict)
    with pytest.raises(KeyboardInterrupt):
        full.predict_all(asked(), [Choice(t5_cpu=True), Choice()], processes)
    assert stopped.is_set()


def found(**changed: object) -> searching.Plan:
    told = Told(lambda choice, stage: measured(2), lambda choice: predicted(2.5, run_s=90))
    return searching.search(asked(**changed), num_rows=3, say=lambda _: None, tools=told)


def test_a_file_of_a_row_loads_into_what_was_predicted(tmp_path: Path) -> None:
    plan = found(num_gpus=2, size="128*96", overrides=("optimization.batch_size=2",))
    files = write_rows(plan, tmp_path / "rows")
    assert [file.name for file in files] == ["plan-1.yaml", "plan-2.yaml", "plan-3.yaml"]
    for file, row in zip(files, plan.rows, strict=True):
        loaded = load_config(file)
        wanted = config_of(plan.asked, row.choice, file.stem)
        seed = {"base_seed": 0}
        assert loaded.model_copy(
            update={"generation": loaded.generation.model_copy(update=seed)}
        ) == wanted.model_copy(update={"generation": wanted.generation.model_copy(update=seed)})
        assert loaded.optimization.batch_size == 2 and loaded.num_ranks == 2


def test_the_json_is_plain_data_with_bytes_and_seconds() -> None:
    facts = facts_of(found())
    assert json.loads(json.dumps(facts)) == facts
    assert facts["schema_version"] == 1 and facts["nearest"] is None
    row = facts["rows"][0]
    assert set(row) == {
        "row", "device_used_bytes", "headroom_bytes", "stage", "rank", "step_s", "run_s", "host_bytes",
        "bound_bytes", "is_inexact", "levers", "set", "flags", "file",
    }  # fmt: skip
    assert (row["device_used_bytes"], row["bound_bytes"]) == (int(2.5 * GIB), 2 * GIB)
    assert row["levers"] == "no lever" and row["set"] == {} and row["flags"]["offload_model"] is True


def test_the_table_has_a_line_for_each_row() -> None:
    lines = text_of(found(num_gpus=2)).splitlines()
    assert lines[0].split("  ")[0] == "row" and lines[0].endswith("levers")
    assert "2.50 GiB" in lines[1] and "7.50 GiB" in lines[1] and "denoise, rank 0" in lines[1]
    assert len(lines) == 1 + 3 + 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.50 s"), (48, "48 s"), (720, "12 min"), (11160, "3.1 h")]
)
def test_times_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_a_row_is_named_by_what_is_not_at_its_default() -> None:
    from ray_memprof.planner.table import levers_text

    assert levers_text(Choice(cfg=2, offload=False, ffn_chunks=16)) == "cfg 2, no offload, ffn_chunks 16"
