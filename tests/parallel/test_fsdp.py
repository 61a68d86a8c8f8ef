"""Sharded networks: each rank reads and stores its share, gives it back, and looks up what it does not have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from crew import Crew
from torch import Tensor, nn

from wan.config import TASKS
from wan.networks.dit import WanDit
from wan.networks.text import build_text_encoder, encode_text
from wan.parallel import Layout
from wan.parallel.fsdp import Sharded, SplitTable
from wan.parallel.ranks import Ranks
from wan.weights import fill
from wan.weights.fill import (
    RandomSource,
    materialize,
    on_meta,
    random_dit,
    random_text,
)
from wan.weights.tokenizer import load_tokenizer

CPU = torch.device("cpu")
DIT = TASKS["vace-tiny"].dit
TEXT = TASKS["t2v-tiny"].text
SHAPE = (1, 16, 2, 4, 6)


class Counting(RandomSource):
    """Counts the bytes asked for."""

    def __init__(self) -> None:
        super().__init__(origin=fill.dit_origin)
        self.read_bytes = 0

    def read_rows(self, name: str, target: Tensor, *, start: int, shape: torch.Size) -> None:
        self.read_bytes += target.nbytes
        super().read_rows(name, target, start=start, shape=shape)


def sharded_dit(size: int, source: RandomSource, *, offload: bool = True) -> Sharded[WanDit]:
    return Sharded(
        "dit",
        lambda: on_meta(lambda: WanDit(DIT), torch.float32),
        lambda: source,
        ranks=Ranks(Layout(ranks=size, dit_fsdp=True), CPU),
        units=WanDit.execution_order,
        device=CPU,
        offload=offload,
    )


def stored_bytes(module: nn.Module) -> int:
    """Of the memory behind the parameters, each counted once."""
    storages = {}
    for parameter in module.parameters():
        local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # type: ignore[operator]
        storages[id(local.untyped_storage())] = local.untyped_storage().nbytes()
    return sum(storages.values())


def velocity(dit: WanDit) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, DIT.text_len, DIT.text_dim, generator=generator)
    control = torch.randn(1, DIT.vace_in_dim, *SHAPE[2:], generator=generator)
    made: Tensor = dit(torch.randn(SHAPE, generator=generator), torch.tensor([500.0]), text, control=control)
    return made


def share(rank: int, size: int) -> dict[str, Any]:
    source = Counting()
    part = sharded_dit(size, source)
    part.prepare()
    checked = source.read_bytes
    with torch.no_grad():
        with part.on_device() as dit:
            loaded, first = stored_bytes(dit), velocity(dit)
            after_forward = stored_bytes(dit)
        released, first_read = stored_bytes(dit), source.read_bytes
        with part.on_device() as dit:
            second = velocity(dit)
            again = stored_bytes(dit)
    return {
        "checked": checked, "read": first_read, "read again": source.read_bytes - first_read, "loaded": loaded,
        "after forward": after_forward, "released": released, "again": again, "first": first, "second": second,
    }  # fmt: skip


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_reads_stores_and_gives_back_its_share(two: Crew, four: Crew, size: int) -> None:
    whole = on_meta(lambda: WanDit(DIT), torch.float32)
    total = sum(parameter.nbytes for parameter in whole.parameters())
    materialize(whole, random_dit(), CPU)
    with torch.no_grad():
        expected = velocity(whole)

    told = (two if size == 2 else four).run(share, size)

    assert sum(each["read"] for each in told) == total, "every row once"
    for each in told:
        assert each["checked"] == 0
        assert each["read"] == each["read again"]
        # Some parameters have a single row, and FSDP pads those that do not divide.
        assert total / size * 0.9 < each["loaded"] < total / size * 1.1
        assert each["after forward"] == each["loaded"] == each["again"]
        assert each["released"] == 0
        torch.testing.assert_close(each["first"], expected, rtol=0, atol=1e-5)
        assert torch.equal(each["second"], each["first"])


def named_without_an_index(rank: int) -> list[int]:
    # As "cuda" is: no tensor says of itself that it is there.
    part = Sharded(
        "odd",
        lambda: on_meta(Odd, torch.float32),
        RandomSource,
        ranks=Ranks(Layout(ranks=2, dit_fsdp=True), CPU),
        units=lambda module: list(module.blocks),
        device=torch.device("cpu:0"),
        offload=True,
    )
    with part.on_device() as module:
        loaded = stored_bytes(module)
    return [loaded > 0, stored_bytes(module)]


def test_shards_are_given_back_however_the_device_is_named(two: Crew) -> None:
    assert two.run(named_without_an_index) == [[True, 0]] * 2


class Odd(nn.Module):
    """Sides that no number of ranks divides, one row, and fewer rows than ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(5, 7), nn.Linear(7, 3)])
        self.gain = nn.Parameter(torch.ones(1, 3))
        self.last = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        made: Tensor = self.last(x * self.gain)
        return made


def odd(rank: int, size: int) -> list[Tensor]:
    part = Sharded(
        "odd",
        lambda: on_meta(Odd, torch.float32),
        RandomSource,
        ranks=Ranks(Layout(ranks=size, dit_fsdp=True), CPU),
        units=lambda module: list(module.blocks),
        device=CPU,
        offload=True,
    )
    made = []
    for _ in range(3):
        with torch.no_grad(), part.on_device() as module:
            made += [module(torch.ones(2, 5)), module(torch.ones(2, 5))]
    return made


def test_rows_that_do_not_divide(four: Crew) -> None:
    whole = on_meta(Odd, torch.float32)
    materialize(whole, RandomSource(), CPU)
    expected = whole(torch.ones(2, 5))
    for outs in four.run(odd, 4):
        for out in outs:
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def failing(rank: int, size: int) -> tuple[int, Tensor]:
    class FailingOnce(Counting):
        def read_rows(self, name: str, target: Tensor, *, start: int, shape: torch.Size) -> None:
            if name == "blocks.2.ffn.0.weight" and not self.read_bytes > 10**6:
                self.read_bytes = 10**6 + 1
                raise MemoryError("full")
            super().read_rows(name, target, start=start, shape=shape)

    part = sharded_dit(size, FailingOnce())
    with pytest.raises(MemoryError, match="full"), part.on_device():
        pass
    assert part._module is not None
    left = stored_bytes(part._module)
    with torch.no_grad(), part.on_device() as dit:
        return left, velocity(dit)


def test_after_a_load_that_failed_half_way_the_next_one_is_whole(two: Crew) -> None:
    whole = on_meta(lambda: WanDit(DIT), torch.float32)
    materialize(whole, random_dit(), CPU)
    with torch.no_grad():
        expected = velocity(whole)
    for left, made in two.run(failing, 2):
        assert left == 0
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------
# The text encoder, whose table is split


def states(rank: int, size: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    part = Sharded(
        "t5",
        lambda: build_text_encoder(TEXT, dtype),
        random_text,
        ranks=Ranks(Layout(ranks=size, t5_fsdp=True), CPU),
        units=lambda encoder: list(encoder.blocks),
        tables=("token_embedding",),
        device=CPU,
        offload=True,
    )
    with torch.no_grad(), part.on_device() as encoder:
        made = encode_text(encoder, load_tokenizer(None, TEXT), ["a fox", "snow, and more of it"], CPU)
        return made, stored_bytes(encoder.token_embedding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sharded_text_encoder_says_the_same(four: Crew, dtype: torch.dtype) -> None:
    whole = build_text_encoder(TEXT, dtype)
    materialize(whole, random_text(), CPU)
    with torch.no_grad():
        expected = encode_text(whole, load_tokenizer(None, TEXT), ["a fox", "snow, and more of it"], CPU)
    for made, table in four.run(states, 4, dtype):
        assert torch.equal(made, expected)
        assert table == whole.token_embedding.weight.nbytes // 4


def looked_up(rank: int, size: int, num_rows: int) -> Tensor:
    table = nn.Embedding(num_rows, 3)
    table.weight.data = torch.arange(num_rows * 3.0).view(num_rows, 3)
    split = SplitTable(table, Ranks(Layout(ranks=size, t5_fsdp=True), CPU))
    start = split._start
    split.weight.data = table.weight.data[start : start + len(split.weight)].clone()
    made: Tensor = split(torch.tensor([[0, num_rows - 1, num_rows // 2]]))
    return made


@pytest.mark.parametrize("num_rows", [1, 3, 5, 8, 11])
def test_tables_of_any_length_are_looked_up(four: Crew, num_rows: int) -> None:
    whole = torch.arange(num_rows * 3.0).view(num_rows, 3)
    expected = whole[[0, num_rows - 1, num_rows // 2]][None]
    assert all(torch.equal(made, expected) for made in four.run(looked_up, 4, num_rows))


# --------------------------------------------------------------------------------
# Sources


def sources(tmp_path: Path) -> dict[str, tuple[fill.Source, nn.Module]]:
    from command_line import import_script

    from wan.weights import checkpoint

    task = TASKS["i2v-tiny"]
    import_script("make_checkpoint").write_checkpoint(task, tmp_path)
    dit = on_meta(lambda: WanDit(task.dit), torch.float32)
    assert task.clip is not None
    from wan.networks.image import build_image_encoder

    clip, text = build_image_encoder(task.clip, torch.float32), build_text_encoder(task.text, torch.bfloat16)
    return {
        "safetensors": (checkpoint.open_dit(task, tmp_path), dit),
        "pth": (checkpoint.open_text(task, tmp_path), text),
        "pth, in parts": (checkpoint.open_clip(task, tmp_path), clip),
        "random": (fill.random_clip(3), clip),
    }


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pth, in parts", "random"])
def test_rows_are_those_of_the_whole(tmp_path: Path, kind: str) -> None:
    source, module = sources(tmp_path)[kind]
    for name, placeholder in module.named_parameters():
        whole = torch.empty(placeholder.shape, dtype=placeholder.dtype)
        source.read_into(name, whole)
        half = -(-len(whole) // 2)
        for start, rows in ((0, whole[:half]), (half, whole[half:])):
            made = torch.full_like(rows, torch.nan)
            if len(rows):
                source.read_rows(name, made, start=start, shape=whole.shape)
            assert torch.equal(made, rows), name
