"""Running `python -m wan.generate` in process, and reading what it leaves and says: for several test files."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from wan.config import TASKS
from wan.errors import InputError
from wan.generate import main
from wan.inputs.media import read_image, read_video
from wan.options import parse
from wan.options_check import check

TINY = ("--task", "t2v-tiny", "--weights", "random")
NO_FILE = "check the path; relative ones start at the working folder"
"""The hint where a file is not there."""
CPU = ("--device", "cpu", "--precision", "fp32", "--sample_steps", "2", "--base_seed", "3")
OOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.\nSecond line."
TRY_ALL = "try --load_strategy stream, --attention_slicing True, --ffn_chunks 16, --vae_slabs 8"

ROOT = Path(__file__).resolve().parents[1]

Captured = pytest.CaptureFixture[str]


def run(task: str, *flags: object) -> int:
    """main() with random weights."""
    return main(["--task", task, "--weights", "random", *CPU, *map(str, flags)])


def inputs(task: str, picture: Path) -> list[object]:
    """What `task` starts from, as flags."""
    kind = TASKS[task].dit.model_type
    if kind == "i2v":
        return ["--image", picture]
    if kind == "flf2v":
        return ["--first_frame", picture, "--last_frame", picture]
    return ["--src_ref_images", f"{picture},{picture}"] if kind == "vace" else []


def outcome(code: int, captured: Captured) -> tuple[int, list[str]]:
    """The exit code, and the lines of stderr that begin with a word and a colon, stages and the like left out."""
    lines = captured.readouterr().err.splitlines()
    return code, [line for line in lines if re.match(r"(error|hint|warning|Traceback|interrupted)", line)]


def refusal(*flags: str) -> tuple[str, str]:
    """Message and hint of the InputError that ends parsing or checking; the exit code is 2 for every one."""
    with pytest.raises(InputError) as raised:
        check(parse(flags))
    return str(raised.value), raised.value.hint


def frames_of(path: Path) -> torch.Tensor:
    return read_image(path)[:, None] if path.suffix == ".png" else read_video(path, frame_num=1000)


def import_script(name: str) -> ModuleType:
    """A module of scripts/, with those beside it that it imports."""
    scripts = str(ROOT / "scripts")
    sys.path.insert(0, scripts)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(scripts)
