"""The two passes of guidance, each on ranks of its own, against both in one process: every task, mix and length."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from crew import Crew
from test_pipeline_ranks import request, video, video_of_one
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.live_bytes import LiveBytes
from tests.tiny_tasks import TINY_TASKS
from wan.config import TASKS
from wan.errors import InputError
from wan.parallel import Layout
from wan.pipeline import Pipeline
from wan.spans import Attribute, listening

TWO: list[dict[str, Any]] = [
    {},
    {"dit_fsdp": True, "t5_fsdp": True},
]
FOUR: list[dict[str, Any]] = [
    {"ulysses": 2},
    {"ring": 2},
    {"ulysses": 2, "dit_fsdp": True, "t5_fsdp": True},
    {"ring": 2, "dit_fsdp": True, "vae": "rank0"},
]
ODD = (80, 48)
"""45 tokens with 9 frames: split in two, 1 is left over."""


def words(layout: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in layout.items()) or "alone"


class Spans:
    """The spans of the denoise steps and below, but those of blocks: names, with step or branch."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._is_in_step = False

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        self._is_in_step = self._is_in_step or name == "denoise"
        if self._is_in_step and name.startswith(("denoise", "dit.forward", "comm.")):
            self.heard.append(" ".join([name, *(str(value) for value in attributes.values())]))

    def exit(self, name: str, failed: bool) -> None:
        self._is_in_step = self._is_in_step and name != "denoise"


def pipeline(layout: Layout, task: str) -> Pipeline:
    return Pipeline(
        TASKS[task], ckpt_dir=None, device="cpu", precision="fp32", load_strategy="block", layout=layout
    )


def denoised(rank: int, layout: Layout, task: str, size: tuple[int, int] | None) -> tuple[Tensor, list[str]]:
    """The latents that this rank ends with, and what was heard."""
    made, spans = pipeline(layout, task), Spans()
    asked = replace(request(task), size=size, steps=3)
    with torch.no_grad(), listening(spans):
        contexts = made.own_contexts(*made.encode_prompts(asked))
        return made.denoise(asked, contexts, made.condition(asked)), spans.heard


@cache
def denoised_alone(task: str, size: tuple[int, int] | None) -> Tensor:
    """The latents of one process, once for all layouts."""
    return denoised(0, Layout(ranks=1), task, size)[0]


def assert_equal_one_process(
    crew: Crew, layout: dict[str, Any], task: str, size: tuple[int, int] | None = None
) -> None:
    expected = denoised_alone(task, size)
    assert expected.std() > 0.1
    made = crew.run(denoised, Layout(ranks=crew.size, cfg=2, **layout), task, size)
    for latents, _ in made:
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(latents, made[0][0]), "every rank takes the same step"


@pytest.mark.parametrize("task", TINY_TASKS)
@pytest.mark.parametrize("layout", TWO, ids=words)
def test_two_ranks_give_what_one_process_gives(two: Crew, layout: dict[str, Any], task: str) -> None:
    assert_equal_one_process(two, layout, task)


@pytest.mark.parametrize("task", TINY_TASKS)
@pytest.mark.parametrize("layout", FOUR, ids=words)
def test_four_ranks_give_what_one_process_gives(four: Crew, layout: dict[str, Any], task: str) -> None:
    assert_equal_one_process(four, layout, task)


@pytest.mark.parametrize("layout", FOUR, ids=words)
def test_tokens_that_do_not_divide_are_split_all_the_same(four: Crew, layout: dict[str, Any]) -> None:
    assert_equal_one_process(four, layout, "t2v-tiny", ODD)


def test_a_step_is_one_pass_and_one_exchange_beside_those_of_the_blocks(four: Crew) -> None:
    """Four layers, whose q, k, v and output are exchanged: half as many times as one after the other."""
    layout = Layout(ranks=4, ulysses=2, cfg=2)
    for rank, (_, heard) in enumerate(four.run(denoised, layout, "t2v-tiny", None)):
        branch = "cond" if rank < 2 else "uncond"
        step = [f"dit.forward {branch}", *["comm.all_to_all"] * 16, "comm.all_gather"]
        assert heard == ["denoise 0", *step, "denoise 1", *step, "denoise 2", *step]


def contexts_held(rank: int, layout: Layout) -> tuple[list[str], int]:
    """The passes that this rank runs, and the bytes that their contexts keep alive."""
    made = pipeline(layout, "t2v-tiny")
    contexts = made.own_contexts(*made.encode_prompts(request("t2v-tiny")))
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in contexts.values()}
    return list(contexts), sum(storages.values())


@pytest.mark.parametrize("t5_fsdp", [False, True])
def test_a_rank_keeps_the_context_of_its_own_pass_only(two: Crew, t5_fsdp: bool) -> None:
    branches, both = contexts_held(0, Layout(ranks=1))
    assert branches == ["cond", "uncond"]
    expected = [(["cond"], both // 2), (["uncond"], both // 2)]
    assert two.run(contexts_held, Layout(ranks=2, cfg=2, t5_fsdp=t5_fsdp)) == expected


def groups_after(rank: int, layouts: list[Layout]) -> int:
    for layout in layouts:
        denoised(rank, layout, "t2v-tiny", None)
    return len(dist.distributed_c10d._world.pg_map)


def test_there_is_one_communicator(four: Crew) -> None:
    """Each costs a GPU 0.5 GiB and more."""
    assert four.run(groups_after, [Layout(ranks=4, cfg=2, **layout) for layout in FOUR]) == [1] * 4


def refused(rank: int, layout: Layout) -> str:
    with pytest.raises(InputError) as caught:
        pipeline(layout, "t2v-tiny").generate(replace(request("t2v-tiny"), guide_scale=1.0))
    return str(caught.value)


def test_without_guidance_both_ranks_refuse(two: Crew) -> None:
    told = "cfg 2 gives half of the ranks the unconditional pass, which guide_scale 1 leaves out"
    assert two.run(refused, Layout(ranks=2, cfg=2)) == [told] * 2


def shards(rank: int, layout: Layout) -> int:
    """Bytes of the DiT that this rank stores."""
    made = pipeline(layout, "t2v-tiny")
    with made.dit.on_device() as dit:
        return sum(
            one.to_local().nbytes if isinstance(one, DTensor) else one.nbytes for one in dit.parameters()
        )


def test_weights_are_sharded_over_the_ranks_of_both_passes(four: Crew) -> None:
    whole = shards(0, Layout(ranks=1))
    stored = four.run(shards, Layout(ranks=4, ulysses=2, cfg=2, dit_fsdp=True))
    assert all(0.2 < one / whole < 0.3 for one in stored)


def peak(rank: int, layout: Layout) -> int:
    """Most bytes alive in the denoise steps, beside the weights."""
    made = pipeline(layout, "t2v-tiny")
    asked = replace(request("t2v-tiny"), steps=1, size=(256, 256))
    with torch.no_grad(), made.dit.on_device():
        contexts = made.own_contexts(*made.encode_prompts(asked))
        with LiveBytes() as live:
            made.denoise(asked, contexts, made.condition(asked))
    return int(live.peak)


def test_a_rank_holds_what_one_pass_alone_holds(two: Crew) -> None:
    alone = peak(0, Layout(ranks=1))
    for held in two.run(peak, Layout(ranks=2, cfg=2)):
        assert held < 1.02 * alone


@pytest.mark.parametrize("task", ["t2v-tiny", "vace-tiny"])
@pytest.mark.parametrize("layout", [{"ulysses": 2}, {"dit_fsdp": True, "vae": "rank0", "ring": 2}], ids=words)
def test_four_ranks_make_the_video_of_one(four: Crew, layout: dict[str, Any], task: str) -> None:
    expected = video_of_one(task)
    made, *others = [out for out, _ in four.run(video, Layout(ranks=4, cfg=2, **layout), task)]
    assert others == [None] * 3
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", [{}, {"ulysses": 2}, {"ring": 2}], ids=words)
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_runs_a_rank_on_fake_tensors(layout: dict[str, Any], rank: int) -> None:
    """As a prediction would: the others are there in name only."""
    task, degrees = TASKS["t2v-tiny"], Layout(ranks=1, **layout)
    size = 2 * degrees.ranks_a_pass
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        with FakeTensorMode(), torch.no_grad():
            made = pipeline(replace(degrees, ranks=size, cfg=2), task.name)
            asked = request(task.name)
            contexts = made.own_contexts(*torch.zeros(2, 1, task.dit.text_len, task.dit.text_dim))
            assert list(contexts) == (["uncond"] if rank >= size // 2 else ["cond"])
            assert made.denoise(asked, contexts, made.condition(asked)).shape == (16, 3, 6, 8)
    finally:
        dist.destroy_process_group()
