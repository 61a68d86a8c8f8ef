"""A DiT over ranks against the same DiT in one process: every task, layout, length and lever."""

from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from crew import Crew, RankError
from dit_inputs import inputs
from flash_attention import installed, without_rounding
from torch import Tensor

from tests.live_bytes import LiveBytes
from tests.tiny_tasks import TINY_TASKS
from wan.components import Components
from wan.config import TASKS
from wan.levers import AttentionKernel, Levers
from wan.networks.attention_kernels import KERNELS, Kernel
from wan.networks.dit import WanDit
from wan.networks.rope import rope_table
from wan.parallel import Layout
from wan.parallel.apply import split_over
from wan.parallel.ranks import Ranks
from wan.spans import Attribute, listening

CPU = torch.device("cpu")
TWO: list[dict[str, Any]] = [
    {"ulysses": 2},
    {"ring": 2},
    {"ulysses": 2, "dit_fsdp": True},
    {"dit_fsdp": True},
]
FOUR: list[dict[str, Any]] = [
    {"ulysses": 4},
    {"ring": 4},
    {"ulysses": 2, "ring": 2},
    {"ulysses": 4, "dit_fsdp": True},
    {"ring": 4, "dit_fsdp": True},
    {"ulysses": 2, "ring": 2, "dit_fsdp": True},
]
EVEN, ODD = (3, 6, 8), (3, 6, 10)
"""36 and 45 tokens: the latter leave 1 over, whether split in two or in four."""


def words(layout: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in layout.items())


class Names:
    """Counts the spans of each name."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def exit(self, name: str, failed: bool) -> None:
        pass


def forward(
    rank: int,
    layout: Layout,
    task: str,
    shape: tuple[int, int, int] = ODD,
    batch: int = 1,
    levers: Levers | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, dict[str, int]]:
    """What this rank's DiT makes, and the spans heard; a layout of one rank is the reference."""
    ranks = Ranks(layout, CPU) if layout.ranks > 1 else None
    made = Components(
        TASKS[task], ckpt_dir=None, device=CPU, strategy="block", offload=True, seed=0, ranks=ranks
    )
    names = Names()
    with torch.no_grad(), listening(names), made.dit(levers or Levers(), dtype).on_device() as dit:
        return dit(**inputs(TASKS[task].dit, batch, shape)), names.counts


@cache
def alone(task: str, *arguments: Any, **named: Any) -> Tensor:
    """What one process makes, once for all layouts."""
    return forward(0, Layout(ranks=1), task, *arguments, **named)[0]


def assert_all_equal_one_process(crew: Crew, layout: dict[str, Any], task: str, *arguments: Any) -> None:
    expected = alone(task, *arguments)
    assert expected.std() > 0.1
    made = crew.run(forward, Layout(ranks=crew.size, **layout), task, *arguments)
    for out, _ in made:
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(out, made[0][0]), "the ranks go on from one and the same result"


@pytest.mark.parametrize("task", TINY_TASKS)
@pytest.mark.parametrize("layout", TWO, ids=words)
def test_two_ranks_give_what_one_process_gives(two: Crew, layout: dict[str, Any], task: str) -> None:
    assert_all_equal_one_process(two, layout, task)


@pytest.mark.parametrize("task", TINY_TASKS)
@pytest.mark.parametrize("layout", FOUR, ids=words)
def test_four_ranks_give_what_one_process_gives(four: Crew, layout: dict[str, Any], task: str) -> None:
    assert_all_equal_one_process(four, layout, task)


@pytest.mark.parametrize("shape", [EVEN, (1, 6, 6), (1, 4, 4), (2, 4, 14)], ids=str)
@pytest.mark.parametrize("layout", FOUR[:3], ids=words)
def test_any_number_of_tokens_can_be_split(
    four: Crew, layout: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    assert_all_equal_one_process(four, layout, "vace-tiny", shape)


@pytest.mark.parametrize("layout", FOUR[:3], ids=words)
def test_a_batch_keeps_its_videos_apart(four: Crew, layout: dict[str, Any]) -> None:
    assert_all_equal_one_process(four, layout, "i2v-tiny", ODD, 2)


@pytest.mark.parametrize("layout", [*FOUR[:3], FOUR[5]], ids=words)
def test_sliced_attention_and_chunks_go_with_ranks(four: Crew, layout: dict[str, Any]) -> None:
    levers = Levers(attention_slicing=True, ffn_chunks=3, rope_chunks=2)
    assert_all_equal_one_process(four, layout, "vace-tiny", ODD, 1, levers)


def forward_by(rank: int, name: AttentionKernel, layout: Layout, sliced: bool) -> tuple[Tensor, list[str]]:
    """As forward(), by a kernel of another package that computes here; and the kernels that computed."""
    used: list[str] = []

    def kernel_for(asked: AttentionKernel, parts: list[Tensor]) -> Kernel:
        used.append(asked)
        return KERNELS[asked]

    levers = Levers(attention_kernel=name, attention_slicing=sliced)
    with (
        installed("fa3", "fa4"),
        without_rounding(),
        mock.patch("wan.networks.attention.kernel_for", kernel_for),
    ):
        return forward(rank, layout, "vace-tiny", ODD, 1, levers)[0], used


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("layout", FOUR[:3], ids=words)
@pytest.mark.parametrize("name", ["fa3", "fa3_fp8"])
def test_other_kernels_go_with_ranks(
    four: Crew, name: AttentionKernel, layout: dict[str, Any], sliced: bool
) -> None:
    expected = alone("vace-tiny", ODD)
    for out, used in four.run(forward_by, name, Layout(ranks=4, **layout), sliced):
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert set(used) == {name}


def test_fewer_tokens_than_ranks_are_refused_in_words(four: Crew) -> None:
    with pytest.raises(RankError, match="InputError: 2 tokens cannot be split over 4 ranks"):
        four.run(forward, Layout(ranks=4, ulysses=4), "t2v-tiny", (1, 2, 4))


@pytest.mark.parametrize("layout", [{"ulysses": 2}, {"ring": 2}], ids=words)
def test_half_precision_stays_as_near_as_on_one_device(two: Crew, layout: dict[str, Any]) -> None:
    given = ("t2v-tiny", ODD, 1, None, torch.bfloat16)
    exact, rounded = alone("t2v-tiny"), alone(*given)
    for out, _ in two.run(forward, Layout(ranks=2, **layout), *given):
        assert (out - exact).norm() < 1.5 * (rounded - exact).norm() + 1e-6


def test_what_ranks_say_to_one_another_is_heard(four: Crew) -> None:
    """Four layers, whose q, k, v and output are exchanged; k and v pass on once in a ring of two."""
    spoken = [
        (Layout(ranks=4, ulysses=4), {"comm.all_to_all": 16, "comm.all_gather": 1}),
        (Layout(ranks=4, ring=4), {"comm.ring": 12, "comm.all_gather": 1}),
        (Layout(ranks=4, ulysses=2, ring=2), {"comm.all_to_all": 16, "comm.ring": 4, "comm.all_gather": 1}),
        # The root and four blocks: memory is made, then gathered into.
        (Layout(ranks=4, dit_fsdp=True), {"comm.all_gather": 10}),
    ]
    for layout, expected in spoken:
        for _, counts in four.run(forward, layout, "t2v-tiny"):
            assert {name: n for name, n in counts.items() if name.startswith("comm.")} == expected


class Calls:
    """Counts the calls of one function of torch.distributed."""

    def __init__(self, plain: Any) -> None:
        self._plain, self.count = plain, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.count += 1
        return self._plain(*arguments, **named)


def gathers_heard(rank: int, layout: Layout) -> int:
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    plain = getattr(dist, name)
    heard = Calls(plain)
    setattr(dist, name, heard)
    try:
        forward(rank, layout, "t2v-tiny")
    finally:
        setattr(dist, name, plain)
    return heard.count


def test_gathers_are_heard_by_who_came_after_the_import(two: Crew) -> None:
    """As a profiler does: the root, four blocks, and the tokens at the end."""
    assert two.run(gathers_heard, Layout(ranks=2, ulysses=2, dit_fsdp=True)) == [6, 6]


def groups_after(rank: int, layouts: list[Layout]) -> int:
    for layout in layouts:
        forward(rank, layout, "t2v-tiny")
    return len(torch.distributed.distributed_c10d._world.pg_map)


def test_there_is_one_communicator_whatever_the_layout(four: Crew) -> None:
    """Each costs a GPU 0.5 GiB and more."""
    assert four.run(groups_after, [Layout(ranks=4, **layout) for layout in FOUR]) == [1] * 4


def live_peak(rank: int, layout: Layout) -> float:
    """Of one block, in rows of the model's width for each of this rank's tokens; x itself, two such, not counted."""
    config = TASKS["t2v-tiny"].dit
    dit = WanDit(config, Levers(ffn_chunks=16)).requires_grad_(False)
    split_over(dit, Ranks(layout, CPU))
    table = dit.tokens.own(rope_table((16, 16, 16), config.head_dim, CPU), dim=0)
    x = dit.tokens.own(torch.randn(1, 16**3, config.dim), dim=1)
    time, context = torch.randn(1, 6, config.dim), torch.randn(1, config.text_len, config.dim)
    with torch.no_grad(), LiveBytes() as live:
        dit.blocks[0](x, time, context, table)
    return live.peak / (len(table) * config.dim * x.itemsize)


@pytest.mark.parametrize(
    ("layout", "least", "most"),
    [
        # q and k exchanged, v three times: made, put in order, received; small things beside.
        ({"ulysses": 4}, 5.0, 5.5),
        # q; own k and v, and those on their way; two outputs to merge, and a share of one of them.
        ({"ring": 4}, 7.0, 8.5),
    ],
    ids=["ulysses", "ring"],
)
def test_what_a_block_holds(four: Crew, layout: dict[str, Any], least: float, most: float) -> None:
    for peak in four.run(live_peak, Layout(ranks=4, **layout)):
        assert least <= peak <= most
