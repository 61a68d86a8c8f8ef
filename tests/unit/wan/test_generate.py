"""The command line, in process and on the CPU: what lies on disk afterwards and what stderr says."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import CPU, Captured, frames_of, inputs, outcome, run
from flash_attention import installed
from PIL import Image

from tests.tiny_tasks import TINY_TASKS
from wan.config import TASKS, Task
from wan.errors import EXIT_OK, InputError
from wan.generate import main, make_pipeline, told_levers
from wan.inputs.media import read_image, save_video
from wan.levers import Levers
from wan.options import FLAGS, parse
from wan.parallel import Layout
from wan.pipeline import Pipeline, Request

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in its own folder, and leaves the environment as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


# --------------------------------------------------------------------------------
# What is made


@pytest.mark.parametrize("task", TINY_TASKS)
def test_every_tiny_task_leaves_a_file_that_plays(task: str, picture: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    path = tmp_path / ("out.png" if task == "t2i-tiny" else "out.mp4")

    assert run(task, *inputs(task, picture), "--save_file", path) == EXIT_OK

    made = frames_of(path)
    assert made.shape == (3, TASKS[task].frame_num, 48, 64)
    assert made.std() > 0.05, "a picture, not one colour"
    assert set(tmp_path.iterdir()) - before == {path}, "no half-written file is left"


def test_vace_follows_a_video_and_its_mask(tmp_path: Path) -> None:
    # GIVEN a video of another shape and length than the defaults, and a mask of its right half
    video = torch.linspace(-1, 1, 7 * 32 * 96).reshape(1, 7, 32, 96).expand(3, -1, -1, -1)
    save_video(video, tmp_path / "control.mp4")
    mask = np.zeros((32, 96), dtype=np.uint8)
    mask[:, 48:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")

    # WHEN
    code = run("vace-tiny", "--src_video", "control.mp4", "--src_mask", "mask.png", "--save_file", "out.mp4")

    # THEN the video decides: its ratio, and as many frames as fit 4n+1
    assert code == EXIT_OK
    assert frames_of(tmp_path / "out.mp4").shape == (3, 5, 32, 96)


def test_size_and_frame_num_are_those_asked_for(tmp_path: Path) -> None:
    assert run("t2v-tiny", "--size", "32*80", "--frame_num", 5, "--save_file", "out.mp4") == EXIT_OK
    assert frames_of(tmp_path / "out.mp4").shape == (3, 5, 80, 32)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("t2v-tiny", r"t2v-tiny_64x48_seed3_\d{8}_\d{6}\.mp4"),
        ("t2i-tiny", r"t2i-tiny_64x48_seed3_\d{8}_\d{6}\.png"),
    ],
)
def test_without_save_file_the_name_says_what_it_is(task: str, name: str, tmp_path: Path) -> None:
    assert run(task) == EXIT_OK
    (made,) = tmp_path.iterdir()
    assert re.fullmatch(name, made.name)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a.png", 5), ("b.png", 5), ("c.png", 6)):
        assert run("t2i-tiny", "--base_seed", seed, "--save_file", name) == EXIT_OK
    a, b, c = (read_image(tmp_path / name) for name in ("a.png", "b.png", "c.png"))

    assert torch.equal(a, b)
    assert not torch.allclose(a, c, atol=0.1)


def test_levers_and_strategies_of_the_command_line_leave_the_picture(tmp_path: Path) -> None:
    levers = (
        "--load_strategy stream --offload_model False --attention_slicing --t5_cpu --ffn_chunks 3 "
        "--rope_chunks 2 --vae_slabs 2 --fused_kernels False --expandable_segments False"
    ).split()
    assert run("t2i-tiny", "--save_file", "plain.png") == EXIT_OK
    assert run("t2i-tiny", *levers, "--save_file", "levers.png") == EXIT_OK

    plain, made = read_image(tmp_path / "plain.png"), read_image(tmp_path / "levers.png")
    torch.testing.assert_close(made, plain, rtol=0, atol=2.01 / 255)  # 1e-4 may round to the next byte


def test_expandable_segments_are_asked_for_unless_the_user_set_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
    asked = {old: "expandable_segments:True"}
    cases: list[tuple[dict[str, str], str, dict[str, str]]] = [
        ({}, "True", asked), ({}, "False", {}), ({old: "a:b"}, "True", {old: "a:b"}),
        ({new: "a:b"}, "True", {new: "a:b"}), ({new: "", old: "a:b"}, "True", {new: "", old: "a:b"}),
    ]  # fmt: skip
    for before, flag, after in cases:
        for name in (old, new):
            monkeypatch.delenv(name, raising=False)
        for name, value in before.items():
            monkeypatch.setenv(name, value)
        assert run("t2i-tiny", "--expandable_segments", flag, "--save_file", "out.png") == EXIT_OK
        assert {name: os.environ[name] for name in (old, new) if name in os.environ} == after


# --------------------------------------------------------------------------------
# What is said


def test_stderr_tells_the_run_the_steps_and_the_file_and_stdout_nothing(capsys: Captured) -> None:
    assert run("t2v-tiny", "--save_file", "out.mp4") == EXIT_OK

    told = capsys.readouterr()
    lines = told.err.splitlines()
    stages = [
        re.sub(r"[\d.]+ s$", "_ s", line) for line in lines if "load" not in line and "encode" not in line
    ]
    assert told.out == ""
    assert lines[0] == (
        "t2v-tiny 64*48 9 frames, 2 steps of unipc, shift 5, guidance 5, seed 3, fp32 on cpu, weights random, "
        "load full"
    )
    assert "  denoise: step 2 of 2, _ s" in stages
    assert stages[-1] == "out.mp4: 9 frames of 64*48, _ s"


@pytest.mark.parametrize(
    ("there", "kernel", "told"),
    [
        ((), "sdpa", ["  attention: sdpa"]),
        (("fa3",), "auto", ["  attention: fa3"]),
        (("fa3",), "fa3_fp8", ["  attention: fa3_fp8", "  inexact: attention_kernel fa3_fp8"]),
        (("fa4",), "auto", ["  attention: fa4; fa3 would fit: fa3-fwd is not installed"]),
    ],
)
def test_the_attention_kernel_and_what_it_changes_are_told(
    there: tuple[str, ...], kernel: str, told: list[str]
) -> None:
    options = parse(["--task", "t2v-14B", "--weights", "random", "--attention_kernel", kernel])
    with installed(*there, capability=(9, 0)):
        assert told_levers(options) == told
    assert told_levers(parse(["--task", "t2v-tiny", "--weights", "random", "--device", "cpu"])) == []
    xfuser = ["--sp_backend", "xfuser", "--ulysses_size", "2"]
    assert told_levers(parse(["--task", "t2v-14B", "--weights", "random", *xfuser], num_ranks=2)) == []


@pytest.mark.parametrize("spelled", ["--attention_kernel", "optimization.attention_kernel"])
def test_a_kernel_that_is_not_there_is_refused_before_anything_is_read(
    spelled: str, recorder: "Recorder"
) -> None:
    options = parse(["--task", "t2v-14B", "--weights", "random", "--attention_kernel", "fa3"])
    with installed(capability=(9, 0)), pytest.raises(InputError) as raised:
        make_pipeline(options, names=FLAGS | {"attention_kernel": spelled})
    assert str(raised.value) == f"{spelled} fa3: fa3-fwd is not installed"
    assert recorder.made_with == {}
    with installed(capability=(8, 0)), pytest.raises(InputError, match="needs a Hopper GPU"):
        make_pipeline(options)
    with installed("fa3", capability=(9, 0)):
        make_pipeline(options)
    assert recorder.made_with["task"] == "t2v-14B"


def test_gradient_checkpointing_says_that_it_does_nothing(capsys: Captured) -> None:
    code = run("t2i-tiny", "--gradient_checkpointing", "--save_file", "out.png")

    assert outcome(code, capsys) == (
        EXIT_OK,
        ["warning: --gradient_checkpointing has no effect here: inference records no gradients"],
    )


@pytest.mark.parametrize(("given", "made"), [(3, 1), (6, 5), (9, 9), (12, 9)])
def test_a_control_video_too_short_is_told_before_the_work(
    given: int, made: int, recorder: "Recorder", capsys: Captured, tmp_path: Path
) -> None:
    save_video(torch.zeros(3, given, 48, 64), tmp_path / "control.mp4")

    code = run("vace-tiny", "--src_video", "control.mp4", "--frame_num", 9, "--save_file", "out.mp4")

    told = f"warning: --src_video control.mp4 has {given} frames: {made} are made, not 9"
    assert outcome(code, capsys) == (EXIT_OK, [told] if given < 9 else [])


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        (["i2v-tiny", "--image", "wide.png"], "96*32"),
        (["flf2v-tiny", "--first_frame", "wide.png", "--last_frame", "same.png"], "96*32"),
        (["i2v-tiny", "--image", "same.png"], ""),
        (["vace-tiny", "--src_video", "wide.mp4"], "96*32"),
        (["t2v-tiny"], ""),
    ],
)
def test_a_size_that_the_picture_decides_is_told_before_the_work(
    flags: list[str], size: str, recorder: "Recorder", capsys: Captured, tmp_path: Path
) -> None:
    Image.new("RGB", (96, 32)).save(tmp_path / "wide.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "same.png")
    save_video(torch.zeros(3, 9, 32, 96), tmp_path / "wide.mp4")

    assert run(*flags, "--save_file", "out.mp4") == EXIT_OK

    told = [line for line in capsys.readouterr().err.splitlines() if "size:" in line]
    ratio = f"  size: {size}, with the ratio of the picture or video, within the area of 64*48"
    assert told == ([ratio] if size else [])


class Recorder:
    """Stands in for Pipeline: keeps what it is made with and asked for, and makes a grey picture."""

    def __init__(self) -> None:
        self.made_with: dict[str, object] = {}
        self.requests: list[Request] = []

    def __call__(self, task: Task, **options: object) -> "Recorder":
        self.made_with = {"task": task.name, **options}
        return self

    def generate(self, request: Request, on_step: object) -> torch.Tensor:
        self.requests.append(request)
        return torch.zeros(3, 1, 48, 64)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr("wan.pipeline.Pipeline", recorder)
    return recorder


def test_every_flag_of_memory_and_weights_reaches_the_pipeline(recorder: Recorder, tmp_path: Path) -> None:
    flags = (
        "--task t2i-tiny --ckpt_dir . --device cpu --precision fp16 --load_strategy block --offload_model False "
        "--t5_cpu --attention_slicing --ffn_chunks 3 --rope_chunks 2 --vae_slabs 5 --gradient_checkpointing "
        "--fused_kernels False --weights_dtype fp8 --attention_kernel sdpa --vae_dtype bf16 --save_file out.png"
    )
    assert main(flags.split()) == EXIT_OK
    assert recorder.made_with == {
        "task": "t2i-tiny",
        "weights_dtype": "fp8",
        "ckpt_dir": Path("."),
        "device": "cpu",
        "precision": "fp16",
        "load_strategy": "block",
        "offload_model": False,
        "t5_cpu": True,
        "levers": Levers(
            attention_slicing=True,
            ffn_chunks=3,
            rope_chunks=2,
            vae_slabs=5,
            gradient_checkpointing=True,
            fused_kernels=False,
            attention_kernel="sdpa",
            vae_dtype="bf16",
        ),
        "layout": Layout(ranks=1),
    }


def test_every_flag_of_sampling_reaches_the_request(recorder: Recorder) -> None:
    flags = (
        "--prompt fox --negative_prompt grey --size 32*16 --frame_num 1 --sample_solver dpm++ --sample_steps 7 "
        "--sample_shift 2.5 --sample_guide_scale 3.5 --base_seed 11 --save_file out.png"
    )
    assert run("t2v-tiny", *flags.split()) == EXIT_OK
    assert recorder.requests == [
        Request(
            prompt="fox",
            negative_prompt="grey",
            size=(32, 16),
            frame_num=1,
            solver="dpm++",
            steps=7,
            shift=2.5,
            guide_scale=3.5,
            seed=11,
        )
    ]


def test_every_picture_reaches_its_place_in_the_request(recorder: Recorder, tmp_path: Path) -> None:
    # GIVEN files of one grey each, by which they are told apart: red is 0 .. 255, a tensor -1 .. 1
    greys = {"a.png": 0, "b.png": 51, "mask.png": 255}
    for name, grey in greys.items():
        Image.new("RGB", (32, 16), (grey, grey, grey)).save(tmp_path / name)
    save_video(torch.full((3, 9, 16, 32), 0.6), tmp_path / "video.mp4")

    # WHEN
    for task, flags in (
        ("i2v-tiny", "--image a.png"),
        ("flf2v-tiny", "--first_frame a.png --last_frame b.png"),
        ("vace-tiny", "--src_video video.mp4 --src_mask mask.png --src_ref_images a.png,b.png"),
    ):
        assert run(task, *flags.split(), "--frame_num", "5", "--save_file", "out.mp4") == EXIT_OK

    # THEN
    a, b = ((3, 16, 32), -1.0), ((3, 16, 32), -0.6)
    empty: dict[str, object] = dict.fromkeys(("image", "first_frame", "last_frame", "src_video", "src_mask"))
    empty["src_ref_images"] = []
    assert [pictures_in(request) for request in recorder.requests] == [
        empty | {"image": a},
        empty | {"first_frame": a, "last_frame": b},
        empty
        | {"src_video": ((3, 5, 16, 32), 0.6), "src_mask": ((1, 1, 16, 32), 1.0), "src_ref_images": [a, b]},
    ]


def pictures_in(request: Request) -> dict[str, object]:
    """Shape and brightness of every picture of a request."""

    def told(tensor: torch.Tensor | None) -> object:
        return None if tensor is None else (tuple(tensor.shape), round(tensor.mean().item(), 1))

    names = ("image", "first_frame", "last_frame", "src_video", "src_mask")
    pictures: dict[str, object] = {name: told(getattr(request, name)) for name in names}
    return pictures | {"src_ref_images": [told(ref) for ref in request.src_ref_images]}


def test_the_extended_prompt_is_shown_and_used(
    recorder: Recorder, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, object]] = []

    def extend(prompt: str, **options: object) -> str:
        calls.append({"prompt": prompt, **options})
        return prompt + ", at night"

    monkeypatch.setattr("wan.inputs.prompt_extend.extend_prompt", extend)

    code = run("t2i-tiny", "--use_prompt_extend", "--prompt", "a fox", "--save_file", "out.png")

    assert (code, [request.prompt for request in recorder.requests]) == (EXIT_OK, ["a fox, at night"])
    assert "prompt: a fox, at night" in capsys.readouterr().err.splitlines()
    assert calls == [
        {
            "prompt": "a fox",
            "method": "local_qwen",
            "model": None,
            "language": "zh",
            "task": "t2i-tiny",
            "image": None,
            "seed": 3,
            "device": "cpu",
        }
    ]


# --------------------------------------------------------------------------------
# Folders of the official layout


def generated(task: Task, folder: Path | None, picture: Path, **options: object) -> torch.Tensor:
    image = read_image(picture) if task.dit.model_type == "i2v" else None
    pipeline = Pipeline(task, ckpt_dir=folder, device="cpu", precision="fp32", **options)  # type: ignore[arg-type]
    # The folder's tokenizer is not the stand-in over bytes: only texts of no token but the end agree.
    return pipeline.generate(Request(prompt="", negative_prompt="", image=image, steps=2))


@pytest.mark.parametrize("task", ["t2v-tiny", "i2v-tiny"])
@pytest.mark.parametrize("strategy", ["full", "block", "stream"])
def test_a_folder_gives_what_random_weights_give(
    task: str, strategy: str, folders: dict[str, Path], picture: Path
) -> None:
    expected = generated(TASKS[task], None, picture)

    made = generated(TASKS[task], folders[task], picture, load_strategy=strategy)

    assert torch.equal(made, expected)
    assert made.std() > 0.05


def test_the_command_line_reads_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    same = ("--prompt", "", "--negative_prompt", "", "--save_file")
    assert (
        main(["--task", "t2i-tiny", "--ckpt_dir", str(folders["t2v-tiny"]), *CPU, *same, "folder.png"])
        == EXIT_OK
    )
    assert run("t2i-tiny", *same, "random.png") == EXIT_OK

    assert torch.equal(read_image(tmp_path / "folder.png"), read_image(tmp_path / "random.png"))
