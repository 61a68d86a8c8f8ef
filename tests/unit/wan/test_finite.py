"""wan.finite: NaN and infinite values are told with the stage that made them first, and the video is written."""

import math
from pathlib import Path

import pytest
import torch
from command_line import Captured, frames_of, outcome, run
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from wan.config import TASKS
from wan.errors import EXIT_OK
from wan.finite import FirstNotFinite, is_finite, num_not_finite_frames
from wan.pipeline import Pipeline, Request


def told_of(stage: str) -> str:
    return (
        f"warning: {stage} made values that are not finite (NaN or infinite): the video will be black or white there. "
        "Use --precision bf16 or fp32, which overflow last, or compare the checkpoint with the published one"
    )


def with_value(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = torch.zeros(3, 4, 2, 2, dtype=dtype)
    tensor[1, 2, 0, 1] = value
    return tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_or_not(dtype: torch.dtype) -> None:
    assert is_finite(torch.empty(0))
    assert is_finite(with_value(1e4, dtype))
    assert [is_finite(with_value(value, dtype)) for value in (math.nan, math.inf, -math.inf)] == [False] * 3


def test_tensors_without_values_are_not_looked_at() -> None:
    with FakeTensorMode():
        assert is_finite(torch.zeros(3))
    assert is_finite(torch.empty(3, device="meta"))


def test_frames_are_counted() -> None:
    video = with_value(math.nan)
    assert num_not_finite_frames(torch.zeros(3, 4, 2, 2)) == 0
    assert num_not_finite_frames(video) == 1
    video[0, 3] = math.inf
    assert num_not_finite_frames(video) == 2


def test_the_first_stage_alone_is_told(capsys: Captured) -> None:
    check = FirstNotFinite()
    check("encode.text", None, torch.zeros(2))
    assert capsys.readouterr().err == ""
    check("encode.image", torch.zeros(2), with_value(math.inf))
    check("denoise", with_value(math.nan))
    assert capsys.readouterr().err.splitlines() == [told_of("encode.image")]
    FirstNotFinite(quiet=True)("denoise", with_value(math.nan))
    assert capsys.readouterr().err == ""


def component_of(pipeline: Pipeline, stage: str) -> object:
    return {
        "encode.text": pipeline.text, "encode.image": pipeline.clip, "encode.video": pipeline.vae_encoder,
        "denoise": pipeline.dit, "decode": pipeline.vae_decoder,
    }[stage]  # fmt: skip


@pytest.mark.parametrize("stage", ["encode.text", "encode.image", "encode.video", "denoise", "decode"])
def test_damaged_weights_are_told_with_their_stage(stage: str, capsys: Captured) -> None:
    made = Pipeline(TASKS["i2v-tiny"], ckpt_dir=None, device="cpu", precision="fp32", offload_model=False)
    image = torch.zeros(3, 48, 64)
    component = component_of(made, stage)
    with component.on_device() as network:  # type: ignore[attr-defined]
        last = [
            module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv3d | nn.Conv2d)
        ]
        next(iter(last[-1].parameters())).data.fill_(math.nan)

    video = made.generate(Request(prompt="a fox", image=image, steps=1))

    assert capsys.readouterr().err.splitlines() == [told_of(stage)]
    assert video is not None
    assert num_not_finite_frames(video) == 9


def test_a_whole_video_is_not_told(capsys: Captured) -> None:
    made = Pipeline(TASKS["t2v-tiny"], ckpt_dir=None, device="cpu", precision="fp32")
    made.generate(Request(prompt="a fox", steps=1))
    assert capsys.readouterr().err == ""


def test_the_command_line_tells_and_writes_the_file(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Pipeline.decode

    def damaged(self: Pipeline, latents: Tensor) -> Tensor | None:
        video = decode(self, latents)
        assert video is not None
        video[:, 3:5] = math.nan
        return video

    monkeypatch.setattr(Pipeline, "decode", damaged)
    path = tmp_path / "out.mp4"

    code = run("t2v-tiny", "--sample_steps", 1, "--save_file", path)

    assert outcome(code, capsys) == (
        EXIT_OK,
        [
            told_of("decode"),
            "warning: 2 of 9 frames have values that are not finite, which are black or white in the file",
        ],
    )
    brightness = frames_of(path).mean((0, 2, 3))
    assert [value < -0.95 for value in brightness.tolist()] == [False] * 3 + [True] * 2 + [False] * 4
