"""compare_levers.py: what its figures mean, a comparison on the CPU from random weights and from a folder, refusals."""

import math
from pathlib import Path

import pytest
import torch
from command_line import TINY, Captured, import_script

from wan.config import TASKS

compare_levers = import_script("compare_levers")
make_checkpoint = import_script("make_checkpoint")

SHORT = ("--device", "cpu", "--sample_steps", "2", "--frame_num", "5", "--base_seed", "3")
RANDOM = (*TINY, *SHORT)


def rows(text: str) -> dict[str, list[float]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name: [float(figure) for figure in row] for name, *row in lines[1:]}


def test_figures_of_equal_and_of_other_tensors() -> None:
    one = torch.tensor([3.0, -4.0])
    assert compare_levers.relative_error(one, one) == 0
    assert compare_levers.psnr(one, one, 2.0) == math.inf
    assert compare_levers.relative_error(one + torch.tensor([0.3, 0.4]), one) == pytest.approx(0.1)
    assert compare_levers.psnr(one + 0.2, one, 2.0) == pytest.approx(20.0)


def test_inexact_levers_change_the_video_and_exact_ones_do_not(capsys: Captured) -> None:
    levers = ("weights_dtype=fp8", "weights_dtype=fp8,matmul=fp8", "load_strategy=stream")

    code = compare_levers.main([*RANDOM, *(part for lever in levers for part in ("--lever", lever))])

    out = capsys.readouterr().out
    assert code == 0
    assert "seed 3, bf16 on cpu" in out and "random weights: the picture is noise" in out
    found = rows(out)
    assert list(found) == list(levers)
    assert found["load_strategy=stream"] == [0, math.inf, 0, math.inf]
    for lever in levers[:2]:
        latents, latents_psnr, frames, frames_psnr = found[lever]
        assert 1e-3 < latents < 0.2 and 20 < latents_psnr < 70
        assert 1e-4 < frames < 0.2 and 20 < frames_psnr < 90
    assert found[levers[0]] != found[levers[1]]


def test_each_run_is_made_from_its_own_request(capsys: Captured) -> None:
    """Solver, steps, shift, guidance and seed are in the request, not in the networks."""
    levers = (
        "sample_solver=dpm++",
        "sample_steps=3",
        "sample_shift=2",
        "sample_guide_scale=1",
        "base_seed=4",
    )

    assert compare_levers.main([*RANDOM, *(part for lever in levers for part in ("--lever", lever))]) == 0

    found = rows(capsys.readouterr().out)
    assert list(found) == list(levers)
    for lever in levers:
        assert found[lever][0] > 1e-3 and math.isfinite(found[lever][1]), lever
    assert found["base_seed=4"][0] > 0.5, "other noise has little in common"


def test_the_prompt_is_extended_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An API may answer otherwise each time, and this would be taken for the lever's work."""
    asked: list[str] = []

    def extend(prompt: str, **settings: object) -> str:
        asked.append(str(settings["model"]))
        return f"{prompt} {len(asked)}"

    monkeypatch.setattr("wan.inputs.prompt_extend.extend_prompt", extend)
    flags = [*RANDOM, "--prompt", "a fox", "--use_prompt_extend"]
    levers = ["weights_dtype=fp8", "prompt_extend_model=other", "load_strategy=stream"]

    without, found = compare_levers.with_one_prompt(*compare_levers.cases(flags, levers))

    assert asked == ["None"]
    made = [(options.prompt, options.use_prompt_extend) for options in (without, *found.values())]
    assert made == [("a fox 1", False), ("a fox 1", False), ("a fox", True), ("a fox 1", False)]


def test_a_folder_gives_what_random_weights_of_the_same_values_give(tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "tiny"
    make_checkpoint.write_checkpoint(TASKS["t2v-tiny"], folder)
    flags = ["--task", "t2v-tiny", *SHORT, "--ckpt_dir", str(folder), "--lever", "weights_dtype=fp8"]
    # Another tokenizer than without files, so only the fact that fp8 is read from a folder, and its size, are compared.
    assert compare_levers.main(flags) == 0
    out = capsys.readouterr().out
    assert "weights of tiny" in out
    assert 1e-3 < rows(out)["weights_dtype=fp8"][0] < 0.2


@pytest.mark.parametrize(
    ("lever", "message", "hint"),
    [
        ("weights_dtype", "--lever weights_dtype: 'weights_dtype' is not NAME=VALUE", "--lever weights_dtype=fp8"),
        ("weight=fp8", "--lever weight=fp8: --weight is no flag of wan.generate",
         "python -m wan.generate --help lists the flags"),
        ("frame_num=9", "--lever frame_num=9: --frame_num may change the shape of the video, and then nothing can be "
         "compared", "give --frame_num to all runs"),
        ("precision=bf16", "--lever precision=bf16 changes nothing: the run without it has these values",
         "name another value"),
        ("matmul=fp8", "--matmul fp8 multiplies weights that are stored in fp8, --weights_dtype is precision",
         "--weights_dtype fp8"),
    ],
)  # fmt: skip
def test_levers_that_cannot_be_compared(lever: str, message: str, hint: str, capsys: Captured) -> None:
    assert compare_levers.main([*RANDOM, "--lever", lever]) == 2
    assert capsys.readouterr().err == f"error: {message}\nhint: {hint}\n"


def test_forward_passes_of_a_few_blocks_are_compared_with_fp32(capsys: Captured) -> None:
    levers = ("weights_dtype=fp8", "weights_dtype=fp8,matmul=fp8", "precision=fp32", "load_strategy=stream")

    code = compare_levers.main(
        ["--blocks", "2", *RANDOM, *(part for lever in levers for part in ("--lever", lever))]
    )

    out = capsys.readouterr().out
    assert code == 0 and "2 blocks of t2v-tiny" in out
    found = {name: figures[0] for name, figures in rows(out).items()}
    assert list(found) == ["none (bf16)", *levers]
    assert found["precision=fp32"] == 0
    assert found["load_strategy=stream"] == found["none (bf16)"]
    assert 1e-4 < found["none (bf16)"] < 1e-2 < found[levers[0]] < found[levers[1]] < 0.2


@pytest.mark.parametrize("wrong", [("--blocks", "0"), ("--blocks", "2", "--task", "i2v-tiny")])
def test_what_has_no_forward_pass_of_its_own_is_refused(wrong: tuple[str, ...], capsys: Captured) -> None:
    code = compare_levers.main([*RANDOM, *wrong, "--lever", "weights_dtype=fp8"])

    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert "hint:" in told.err and told.err.startswith("error: --")
