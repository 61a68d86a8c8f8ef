"""compare_levers.py: what its figures mean, a comparison on the CPU from random weights and from a folder, refusals."""

import math
from pathlib import Path

import pytest
import torch
from command_line import Captured, import_script

from wan.config import TASKS

compare_levers = import_script("compare_levers")
make_checkpoint = import_script("make_checkpoint")

TINY = (
    "--task",
    "t2v-tiny",
    "--device",
    "cpu",
    "--sample_steps",
    "2",
    "--frame_num",
    "5",
    "--base_seed",
    "3",
)
RANDOM = (*TINY, "--weights", "random")


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


def test_a_folder_gives_what_random_weights_of_the_same_values_give(tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "tiny"
    make_checkpoint.write_checkpoint(TASKS["t2v-tiny"], folder)
    # Another tokenizer than without files, so only the fact that fp8 is read from a folder, and its size, are compared.
    assert compare_levers.main([*TINY, "--ckpt_dir", str(folder), "--lever", "weights_dtype=fp8"]) == 0
    out = capsys.readouterr().out
    assert "weights of tiny" in out
    assert 1e-3 < rows(out)["weights_dtype=fp8"][0] < 0.2


@pytest.mark.parametrize(
    ("lever", "message", "hint"),
    [
        ("weights_dtype", "--lever weights_dtype: 'weights_dtype' is not NAME=VALUE", "--lever weights_dtype=fp8"),
        ("weight=fp8", "--lever weight=fp8: --weight is no flag of wan.generate",
         "python -m wan.generate --help lists the flags"),
        ("precision=bf16", "--lever precision=bf16 changes nothing: the run without it has these values",
         "name another value"),
        ("matmul=fp8", "--matmul fp8 multiplies weights that are stored in fp8, --weights_dtype is precision",
         "--weights_dtype fp8"),
    ],
)  # fmt: skip
def test_levers_that_cannot_be_compared(lever: str, message: str, hint: str, capsys: Captured) -> None:
    assert compare_levers.main([*RANDOM, "--lever", lever]) == 2
    assert capsys.readouterr().err == f"error: {message}\nhint: {hint}\n"
