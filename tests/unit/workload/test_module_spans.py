"""Spans from forward hooks: the modules asked for, nested as they run, closed on every way out."""

import gc
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from ray_memprof.query.database import open_run
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.recording import recording
from ray_memprof.recorder.spans import Attribute, listening
from ray_memprof.workload.module_spans import naming_modules

ONE = torch.ones(1, 2)


class Notebook:
    """Writes down the spans it hears: the module at both ends, the step, "!" where an exception left it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._open: list[str] = []

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        assert set(attributes) <= {"component", "module", "step", "stage", "index"}
        assert ("stage" in attributes) == ("step" in attributes)
        self._open.append(str(attributes["module"]))
        assert name == self._name()
        step = f" {attributes['step']}" if "step" in attributes else ""
        self.lines.append(f"+{self._open[-1]}{step}")

    def exit(self, name: str, failed: bool) -> None:
        assert name == self._name()
        self.lines.append(f"-{self._open.pop()}{'!' if failed else ''}")

    def _name(self) -> str:
        return re.sub(r"\.\d+", "", self._open[-1])


class Block(nn.Module):
    """Calls `act` on its way, if it has one."""

    def __init__(self, act: Callable[[], object] | None = None) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 2)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        if self.act is not None:
            self.act()
        return x


class Net(nn.Module):
    def __init__(self, *acts: Callable[[], object] | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(act) for act in (acts or (None, None)))
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


@contextmanager
def heard(*patterns: str) -> Iterator[list[str]]:
    notebook = Notebook()
    with listening(notebook), naming_modules(patterns):
        yield notebook.lines


def spans_of(patterns: Sequence[str], call: Callable[[], Any]) -> list[str]:
    with heard(*patterns) as lines:
        call()
    return lines


def fail() -> None:
    raise RuntimeError("no room")


def leave() -> None:
    raise SystemExit(3)


def test_nothing_called_is_nothing_heard_and_no_hook_stays() -> None:
    assert spans_of((), lambda: None) == []
    assert not torch_module._global_forward_pre_hooks
    assert not torch_module._global_forward_hooks
    assert not torch_module._global_forward_hooks_always_called


def test_without_patterns_the_outermost_modules_alone_are_named_each_with_its_own_steps() -> None:
    net, other = Net(), Block()
    with heard() as lines:
        net(ONE)
        other(ONE)
        net(ONE)
    assert lines == ["+Net 0", "-Net", "+Block 0", "-Block", "+Net 1", "-Net"]


@pytest.mark.parametrize(
    ("pattern", "heard_inside"),
    [
        ("blocks.*", ["+Net.blocks.0", "-Net.blocks.0", "+Net.blocks.1", "-Net.blocks.1"]),
        ("Net.blocks.1", ["+Net.blocks.1", "-Net.blocks.1"]),
        ("*.head", ["+Net.head", "-Net.head"]),
        ("blocks.0.*", ["+Net.blocks.0.proj", "-Net.blocks.0.proj"]),
        ("block", []),
        ("blocks", []),  # a ModuleList is never called
    ],
)
def test_a_pattern_is_compared_part_by_part(pattern: str, heard_inside: list[str]) -> None:
    net = Net()
    assert spans_of([pattern], lambda: net(ONE)) == ["+Net 0", *heard_inside, "-Net"]


def test_patterns_nest_and_only_the_outermost_span_carries_a_step() -> None:
    net = Net(None)
    assert spans_of(["Net", "blocks.*", "blocks.*.proj"], lambda: (net(ONE), net(ONE))) == [
        "+Net 0", "+Net.blocks.0", "+Net.blocks.0.proj", "-Net.blocks.0.proj", "-Net.blocks.0", "-Net",
        "+Net 1", "+Net.blocks.0", "+Net.blocks.0.proj", "-Net.blocks.0.proj", "-Net.blocks.0", "-Net",
    ]  # fmt: skip


def test_the_result_is_the_same_with_and_without_hooks() -> None:
    net = Net()
    expected = net(ONE)
    with heard("blocks.*"), torch.no_grad():
        assert torch.equal(net(ONE), expected)


def test_an_exception_marks_the_spans_it_leaves_and_only_those() -> None:
    net, outer = Net(None, fail), Block()

    def survive() -> None:
        with pytest.raises(RuntimeError, match="no room"):
            net(ONE)

    outer.act = survive
    assert spans_of(["Block", "Net", "blocks.*"], lambda: outer(ONE)) == [
        "+Block 0", "+Net", "+Net.blocks.0", "-Net.blocks.0", "+Net.blocks.1", "-Net.blocks.1!", "-Net!", "-Block",
    ]  # fmt: skip


def test_a_call_made_while_an_exception_is_handled_did_not_fail() -> None:
    net = Net(None)

    def call() -> None:
        try:
            fail()
        except RuntimeError:
            net(ONE)

    assert spans_of((), call) == ["+Net 0", "-Net"]


def test_what_torch_calls_no_hook_for_still_closes_the_spans() -> None:
    net, outer = Net(leave), Block()

    def survive() -> None:
        with pytest.raises(SystemExit):
            net(ONE)

    outer.act = survive
    with heard("Block", "Net", "blocks.*") as lines:
        outer(ONE)
        net.blocks[0].act = None
        net(ONE)
    assert lines == [
        "+Block 0", "+Net", "+Net.blocks.0", "-Net.blocks.0!", "-Net!", "-Block",
        "+Net 0", "+Net.blocks.0", "-Net.blocks.0", "-Net",
    ]  # fmt: skip


def test_leaving_the_block_from_inside_a_module_closes_what_is_open() -> None:
    notebook = Notebook()
    with listening(notebook), pytest.raises(SystemExit), naming_modules(["Net", "blocks.*"]):
        Net(leave)(ONE)
    assert notebook.lines == ["+Net 0", "+Net.blocks.0", "-Net.blocks.0!", "-Net!"]


def test_a_module_that_calls_itself_is_closed_as_often_as_it_was_opened() -> None:
    block = Block()
    depth = [0]

    def again() -> None:
        depth[0] += 1
        if depth[0] < 3:
            block(ONE)
        else:
            fail()

    block.act = again
    with heard("Block") as lines:
        with pytest.raises(RuntimeError, match="no room"):
            block(ONE)
        depth[0] = 2
        with pytest.raises(RuntimeError, match="no room"):
            block(ONE)
    assert lines == [
        "+Block 0", "+Block", "+Block", "-Block!", "-Block!", "-Block!", "+Block 1", "-Block!",
    ]  # fmt: skip


def test_a_hook_of_the_program_that_raises_is_part_of_the_call() -> None:
    net = Net(None)

    def refuse(module: nn.Module, args: Any) -> None:
        if module is net.blocks[0]:
            fail()

    handle = torch_module.register_module_forward_pre_hook(refuse)
    try:
        with heard("Net", "blocks.*") as lines, pytest.raises(RuntimeError, match="no room"):
            net(ONE)
    finally:
        handle.remove()
    assert lines == ["+Net 0", "+Net.blocks.0", "-Net.blocks.0!", "-Net!"]


def test_other_threads_are_not_heard() -> None:
    net = Net()
    thread = threading.Thread(target=net, args=(ONE,))
    with heard() as lines:
        thread.start()
        thread.join(timeout=60)
    assert (thread.is_alive(), lines) == (False, [])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_block_that_backward_recomputes_is_known_by_its_name_and_did_not_fail(reentrant: bool) -> None:
    """Without re-entrancy torch leaves the block by an exception of its own."""

    class Frugal(Net):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    net = Frugal(None)
    x = ONE.clone().requires_grad_()

    def train() -> None:
        net(x).sum().backward()

    forward = ["+Frugal 0", "+Frugal.blocks.0", "-Frugal.blocks.0", "-Frugal"]
    assert spans_of(["blocks.*"], train) == [*forward, "+Frugal.blocks.0 0", "-Frugal.blocks.0"]
    assert spans_of((), train) == ["+Frugal 0", "-Frugal"]


def test_a_module_that_is_put_in_later_gets_its_place_in_the_model() -> None:
    net = Net()
    with heard("blocks.*") as lines:
        net(ONE)
        net.blocks[1] = Block()
        net(ONE)
    assert lines == [
        "+Net 0", "+Net.blocks.0", "-Net.blocks.0", "+Net.blocks.1", "-Net.blocks.1", "-Net",
        "+Net 1", "+Net.blocks.0", "-Net.blocks.0", "+Net.blocks.1", "-Net.blocks.1", "-Net",
    ]  # fmt: skip


def test_a_module_that_is_no_child_of_its_caller_goes_by_its_own_class() -> None:
    hidden = Net(None)
    outer = Block(lambda: hidden(ONE))
    assert spans_of(["blocks.*"], lambda: outer(ONE)) == [
        "+Block 0", "+Net", "+Net.blocks.0", "-Net.blocks.0", "-Net", "-Block",
    ]  # fmt: skip


def test_a_wrapper_of_torch_leaves_no_trace_in_names_and_opens_no_second_span() -> None:
    class Wrapper(nn.Module):
        def __init__(self, wrapped: nn.Module) -> None:
            super().__init__()
            self._checkpoint_wrapped_module = wrapped

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self._checkpoint_wrapped_module(x)
            return out

    net = Net(None)
    net.blocks[0] = Wrapper(net.blocks[0])
    assert spans_of(["blocks.*", "blocks.*.proj"], lambda: net(ONE)) == [
        "+Net 0", "+Net.blocks.0", "+Net.blocks.0.proj", "-Net.blocks.0.proj", "-Net.blocks.0", "-Net",
    ]  # fmt: skip


def test_a_model_that_the_script_drops_is_gone() -> None:
    net = Net()
    gone = ref(net)
    with heard("blocks.*"):
        net(ONE)
        del net
        gc.collect()
        assert gone() is None


def test_a_compiled_module_is_one_span_and_runs_without_a_break() -> None:
    net = Net(None)
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(net, backend=backend)
    with heard() as lines:
        assert torch.equal(compiled(ONE), net(ONE))
    assert (len(graphs), lines) == (1, ["+Net 0", "-Net", "+Net 1", "-Net"])


def test_a_compiled_model_in_ddps_place_is_called_by_its_own_name_and_its_graphs_by_none() -> None:
    """The wrapper of torch.compile refuses len(), which Python asks for the truth of an object."""

    class DistributedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.module(x)
            return out

    wrapped = DistributedDataParallel(torch.compile(Net(None), backend="eager"))
    assert spans_of(["blocks.*"], lambda: (wrapped(ONE), wrapped(ONE))) == [
        "+Net 0",
        "-Net",
        "+Net 1",
        "-Net",
    ]


def test_a_stack_shows_the_frames_of_the_program_and_not_ours(tmp_path: Path) -> None:
    with (
        recording(RecordingOptions(run_dir=tmp_path, device="cpu", level="stack")),
        naming_modules(["blocks.*"]),
    ):
        Net(None)(ONE)
    with open_run(tmp_path) as connection:
        files = {file for (file,) in connection.execute("SELECT DISTINCT file FROM stacks").fetchall()}
    assert __file__ in files
    assert not [file for file in files if "ray_memprof" in file and "tests" not in file]
