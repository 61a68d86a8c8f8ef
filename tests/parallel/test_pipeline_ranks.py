"""Whole tiny runs on two ranks against one process: the video, who loads what, and the command line."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from crew import Crew
from torch import Tensor

from tests.tiny_tasks import TINY_TASKS
from wan.config import TASKS
from wan.errors import EXIT_INPUT, InputError
from wan.generate import main
from wan.inputs.media import read_video
from wan.networks.attention import Attention
from wan.networks.dit import WanDit
from wan.parallel import Layout
from wan.pipeline import Pipeline, Request
from wan.spans import Attribute, listening

ROOT = Path(__file__).resolve().parents[2]


def picture(seed: int = 0) -> Tensor:
    return torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def request(task: str) -> Request:
    given: dict[str, dict[str, Any]] = {
        "i2v-tiny": {"image": picture()},
        "flf2v-tiny": {"first_frame": picture(), "last_frame": picture(1)},
        "vace-tiny": {
            "src_ref_images": (picture(), picture(1)),
            "src_video": torch.stack([picture(seed) for seed in range(9)], dim=1),
            "src_mask": (torch.arange(64) < 32).float().expand(1, 9, 48, 64),
        },
    }
    return Request(prompt="a fox", steps=2, **given.get(task, {}))


class Spans:
    """The paths of spans that load and encode, and what memory the text encoder has when the steps begin."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        if name.startswith(("load.", "encode.", "residency.offload", "denoise", "decode")):
            self.heard.append(" ".join([name, *(str(value) for value in attributes.values())]))

    def exit(self, name: str, failed: bool) -> None:
        pass


def video(rank: int, layout: Layout, task: str, **options: Any) -> tuple[Tensor | None, list[str]]:
    spans = Spans()
    with listening(spans):
        made = Pipeline(
            TASKS[task], ckpt_dir=None, device="cpu", precision="fp32", load_strategy="block", layout=layout,
            **options,
        )  # fmt: skip
        first = made.generate(request(task))
        heard, spans.heard = spans.heard, []
        second = made.generate(request(task))
    assert (first is None) == (second is None) == (rank > 0)
    assert first is None or second is None or torch.equal(first, second)
    return first, heard


@cache
def video_of_one(task: str) -> Tensor:
    """What one process makes, once for all layouts."""
    made, _ = video(0, Layout(ranks=1), task)
    assert made is not None and made.std() > 0.05
    return made


LAYOUTS: list[dict[str, Any]] = [
    {"ulysses": 2, "dit_fsdp": True, "t5_fsdp": True},
    {"ring": 2, "vae": "rank0"},
]


@pytest.mark.parametrize("task", TINY_TASKS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["ulysses, fsdp, split", "ring, rank0"])
def test_two_ranks_make_the_video_of_one(two: Crew, layout: dict[str, Any], task: str) -> None:
    expected = video_of_one(task)
    (made, _), (nothing, _) = two.run(video, Layout(ranks=2, **layout), task)
    assert nothing is None
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


def test_what_is_made_once_is_loaded_once(two: Crew) -> None:
    (_, first), (_, other) = two.run(video, Layout(ranks=2, ulysses=2, vae="rank0"), "i2v-tiny")
    steps = ["load.dit", "denoise 0", "denoise 1", "residency.offload dit", "decode"]
    assert other == ["encode.text", "encode.image", "encode.video", *steps]
    encode = [("text", "t5"), ("image", "clip"), ("video", "vae")]
    encoding = [[f"encode.{what}", f"load.{net}", f"residency.offload {net}"] for what, net in encode]
    assert first == [*sum(encoding, []), *steps, "load.vae", "residency.offload vae"]


def test_what_is_shared_is_loaded_by_all_and_gone_before_the_steps(two: Crew) -> None:
    layout = Layout(ranks=2, ulysses=2, dit_fsdp=True, t5_fsdp=True)
    (_, first), (_, other) = two.run(video, layout, "t2v-tiny")
    assert first == other
    assert first == [
        "encode.text", "load.t5", "residency.offload t5",
        "load.dit", "denoise 0", "denoise 1", "residency.offload dit",
        "decode", "load.vae", "residency.offload vae",
    ]  # fmt: skip


def another_size(rank: int) -> str:
    try:
        Pipeline(TASKS["t2v-tiny"], ckpt_dir=None, device="cpu", layout=Layout(ranks=4, ulysses=4))
    except ValueError as error:
        return str(error)
    return ""


def test_a_layout_for_other_ranks_than_there_are_is_refused(two: Crew) -> None:
    assert two.run(another_size) == ["the layout is for 4 ranks, the process group has 2"] * 2


def refused(rank: int, layout: Layout) -> str:
    made = Pipeline(TASKS["flf2v-tiny"], ckpt_dir=None, device="cpu", layout=layout)
    with pytest.raises(InputError) as caught:
        made.generate(replace(request("flf2v-tiny"), frame_num=1))
    return str(caught.value)


def test_what_is_refused_is_refused_on_every_rank(two: Crew) -> None:
    """With the VAE on the first rank, only that one would come to see that two frames are too many for one."""
    told = two.run(refused, Layout(ranks=2, ulysses=2, vae="rank0"))
    assert told == ["frame_num 1: flf2v-tiny goes from a first to a last frame"] * 2


def held(dit: WanDit) -> dict[str, object]:
    """What a pass that was left could leave behind."""
    kernel = dit.blocks[0].self_attn.kernel
    return {"slots": len(kernel._slots._places), "under way": kernel._under_way}


def twice(rank: int, layout: Layout, offload: bool) -> tuple[dict[str, object] | None, Tensor | None]:
    """What is held after a pass that failed inside the second block, and what is made after that."""
    made = Pipeline(
        TASKS["t2v-tiny"], ckpt_dir=None, device="cpu", precision="fp32", load_strategy="block", layout=layout,
        offload_model=offload,
    )  # fmt: skip
    calls: list[int] = []

    def failing(self: Attention, parts: list[Tensor]) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("full")
        return plain(self, parts)

    kind = type(made.dit._module.blocks[0].self_attn.kernel)  # type: ignore[union-attr]
    plain = kind.attend
    kind.attend = failing  # type: ignore[method-assign]
    try:
        with pytest.raises(MemoryError, match="full"):
            made.generate(request("t2v-tiny"))
    finally:
        kind.attend = plain  # type: ignore[method-assign]
    module = made.dit._module
    return None if module is None else held(module), made.generate(request("t2v-tiny"))


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(
    "layout",
    [{"ulysses": 2}, {"ring": 2}, {"ulysses": 2, "dit_fsdp": True}],
    ids=["ulysses", "ring", "ulysses, fsdp"],
)
def test_after_a_pass_that_failed_nothing_is_held_and_the_next_is_whole(
    two: Crew, layout: dict[str, Any], offload: bool
) -> None:
    expected = video_of_one("t2v-tiny")
    (left, made), (other, nothing) = two.run(twice, Layout(ranks=2, **layout), offload)
    # FSDP cannot be told that a pass was left: its module is made anew.
    assert left == other == (None if "dit_fsdp" in layout else {"slots": 0, "under way": None})
    assert nothing is None
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


# --------------------------------------------------------------------------------
# The command line


def test_torchrun_leaves_one_video_and_one_voice(tmp_path: Path) -> None:
    flags = (
        "--task t2v-tiny --weights random --device cpu --precision fp32 --sample_steps 2 --ulysses_size 2 --dit_fsdp "
        "--t5_fsdp --save_file out.mp4"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "wan.generate", *flags.split()],
        cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=90,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert read_video(tmp_path / "out.mp4", frame_num=9).shape == (3, 9, 48, 64)
    told = done.stderr
    assert told.count("t2v-tiny 64*48 9 frames") == 1
    assert "2 ranks: ulysses 2 x ring 1 (native), dit_fsdp, t5_fsdp, VAE split" in told
    assert told.count("out.mp4: 9 frames of 64*48") == 1


@pytest.mark.parametrize(
    ("rank", "local_rank", "who"), [(0, 0, ["error: "]), (1, 1, []), (2, 0, ["error: rank 2: "]), (3, 1, [])]
)
def test_of_a_mistake_in_the_flags_one_rank_of_each_host_speaks(
    rank: int,
    local_rank: int,
    who: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """GIVEN two hosts THEN both tell: the folder of the weights may be missing on the second one alone."""
    for name, value in {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    flags = ["--task", "t2v-tiny", "--weights", "random", "--device", "cpu", "--ulysses_size", "3"]
    assert main(flags) == EXIT_INPUT
    told = capsys.readouterr().err.splitlines()
    assert told[::2] == [f"{one}--ulysses_size 3 does not divide the 4 heads of t2v-tiny" for one in who]


def test_xfuser_without_a_gpu_is_one_sentence() -> None:
    from wan.parallel.xfuser_backend import _usp

    with pytest.raises(InputError, match=r"the xfuser backend needs (xfuser, which is not installed|CUDA)"):
        _usp(None)  # type: ignore[arg-type]
