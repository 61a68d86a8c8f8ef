"""Components and streaming: the weights are where they should be, and the result never depends on it."""

import gc
import weakref
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from wan.errors import WeightsError
from wan.spans import Attribute, listening
from wan.weights.fill import RandomSource, on_meta
from wan.weights.residency import Component
from wan.weights.streaming import NUM_PLACES, Streamer, pin_in_place

CPU = torch.device("cpu")


class Chain(nn.Module):
    """Linear blocks one after the other, with an entry that is no block and a table that stays."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.entry = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(num_blocks))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.entry(self.table(ids))
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


class CountingSource(RandomSource):
    """Random weights that count what is asked of them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def read_into(self, name: str, target: Tensor) -> None:
        self.num_reads += 1
        super().read_into(name, target)


class RefusingSource(RandomSource):
    def check(self, expected: Mapping[str, torch.Size]) -> None:
        raise WeightsError("no such key")

    def read_into(self, name: str, target: Tensor) -> None:
        raise AssertionError("read although refused")


class Names:
    """The spans heard, with their component."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        self.heard.append(" ".join([name, *map(str, attributes.values())]))

    def exit(self, name: str, failed: bool) -> None:
        pass


def component(
    strategy: str, source: RandomSource, *, num_blocks: int = 3, offload: bool = True
) -> Component[Chain]:
    return Component(
        "chain",
        lambda: on_meta(lambda: Chain(num_blocks), torch.float32),
        lambda: source,
        strategy=strategy,  # type: ignore[arg-type]
        device=CPU,
        offload=offload,
        units=lambda chain: list(chain.blocks),
        stay=("table",),
    )


def outputs(part: Component[Chain], times: int = 2) -> list[Tensor]:
    made = []
    for _ in range(times):
        with part.on_device() as chain:
            made.append(chain(torch.arange(5)).clone())
    return made


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("offload", [True, False])
def test_every_strategy_gives_the_same(num_blocks: int, offload: bool) -> None:
    expected = outputs(component("full", RandomSource(), num_blocks=num_blocks))[0]
    assert expected.std() > 0.1
    for strategy in ("full", "block", "stream"):
        for made in outputs(
            component(strategy, RandomSource(), num_blocks=num_blocks, offload=offload), times=3
        ):
            assert torch.equal(made, expected)


@pytest.mark.parametrize(("strategy", "passes_over_the_source"), [("full", 1), ("stream", 1), ("block", 2)])
def test_released_weights_are_read_again_only_under_block(strategy: str, passes_over_the_source: int) -> None:
    source = CountingSource()
    outputs(component(strategy, source), times=2)
    assert source.num_reads == passes_over_the_source * len(list(Chain(3).parameters()))


def test_nothing_is_read_when_the_source_refuses_however_often_it_is_asked() -> None:
    for strategy in ("full", "block", "stream"):
        part = component(strategy, RefusingSource())
        for _ in range(2):
            with pytest.raises(WeightsError, match="no such key"):
                outputs(part)


def test_prepare_checks_and_reads_nothing() -> None:
    with pytest.raises(WeightsError, match="no such key"):
        component("full", RefusingSource()).prepare()
    source = CountingSource()
    component("full", source).prepare()
    assert source.num_reads == 0


def test_released_under_block_the_module_holds_no_memory_whoever_holds_the_module() -> None:
    part = component("block", RandomSource())
    with part.on_device() as chain:
        weights = [weakref.ref(parameter.untyped_storage()) for parameter in chain.parameters()]
        assert all(storage() is not None for storage in weights)
    assert {parameter.device.type for parameter in chain.parameters()} == {"meta"}
    assert all(storage() is None for storage in weights)


class FailingOnce(RandomSource):
    """Fails at the fifth read, the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def read_into(self, name: str, target: Tensor) -> None:
        self.num_reads += 1
        if self.num_reads == 5:
            raise MemoryError("full")
        super().read_into(name, target)


@pytest.mark.parametrize("strategy", ["full", "block", "stream"])
def test_after_a_load_that_failed_half_way_the_next_one_is_whole(strategy: str) -> None:
    part = component(strategy, FailingOnce())
    with pytest.raises(MemoryError):
        outputs(part)
    assert torch.equal(outputs(part)[0], outputs(component(strategy, RandomSource()))[0])


def test_a_failed_move_to_the_device_leaves_no_hooks_and_no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    part = component("stream", RandomSource())
    expected = outputs(part)[0]
    fetch = Streamer._fetch

    def fail(self: Streamer, visit: int) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(Streamer, "_fetch", fail)
    with pytest.raises(MemoryError):
        outputs(part)
    visits: list[int] = []
    monkeypatch.setattr(Streamer, "_fetch", lambda self, visit: (visits.append(visit), fetch(self, visit))[1])
    assert torch.equal(outputs(part, times=1)[0], expected)
    assert visits == [0, 1, 2, 3, 4]  # the two first ones, then one for each of the three blocks


@pytest.mark.parametrize("strategy", ["full", "block", "stream"])
def test_a_dropped_component_is_freed_without_the_garbage_collector(strategy: str) -> None:
    part = component(strategy, RandomSource(), offload=False)
    outputs(part)
    with part.on_device() as chain:
        alive = weakref.ref(chain)
    del chain
    gc.collect()
    gc.disable()
    try:
        del part
        assert alive() is None
    finally:
        gc.enable()


def test_spans_tell_load_onload_and_offload() -> None:
    names = Names()
    with listening(names):
        outputs(component("stream", RandomSource()))
    moves = ["residency.onload chain", "residency.offload chain"]
    assert names.heard == ["load.chain", *moves, *moves]


def test_streamed_blocks_point_into_a_place_while_they_run_and_to_host_memory_otherwise() -> None:
    part = component("stream", RandomSource())
    with part.on_device() as chain:
        at_rest = [block.weight.data_ptr() for block in chain.blocks]
        running: list[int] = []
        for block in chain.blocks:
            block.register_forward_pre_hook(lambda module, _: running.append(module.weight.data_ptr()))
        chain(torch.arange(5))
        assert [block.weight.data_ptr() for block in chain.blocks] == at_rest
        assert len(set(running)) == NUM_PLACES
        assert not set(running) & set(at_rest)


def test_a_pass_that_failed_half_way_does_not_disturb_the_next_one() -> None:
    part = component("stream", RandomSource(), num_blocks=5, offload=False)
    expected = outputs(part, times=1)[0]
    with part.on_device() as chain:
        hook = chain.blocks[2].register_forward_pre_hook(
            lambda *_: (_ for _ in ()).throw(RuntimeError("stop"))
        )
        with pytest.raises(RuntimeError, match="stop"):
            chain(torch.arange(5))
        hook.remove()
        assert torch.equal(chain(torch.arange(5)), expected)


def test_children_apart_are_not_streamed_with_their_block() -> None:
    class Pair(nn.Module):
        apart = ("first",)

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(x)  # type: ignore[no-any-return]

    module = on_meta(lambda: nn.Sequential(Pair()), torch.float32)
    streamer = Streamer(module, [module[0]], RandomSource(), CPU)
    names = {name for name, parameter in module.named_parameters() if parameter in streamer.parameters}
    assert names == {"0.second.weight", "0.second.bias"}
    assert all(parameter.device.type == "cpu" for parameter in module.parameters())


class Runtime:
    """Stands in for the CUDA runtime: keeps what was locked and freed."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.calls: list[tuple[str, int]] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        self.calls.append(("lock", size))
        return self.code

    def cudaHostUnregister(self, address: int) -> None:  # noqa: N802
        self.calls.append(("unlock", 0))


def refuse_other_than_zero(code: int) -> None:
    if code:
        raise RuntimeError("CUDA error: out of memory")


def test_page_locked_memory_is_unlocked_when_it_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", refuse_other_than_zero)
    tensor = torch.zeros(8)
    pin_in_place(tensor)
    assert runtime.calls == [("lock", 32)]
    del tensor
    assert runtime.calls == [("lock", 32), ("unlock", 0)]


def test_memory_that_cannot_be_locked_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(code=2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", refuse_other_than_zero)
    with pytest.raises(MemoryError, match="32 bytes of host memory cannot be page-locked: CUDA error"):
        pin_in_place(torch.zeros(8))
    assert runtime.calls == [("lock", 32)]
