"""Spans from hooks on models that are large, change while they run, or are no ordinary ones: names, cost and memory."""

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_memprof.recorder.spans import Attribute, listening
from ray_memprof.workload import module_names as module
from ray_memprof.workload.module_names import ModuleNames
from ray_memprof.workload.module_spans import naming_modules

ONE = torch.ones(1, 2)


class Ear:
    """Modules of the spans it hears begin."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        self.heard.append(str(attributes["module"]))

    def exit(self, name: str, failed: bool) -> None:
        pass


def heard(
    patterns: tuple[str, ...],
    call: Callable[[], Any],
    problems: list[str] | None = None,
    names: ModuleNames | None = None,
) -> list[str]:
    ear, told = Ear(), [] if problems is None else problems
    with listening(ear), naming_modules(patterns, told.append, names):
        call()
    return ear.heard


class Net(nn.Module):
    """Runs its blocks, then `act`, if it has one."""

    def __init__(self, num: int = 2, act: Callable[["Net", Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(num))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.act is None else self.act(self, x)


def fresh(net: Net, x: Tensor) -> Tensor:
    out: Tensor = nn.Softmax(dim=-1)(x)
    return out


class Counted(ModuleNames):
    """Counts how many names it gives."""

    num_named = 0

    def _remember(self, *args: Any, **more: Any) -> None:
        self.num_named += 1
        super()._remember(*args, **more)


# --------------------------------------------------------------------------------
# Cost and memory


def test_a_module_that_forward_makes_costs_no_walk_of_the_model() -> None:
    net, names = Net(500, fresh), Counted()
    with naming_modules(("none.*",), names=names):
        for _ in range(100):
            net(ONE)
    num_calls, num_modules = 100 * 502, 502
    # Each fresh one is named once; the model is walked when first called, and once for as many calls as it is large.
    most = 100 + num_modules * (1 + num_calls / num_modules)
    assert 100 + num_modules <= names.num_named <= most


def test_fifty_thousand_modules_are_walked_once() -> None:
    net, names = Net(0), Counted()
    net.blocks.extend(nn.Identity() for _ in range(50_000))
    assert (
        heard(("blocks.49999",), lambda: (net(ONE), net(ONE)), names=names) == ["Net", "Net.blocks.49999"] * 2
    )
    assert names.num_named == 50_002


def test_a_chain_of_many_levels_is_named() -> None:
    inner: nn.Module = nn.Identity()
    for _ in range(3000):
        inner, below = nn.Module(), inner
        inner.add_module("a", below)

    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = inner

        def forward(self, x: Tensor) -> Tensor:
            return x

    assert heard((), lambda: Top()(ONE)) == ["Top"]


@pytest.mark.parametrize("is_attached", [False, True])
def test_a_script_that_makes_modules_for_ever_leaves_none_behind(is_attached: bool) -> None:
    def act(net: Net, x: Tensor) -> Tensor:
        made = nn.Sequential(nn.Softmax(dim=-1), nn.Identity())
        if is_attached:
            net.extra = made
        out: Tensor = made(x)
        return out

    net, names = Net(2, act), ModuleNames()
    with naming_modules(("extra.*",), names=names):
        net(ONE)
        gc.collect()
        num_known = (len(names._known), len(names._places))
        for _ in range(50):
            net(ONE)
        gc.collect()
        assert (len(names._known), len(names._places)) == num_known


# --------------------------------------------------------------------------------
# Places


def test_a_module_that_is_attached_while_the_model_runs_has_its_place_at_once() -> None:
    def act(net: Net, x: Tensor) -> Tensor:
        net.extra = nn.Sequential(nn.Identity(), nn.Identity())
        net.alias = net.blocks[0]
        out: Tensor = net.alias(net.extra(x))
        return out

    net = Net(1, act)
    assert heard(("*.*", "*"), lambda: net(ONE)) == [
        "Net", "Net.blocks.0", "Net.extra", "Net.extra.0", "Net.extra.1", "Net.blocks.0"
    ]  # fmt: skip


def test_a_module_put_past_torchs_own_ways_has_its_place_once_a_walk_is_due() -> None:
    net = Net(3)

    def run() -> None:
        net(ONE)
        for _ in range(2):
            net.blocks._modules["1"] = nn.Linear(2, 2)
            net(ONE)
            net(ONE)

    told = heard(("blocks.1",), run)
    # Five modules in all: after as many calls the place is looked for. Until then it goes by its class.
    assert [told.count(name) for name in ("Net", "Net.blocks.1")] == [5, 5 - told.count("Linear")]
    assert told.count("Linear") <= 2
    assert told[-1] == "Net.blocks.1"


def test_a_module_under_two_names_has_the_first() -> None:
    net = Net(2)
    net.blocks.append(net.blocks[0])
    assert heard(("blocks.*",), lambda: net(ONE)) == ["Net", "Net.blocks.0", "Net.blocks.1", "Net.blocks.0"]


def test_a_copy_is_a_model_of_its_own() -> None:
    net = Net(1)

    def run() -> None:
        net(ONE)
        copy.deepcopy(net)(ONE)

    assert heard(("blocks.*",), run) == ["Net", "Net.blocks.0"] * 2


def test_a_compiled_script_goes_by_what_it_was_made_from() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    scripted = torch.jit.script(Plain())
    assert heard((), lambda: scripted(ONE)) == ["Plain"]


def test_a_module_attached_on_another_thread_has_its_place_and_harms_nobody() -> None:
    net = Net(1)

    def run() -> None:
        net(ONE)
        thread = threading.Thread(target=lambda: net.blocks.append(nn.Linear(2, 2)))
        thread.start()
        thread.join(20)
        net(ONE)

    assert heard(("blocks.*",), run) == ["Net", "Net.blocks.0", "Net", "Net.blocks.0", "Net.blocks.1"]


# --------------------------------------------------------------------------------
# Classes of a program's own


class Equal(nn.Linear):
    """Equal to all, without a hash."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Slotted(nn.Linear):
    __slots__ = ("more",)


class Empty(nn.Linear):
    """False in every condition."""

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")

    def __len__(self) -> int:
        raise RuntimeError("no length")


class Unnamed(nn.Linear):
    def named_modules(self, *args: Any, **more: Any) -> Any:
        raise RuntimeError("no names")

    def named_children(self) -> Any:
        raise RuntimeError("no children")


class Asking(nn.Linear):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_orig_mod") or name.startswith("_fsdp"):
            raise RuntimeError(f"asked for {name}")
        return super().__getattr__(name)


@pytest.mark.parametrize("kind", [Equal, Slotted, Empty, Unnamed, Asking])
def test_a_class_that_overrides_what_objects_have_is_named_all_the_same(kind: type[nn.Linear]) -> None:
    net, problems = Net(1), list[str]()
    net.blocks[0] = kind(2, 2)
    net.blocks.append(kind(2, 2))
    told = heard(("blocks.*",), lambda: (net(ONE), kind(2, 2)(ONE)), problems)
    assert (told, problems) == (["Net", "Net.blocks.0", "Net.blocks.1", kind.__name__], [])


def test_what_cannot_be_named_is_a_problem_and_never_an_error_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problems: list[str] = []

    def fails(*args: Any) -> Any:
        raise RuntimeError("broken\nin two lines")

    net = Net(1)
    expected = net(ONE)
    monkeypatch.setattr(module, "children_of", fails)
    with naming_modules(("blocks.*",), problems.append):
        assert torch.equal(net(ONE), expected)
        net.blocks.append(nn.Linear(2, 2))
    assert set(problems) == {"a module could not be named: RuntimeError: broken"}
