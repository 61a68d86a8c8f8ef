"""Ranges that a program names for other tools open spans of the same names, and torch is as it was afterwards."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.autograd.profiler import record_function
from torch.cuda import nvtx

from ray_memprof.rank.settings import RANGES as KINDS
from ray_memprof.recorder.spans import Attribute, listening, span
from ray_memprof.workload.named_ranges import naming_ranges


class Notebook:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        self.lines.append(f"+{name}")

    def exit(self, name: str, failed: bool) -> None:
        self.lines.append(f"-{name}{' failed' if failed else ''}")


@pytest.fixture
def heard() -> Iterator[list[str]]:
    notebook = Notebook()
    with listening(notebook):
        yield notebook.lines


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """NVTX of a CUDA build: what reaches the library."""
    calls: list[Any] = []

    class Library:
        @staticmethod
        def rangePushA(text: str) -> int:  # noqa: N802 - its name in torch._C
            calls.append(text)
            return len(calls) - 1

        @staticmethod
        def rangePop() -> int:  # noqa: N802
            calls.append(None)
            return 0

    monkeypatch.setattr(nvtx, "_nvtx", Library)
    return calls


def functions() -> tuple[Any, ...]:
    return nvtx.range_push, nvtx.range_pop, record_function.__enter__, record_function.__exit__


def test_without_kinds_nothing_is_wrapped(heard: list[str]) -> None:
    before = functions()
    with naming_ranges(()):
        assert functions() == before
        with record_function("forward"):
            pass
    assert heard == []


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_kind_that_was_asked_for_is_heard_and_torch_is_as_before(
    kind: str, heard: list[str], pushed: list[Any]
) -> None:
    before = functions()
    with naming_ranges((kind,)):
        with nvtx.range("one"):
            pass
        with record_function("two"):
            pass
    assert functions() == before
    name = {"nvtx": "one", "record_function": "two"}[kind]
    assert heard == [f"+{name}", f"-{name}"]
    assert pushed == ["one", None]


def test_ranges_nest_with_spans_and_with_each_other(heard: list[str], pushed: list[Any]) -> None:
    with naming_ranges(KINDS):
        assert nvtx.range_push("step/0") == 0
        with span("inner"), record_function("forward", "args"), nvtx.range("layer {}", 3):
            pass
        nvtx.range_push(msg="again")
        nvtx.range_pop()
        nvtx.range_pop()
        nvtx.range_pop()  # of a range that began before the recording
    assert heard == [
        "+step.0", "+inner", "+forward", "+layer 3", "-layer 3", "-forward", "-inner", "+again", "-again", "-step.0",
    ]  # fmt: skip
    assert pushed == ["step/0", "layer 3", None, "again", None, None, None]


def test_an_exception_goes_through_and_marks_the_span(heard: list[str]) -> None:
    with naming_ranges(KINDS), pytest.raises(KeyError), record_function("forward"):
        raise KeyError
    assert heard == ["+forward", "-forward failed"]


def test_a_decorated_function_that_calls_itself_has_a_span_for_each_call(heard: list[str]) -> None:
    @record_function("f")
    def down(depth: int) -> None:
        if depth:
            down(depth - 1)

    with naming_ranges(KINDS):
        down(1)
    assert heard == ["+f", "+f", "-f", "-f"]


def test_torchs_own_ranges_are_heard(heard: list[str]) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.sum().backward()
    with naming_ranges(KINDS):
        optimizer.step()
    assert heard == ["+Optimizer.step#SGD.step", "-Optimizer.step#SGD.step"]


def test_where_torch_has_no_nvtx_the_program_gets_its_error_and_there_is_no_span(
    heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stub:
        @staticmethod
        def rangePushA(text: str) -> int:  # noqa: N802
            raise RuntimeError("NVTX functions not installed")

    monkeypatch.setattr(nvtx, "_nvtx", Stub)
    with naming_ranges(KINDS), pytest.raises(RuntimeError, match="not installed"):
        nvtx.range_push("forward")
    assert heard == []


def test_a_name_without_a_text_is_a_problem_and_no_error(heard: list[str], pushed: list[Any]) -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError("no text")

    problems: list[str] = []
    with naming_ranges(KINDS, problems.append):
        nvtx.range_push(Odd())
        nvtx.range_pop()
    assert heard == []
    assert problems == ["a range could not be named: ValueError: no text"]


def test_other_threads_are_not_heard(heard: list[str]) -> None:
    def work() -> None:
        with record_function("elsewhere"):
            pass

    with naming_ranges(KINDS):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(20)
    assert heard == []


def test_a_range_that_is_open_at_the_end_ends_there_and_its_own_end_is_nothing(
    heard: list[str], pushed: list[Any]
) -> None:
    label = record_function("outer")
    with naming_ranges(KINDS):
        label.__enter__()
        nvtx.range_push("inner")
    assert heard == ["+outer", "+inner", "-inner", "-outer"]
    nvtx.range_pop()
    label.__exit__(None, None, None)
    assert len(heard) == 4


def test_who_wraps_a_function_inside_the_block_keeps_his_own(
    monkeypatch: pytest.MonkeyPatch, heard: list[str], pushed: list[Any]
) -> None:
    original = nvtx.range_push
    monkeypatch.setattr(nvtx, "range_push", original)  # so that it is put back after the test
    with naming_ranges(("nvtx",)):
        ours = nvtx.range_push
        nvtx.range_push = lambda msg: ours(msg)
        theirs = nvtx.range_push
    assert nvtx.range_push is theirs
    nvtx.range_push("late")
    assert heard == []
    assert pushed == ["late"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_and_compile_take_code_with_ranges(heard: list[str]) -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        with record_function("double"):
            return x * 2

    with naming_ranges(KINDS):
        compiled = torch.compile(double, backend="eager", fullgraph=True)
        assert compiled(torch.ones(1)).item() == 2
        assert torch.jit.script(double)(torch.ones(1)).item() == 2
    assert not [line for line in heard if "double" in line]  # torch.compile has ranges of its own
