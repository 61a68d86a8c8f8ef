"""Mistakes on the command line: one line, a hint, an exit code, and nothing written."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from command_line import CPU, OOM, TINY, TRY_ALL, Captured, inputs, outcome, run
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from wan.config import TASKS
from wan.errors import (
    EXIT_DEVICE_OOM,
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    EXIT_MEDIA,
    EXIT_SERVICE,
    EXIT_WEIGHTS,
    InputError,
    WanError,
)
from wan.generate import _less_host_memory, _less_memory, main, make_pipeline
from wan.inputs.prompt_extend import API_KEY
from wan.levers import Levers
from wan.networks.dit import WanDit
from wan.networks.linear import check_matmul
from wan.options import parse
from wan.pipeline import Pipeline


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in its own folder, and leaves the environment as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def refused(code: int, capsys: Captured, folder: Path, before: set[Path]) -> tuple[int, list[str]]:
    assert set(folder.iterdir()) == before, "nothing is written"
    return outcome(code, capsys)


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        (
            ["--nope", "1"],
            "unrecognized arguments: --nope 1",
            "python -m wan.generate --help lists the flags",
        ),
        (
            ["--frame_num", "8"],
            "--frame_num 8 is not 4n+1: the VAE makes four frames of each latent but the first",
            "use 5 or 9",
        ),
        (
            ["--ulysses_size", "3"],
            "--ulysses_size 3 does not divide the 4 heads of t2v-tiny",
            "use one of 1, 2, 4, or --ring_size",
        ),
        (["--device", "gpu"], "--device gpu: not a device", "use cuda, cuda:N or cpu"),
        (["--device", "cuda:-1"], "--device cuda:-1: not a device", "use cuda, cuda:N or cpu"),
        (
            ["--device", "cuda:99"],
            f"--device cuda:99: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices",
            "--device cpu runs the tiny tasks",
        ),
        (["--save_file", "out.png"], "cannot write 9 frame(s) to out.png: suffix '.png'", "use .mp4"),
    ],
)
def test_a_wrong_flag_ends_with_2(
    flags: list[str], error: str, hint: str, capsys: Captured, tmp_path: Path
) -> None:
    assert refused(run("t2v-tiny", *flags), capsys, tmp_path, set()) == (
        EXIT_INPUT,
        [f"error: {error}", f"hint: {hint}"],
    )


def test_a_device_of_another_kind_ends_with_2(capsys: Captured, tmp_path: Path) -> None:
    assert refused(run("t2v-tiny", "--device", "meta"), capsys, tmp_path, set()) == (
        EXIT_INPUT,
        ["error: --device meta: only cuda and cpu are supported", "hint: use cuda, cuda:N or cpu"],
    )


def test_a_folder_without_the_files_ends_with_3(capsys: Captured, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    code = main(["--task", "t2v-tiny", "--ckpt_dir", "empty", *CPU])

    assert refused(code, capsys, tmp_path, {empty}) == (
        EXIT_WEIGHTS,
        [
            "error: folder empty is empty",
            "hint: no folder of t2v-tiny is published; scripts/make_checkpoint.py --task t2v-tiny makes one",
        ],
    )


@pytest.mark.parametrize(("asked", "held"), [("t2v-tiny", "i2v-tiny"), ("i2v-tiny", "t2v-tiny")])
def test_the_folder_of_another_task_ends_with_3(
    asked: str, held: str, folders: dict[str, Path], picture: Path, capsys: Captured, tmp_path: Path
) -> None:
    # The folder of t2v-tiny has no CLIP file either, which says less.
    folder = folders[held]

    code = main(["--task", asked, "--ckpt_dir", str(folder), *map(str, inputs(asked, picture)), *CPU])

    article, hint = ("an", held) if held == "i2v-tiny" else ("a", f"{held} or --task t2i-tiny")
    assert refused(code, capsys, tmp_path, {picture}) == (
        EXIT_WEIGHTS,
        [
            f"error: folder {folder} holds {article} {held} checkpoint, the task is {asked}",
            f"hint: --task {hint}",
        ],
    )


@pytest.mark.parametrize("part", ["..", "google", "google/umt5-xxl"])
def test_a_folder_above_or_below_the_right_one_ends_with_3(
    part: str, folders: dict[str, Path], capsys: Captured, tmp_path: Path
) -> None:
    right = tmp_path / "models" / "t2v"
    right.parent.mkdir()
    right.symlink_to(folders["t2v-tiny"])
    wrong = right.parent if part == ".." else right / part

    code = main(["--task", "t2v-tiny", "--ckpt_dir", str(wrong), *CPU])

    what = "is not a checkpoint folder" if part == ".." else "is a part of a checkpoint folder"
    assert refused(code, capsys, tmp_path, {tmp_path / "models"}) == (
        EXIT_WEIGHTS,
        [f"error: folder {wrong} {what}: {right} is one", f"hint: give {right}"],
    )


def test_an_image_that_is_none_ends_with_4(capsys: Captured, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture", encoding="ascii")

    assert refused(run("i2v-tiny", "--image", "text.png"), capsys, tmp_path, {text}) == (
        EXIT_MEDIA,
        [
            "error: cannot read image text.png: cannot identify image file 'text.png'",
            "hint: readable are .png, .jpg, .jpeg, .webp",
        ],
    )


def test_a_missing_output_folder_ends_with_4(capsys: Captured, tmp_path: Path) -> None:
    assert refused(run("t2v-tiny", "--save_file", "gone/out.mp4"), capsys, tmp_path, set()) == (
        EXIT_MEDIA,
        ["error: cannot write gone/out.mp4: there is no folder gone", "hint: make the folder first"],
    )


@pytest.mark.parametrize(("task", "flag"), [("i2v-tiny", "--image"), ("flf2v-tiny", "--first_frame")])
def test_an_image_too_narrow_ends_with_2(task: str, flag: str, capsys: Captured, tmp_path: Path) -> None:
    line = tmp_path / "line.png"
    Image.new("RGB", (1000, 1)).save(line)
    also = ["--last_frame", line] if task == "flf2v-tiny" else []

    assert refused(run(task, flag, line, *also), capsys, tmp_path, {line}) == (
        EXIT_INPUT,
        [
            "error: the picture to start from has 1000x1 pixels, too narrow for a video of 3072",
            "hint: crop it: the longer side may be 12 times the shorter",
        ],
    )


def test_a_folder_in_the_place_of_the_file_is_refused_before_the_work(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "generate", None)
    folder = tmp_path / "dir.png"
    folder.mkdir()

    assert refused(run("t2i-tiny", "--save_file", "dir.png"), capsys, tmp_path, {folder}) == (
        EXIT_MEDIA,
        ["error: cannot write dir.png: it is a folder", "hint: choose another name"],
    )


def test_prompt_extension_without_a_key_ends_with_5(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    monkeypatch.setitem(sys.modules, "dashscope", ModuleType("dashscope"))

    code = run("t2v-tiny", "--use_prompt_extend", "--prompt_extend_method", "dashscope")

    assert refused(code, capsys, tmp_path, set()) == (
        EXIT_SERVICE,
        [
            f"error: dashscope: the environment variable {API_KEY} is not set",
            f"hint: export {API_KEY}=...",
        ],
    )


def out_of_memory(*_: object, **__: object) -> torch.Tensor:
    raise torch.OutOfMemoryError(OOM)


@pytest.mark.parametrize(
    ("offload", "hint"),
    [("True", TRY_ALL), ("False", TRY_ALL.replace("--attention", "--offload_model True, --attention"))],
)
def test_an_exhausted_device_ends_with_11_and_names_the_stage_and_the_unused_levers(
    offload: str, hint: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a failure inside the network, after which offloading opens a span of its own
    monkeypatch.setattr(WanDit, "forward", out_of_memory)

    code = run("t2v-tiny", "--offload_model", offload)

    assert refused(code, capsys, tmp_path, set()) == (
        EXIT_DEVICE_OOM,
        [
            "error: the device ran out of memory in denoise 0/dit.forward cond: "
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.",
            f"hint: {hint}",
        ],
    )


@pytest.mark.parametrize(
    "reason",
    [
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "NCCL error: ncclUnhandledCudaError: Cuda failure 2 'out of memory'",
        "Failed to CUDA malloc 4194304 bytes",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_a_device_that_is_full_for_others_than_torch_ends_with_11(
    reason: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError(f"{reason}\nSearch for it in the documentation")

    monkeypatch.setattr(Pipeline, "generate", fails)
    code, (error, hint) = refused(run("t2v-tiny"), capsys, tmp_path, set())
    assert (code, hint) == (EXIT_DEVICE_OOM, f"hint: {TRY_ALL}")
    assert error.startswith("error: the device ran out of memory in ") and error.endswith(f": {reason}")


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ([], TRY_ALL),
        (["--load_strategy", "block"], TRY_ALL),
        (
            "--load_strategy stream --attention_slicing --ffn_chunks 8 --vae_slabs 4".split(),
            "try --ffn_chunks 16, --vae_slabs 8",
        ),
    ],
)
def test_the_hint_of_11_leaves_out_what_is_in_use(
    flags: list[str], hint: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "generate", out_of_memory)

    code, lines = refused(run("t2v-tiny", *flags), capsys, tmp_path, set())

    assert (code, lines[1:]) == (EXIT_DEVICE_OOM, [f"hint: {hint}"])


@pytest.mark.parametrize(
    ("flags", "first"),
    [
        ("--ulysses_size 2", ["--dit_fsdp", "--t5_fsdp", "--load_strategy stream"]),
        ("--ulysses_size 2 --load_strategy stream --t5_cpu", ["--attention_slicing True"]),
        ("--cfg_size 2 --dit_fsdp --t5_fsdp", ["--cfg_size 1 --ulysses_size 2", "--attention_slicing True"]),
        ("--cfg_size 2 --ulysses_size 4 --dit_fsdp --t5_fsdp", ["--cfg_size 1 --ring_size 2"]),
        # Blocks that lie on the other GPUs do not wait in host memory: check() refuses both together.
        ("--dit_fsdp --t5_fsdp", ["--attention_slicing True"]),
    ],
)
def test_the_hint_of_11_on_several_ranks_names_what_may_be_added(
    flags: str, first: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    options = parse(["--task", "t2v-tiny", "--weights", "random", *flags.split()])
    assert _less_memory(options).removeprefix("try ").split(", ")[: len(first)] == first


@pytest.mark.parametrize(
    ("flags", "is_named"),
    [("", True), ("--precision fp16", True), ("--precision fp32", False), ("--weights_dtype fp8", False)],
)
def test_the_hint_of_11_names_fp8_last_and_says_that_it_is_inexact(flags: str, is_named: bool) -> None:
    options = parse(["--task", "t2v-tiny", "--weights", "random", *flags.split()])
    assert _less_memory(options).endswith(", --weights_dtype fp8 (inexact)") is is_named
    assert ("fp8" in _less_memory(options)) is is_named


FP8 = ("--device", "cuda", "--weights_dtype", "fp8", "--matmul", "fp8")


def test_a_gpu_without_fp8_units_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    with pytest.raises(InputError) as raised:
        make_pipeline(parse([*TINY, *FP8]))
    assert str(raised.value) == (
        "--matmul fp8: Some GPU has compute capability 8.6, units for fp8 begin with 8.9"
    )
    assert raised.value.hint == ("leave --matmul out: --weights_dtype fp8 saves memory on this GPU too")
    with pytest.raises(InputError, match=r"^matmul fp8: Some GPU has compute capability 8\.6"):
        Pipeline(
            TASKS["t2v-tiny"], ckpt_dir=None, device="cuda", weights_dtype="fp8", levers=Levers(matmul="fp8")
        )


def test_products_in_fp8_ask_no_gpu_on_a_cpu_and_for_fake_tensors() -> None:
    check_matmul("fp8", torch.device("cpu"))
    check_matmul("precision", torch.device("cuda"))
    with FakeTensorMode():
        check_matmul("fp8", torch.device("cuda"))


@pytest.mark.parametrize(("flags", "capability"), [(FP8, (8, 9)), (FP8, (9, 0)), (FP8[:4], (8, 0))])
def test_fp8_that_a_gpu_can_do_is_not_refused(
    flags: tuple[str, ...], capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    made = make_pipeline(parse([*TINY, *flags]))  # reads headers only: no GPU is used
    assert made.levers.matmul == ("fp8" if "--matmul" in flags else "precision")


def test_more_ranks_than_gpus_are_refused_in_terms_of_ranks(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main([*TINY, "--ulysses_size", "2"]) == EXIT_INPUT
    assert capsys.readouterr().err.splitlines() == [
        f"error: rank 1: --device cuda:1: torch {torch.__version__} sees 1 CUDA devices",
        "hint: start as many ranks on a host as it has GPUs",
    ]


def test_a_backend_that_nothing_would_run_on_is_said_to_have_no_effect(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main([*TINY, "--device", "cuda", "--sp_backend", "xfuser"]) == EXIT_INPUT
    assert capsys.readouterr().err.splitlines()[0] == (
        "warning: --sp_backend xfuser has no effect here: no tokens are split"
    )


def exhaust_torch(*_: object, **__: object) -> torch.Tensor:
    return torch.empty(2**60, dtype=torch.uint8)


def exhaust_numpy(*_: object, **__: object) -> object:
    return np.empty(2**60, dtype=np.uint8)


def exhaust_python(*_: object, **__: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("exhaust", "reason"),
    [
        (exhaust_torch, "memory"),
        (exhaust_numpy, "Unable to allocate 1.00 EiB"),
        (exhaust_python, "MemoryError"),
    ],
)
def test_an_exhausted_host_ends_with_11_too(
    exhaust: object, reason: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WanDit, "forward", exhaust)

    code, (error, hint) = refused(run("t2v-tiny", "--offload_model", "False"), capsys, tmp_path, set())

    assert code == EXIT_DEVICE_OOM
    assert error.startswith("error: host memory ran out in denoise 0/dit.forward cond: ")
    assert reason in error
    assert hint == (
        "hint: try --load_strategy block, --offload_model True, --precision bf16, --attention_slicing True, "
        "--vae_slabs 8, a smaller --size or --frame_num"
    )


def test_the_hint_of_an_exhausted_host_beside_a_gpu() -> None:
    flags = [*TINY, "--device", "cuda", "--t5_cpu"]
    assert _less_host_memory(parse(flags)) == (
        "try --load_strategy block, --t5_cpu False, a smaller --size or --frame_num"
    )
    assert _less_host_memory(parse([*TINY, "--load_strategy", "block"])) == (
        "try a smaller --size or --frame_num"
    )


def test_memory_that_the_prompt_model_exhausts_ends_with_11_too(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan.inputs.prompt_extend.extend_prompt", out_of_memory)

    assert refused(run("t2v-tiny", "--use_prompt_extend"), capsys, tmp_path, set())[0] == EXIT_DEVICE_OOM


def test_an_interrupt_ends_with_130_and_without_a_traceback(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WanDit, "forward", interrupt)

    assert refused(run("t2v-tiny"), capsys, tmp_path, set()) == (EXIT_INTERRUPTED, ["interrupted"])


def test_a_bug_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(WanDit, "forward", fail)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("t2v-tiny")
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_error_has_an_exit_code_of_its_own() -> None:
    codes = {kind.__name__: kind.exit_code for kind in WanError.__subclasses__()}
    assert codes == {
        "InputError": EXIT_INPUT,
        "WeightsError": EXIT_WEIGHTS,
        "MediaError": EXIT_MEDIA,
        "ServiceError": EXIT_SERVICE,
        "DeviceMemoryError": EXIT_DEVICE_OOM,
    }
    assert codes == {
        "InputError": 2,
        "WeightsError": 3,
        "MediaError": 4,
        "ServiceError": 5,
        "DeviceMemoryError": 11,
    }
    assert EXIT_INTERRUPTED == 130


def test_a_folder_is_refused_before_a_prompt_model_is_asked(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, **__: object) -> str:
        raise AssertionError("the prompt model was asked")

    monkeypatch.setattr("wan.inputs.prompt_extend.extend_prompt", ask)
    (tmp_path / "empty").mkdir()
    code = main(["--task", "t2v-tiny", "--ckpt_dir", "empty", *CPU, "--use_prompt_extend"])
    code, lines = outcome(code, capsys)
    assert code == EXIT_WEIGHTS
    assert lines[0] == "error: folder empty is empty"
