"""Spans for a script that opens none itself: calls of torch.nn.Module open them, without changing the script.

    with naming_modules(("blocks.*", "head")):
        ...                          # span("dit.blocks", component="dit", module="WanModel.blocks.7", index=7)

A module that is called while no other module runs gets a span. With patterns, a module inside it gets one, too, if a
pattern matches its path (see module_names.py), with or without its first part, or if it has no place in another module.
fnmatch compares each part of the path: "blocks.*" matches every block, "blocks.*.attn" every block's attention. The
name of a span is the path without the numbers, so that all blocks share one name; the first of the numbers is its
index.

The denoise loop of a script is not known. So the outermost of our spans carries `step`: how many calls of the same name
came before it. A DiT that is called twice per step (with and without the prompt) counts two for each step. In training
it is the step of the optimizer; a program that calls ray_memprof.step() counts itself. The outermost span also carries
its stage: that of Wan2.1 for components of Wan2.1, "forward" for a module in training, else the component.

Module.__call__ is replaced, for torch's global hooks would cost 5 us at every call of a module. Ours takes 0.3 us
where there are no patterns, 2.5 us where there are; a call that opens a span takes 3.5 us more, plus the time of the
listeners of spans. Python stacks that are recorded do not show the frame of it.
"""

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from sys import exception
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules.module import register_module_module_registration_hook

from ray_memprof.recorder.handler_errors import pass_on, surely
from ray_memprof.recorder.problems import unheard
from ray_memprof.recorder.replacements import Replacements
from ray_memprof.recorder.spans import Attribute, in_step, span
from ray_memprof.recorder.stacks import hide_frames
from ray_memprof.store.categories import stage_of_call
from ray_memprof.wording import error_line
from ray_memprof.workload.module_names import ModuleNames, Name

hide_frames(__file__)
# Raised by torch.utils.checkpoint inside a module once all that backward needs has been recomputed: no failure.
_RECOMPUTED = "_StopRecomputationError"


@contextmanager
def naming_modules(
    patterns: Sequence[str],
    problem: Callable[[str], None] = unheard,
    names: ModuleNames | None = None,
    *,
    opens_spans: bool = True,
) -> Iterator["ModuleSpans"]:
    """Inside the block, open a span for each call on this thread of an outermost module or one that a pattern matches.

    Args:
        patterns: see the docstring of this module.
        problem: called with a message if a call could not be named; no error is raised into the model.
        names: of the modules; None: new ones.
        opens_spans: False: the program has spans of its own; calls of outermost modules are only told.
    """
    spans = ModuleSpans(patterns, problem, ModuleNames() if names is None else names)
    spans.opens_spans = opens_spans
    attached = register_module_module_registration_hook(spans.attached)
    replaced = Replacements()
    replaced.put(Module, "__call__", spans.calling(Module.__call__))
    try:
        yield spans
    finally:
        replaced.take_back()
        attached.remove()
        spans.close()


@dataclass(slots=True, eq=False)
class _Call:
    """A module that is running."""

    module: Module
    path: str
    span: AbstractContextManager[None] | None


class TrainingStep:
    """The number of the step in training: it grows when a forward or backward pass comes after an optimizer's step."""

    def __init__(self) -> None:
        self.number = 0
        self.has_begun = False
        """Whether there was a backward pass: until then nothing shows that the program trains."""
        self.component = ""
        """That was called last in training: backward and optimizer work for it."""
        self._is_over = False

    def end(self) -> None:
        """An optimizer has made its step; others may do so, too, before the next begins."""
        self._is_over = True

    def attributes(self, *, begins: bool = True) -> dict[str, Attribute]:
        """Attributes of a span of the step; `begins`: it belongs to the next step if this one is over."""
        if begins and self._is_over:
            self.number, self._is_over = self.number + 1, False
        found: dict[str, Attribute] = {} if in_step() else {"step": self.number}
        return found | ({"component": self.component} if self.component else {})


class ModuleSpans:
    """The calls of modules that go on, and their spans."""

    def __init__(self, patterns: Sequence[str], problem: Callable[[str], None], names: ModuleNames) -> None:
        self._patterns = [pattern.split(".") for pattern in patterns]
        self._is_wanted: dict[str, bool] = {}
        self._thread = threading.get_ident()
        self._calls: list[_Call] = []
        self._num_open = 0
        self._called_tops: set[str] = set()
        self._num_calls: Counter[str] = Counter()
        self._names = names
        self._problem = problem
        self.training_step = TrainingStep()
        self.opens_spans = True
        self.outermost_called: Callable[[Module, Name], None] = _nothing
        """Called before the span of a module that is called while no other module runs."""

    @property
    def is_inside(self) -> bool:
        """Whether a call of a module goes on."""
        return bool(self._calls)

    def calling(self, original: Any) -> Any:
        """What takes the place of Module.__call__, which is `original`."""
        spans, has_patterns = self, bool(self._patterns)

        @functools.wraps(original)
        def __call__(module: Module, *args: Any, **kwargs: Any) -> Any:
            # Compiled code has no boundaries between modules. Spans belong to one thread, but backward recomputes
            # checkpointed modules on another thread.
            if (
                torch.compiler.is_compiling()
                or threading.get_ident() != spans._thread
                or (spans._calls and not has_patterns)
            ):
                return original(module, *args, **kwargs)
            call = spans._opened(module)
            try:
                result = original(module, *args, **kwargs)
            except BaseException as error:
                surely(spans._ended, call, None if type(error).__name__ == _RECOMPUTED else error)
                raise
            try:
                spans._ended(call, None)
            except BaseException:  # of a signal's handler, perhaps before the first instruction
                surely(spans._ended, call, None)
                raise
            return result

        return __call__

    def _opened(self, module: Module) -> _Call:
        call = _Call(module, "", None)
        try:
            try:
                self._begin(call)
            except Exception as error:  # a class may override any method or attribute, and raise in it
                self._note(error)
            self._calls.append(call)
        except BaseException as error:  # of a signal's handler: the call will not be made
            surely(self._ended, call, error)
            raise
        return call

    def _begin(self, call: _Call) -> None:
        around = self._calls[-1] if self._calls else None
        if around is not None and isinstance(call.module, torch.fx.GraphModule):
            call.path = around.path  # what torch.compile has made of the module that is called
            return
        name = self._names.named(call.module, self._calls[0].module if self._calls else None)
        if name is None:
            return
        call.path = name.path
        # A wrapper and the module that it wraps have the same path. Only the wrapper gets a span.
        is_wrapped = around is not None and around.path == name.path and around.module is not call.module
        opened = None if is_wrapped else self._span(call.module, name)
        if opened is not None:
            opened.__enter__()
            call.span = opened  # at once: what interrupts must find it
            self._num_open += 1

    def _ended(self, call: _Call, error: BaseException | None) -> None:
        """A call is over; calls inside it that are still open ended before, where a signal's handler raised."""
        if call not in self._calls:  # it was interrupted as it began, or as it ended
            self._end(call, error)
            return
        while self._calls:
            last = self._calls.pop()
            try:
                self._end(last, error)
            except BaseException as again:  # of a signal's handler
                surely(self._ended, call, again)
                raise
            if last is call:
                break

    def close(self) -> None:
        """End the calls that go on: the recording ends inside them."""
        self._thread = 0
        while self._calls:
            self._end(self._calls.pop(), exception())

    def _end(self, call: _Call, error: BaseException | None) -> None:
        """End the span of a call; `error` is the exception that left the call, None if it ended well."""
        opened, call.span = call.span, None
        if opened is None:
            return
        self._num_open -= 1
        if error is None:
            opened.__exit__(None, None, None)
        else:
            opened.__exit__(type(error), error, error.__traceback__)

    def _span(self, module: Module, name: Name) -> AbstractContextManager[None] | None:
        if "." not in name.path:
            self._called_tops.add(name.path)
        if not self._wants(name) and not self._is_worked_through(name):
            return None
        if not self.opens_spans:
            self.outermost_called(module, name)
            return None
        parts = name.title.split(".")
        title = ".".join(part for part in parts if not part.isdigit())
        attributes: dict[str, Attribute] = {"component": name.component, "module": name.path}
        index = next((part for part in parts if part.isdigit()), None)
        if index is not None:
            attributes["index"] = int(index)
        if not self._num_open:
            self.outermost_called(module, name)
            is_training = module.training and torch.is_grad_enabled()
            attributes["stage"] = "forward" if is_training else stage_of_call(name.component, title)
            self.training_step.component = name.component if is_training else ""
            if is_training and self.training_step.has_begun:
                attributes |= self.training_step.attributes()
            else:
                attributes |= self._next_call(title)
        return span(title, **attributes)

    def _is_worked_through(self, name: Name) -> bool:
        """Whether no call goes on, and the module at the top is never called: the program calls the modules inside.

        If the module at the top is called, too, then this is a module that backward calls again for its activations.
        """
        return not self._num_open and name.path.partition(".")[0] not in self._called_tops

    def _next_call(self, title: str) -> dict[str, Attribute]:
        if in_step():
            return {}
        if self.training_step.has_begun:  # an evaluation between two steps of the training
            return {"step": self.training_step.number}
        number = self._num_calls[title]
        self._num_calls[title] += 1
        return {"step": number}

    def _wants(self, name: Name) -> bool:
        """Whether a pattern matches; what was found out is kept, because it is asked at every call."""
        known = self._is_wanted.get(name.path)
        if known is None:
            # A module without a place in another one gets a span wherever it is called.
            known = self._is_wanted[name.path] = "." not in name.path or any(
                _matches(parts, pattern) or _matches(parts[1:], pattern)
                for parts in (name.path.split("."), name.title.split("."))
                for pattern in self._patterns
            )
        return known

    def attached(self, parent: Module, key: str, module: Module | None) -> None:
        """Hook of torch: `module` becomes a child of `parent`."""
        try:
            self._names.attached(parent, key, module)
        except Exception as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        pass_on(error)
        self._problem(f"a module could not be named: {error_line(error)}")


def _nothing(module: Module, name: Name) -> None:
    """Nobody wants to know."""


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))
