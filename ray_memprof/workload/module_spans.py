"""Spans for a script that opens none itself: forward hooks on torch.nn.Module open them, without changing the script.

    with naming_modules(("blocks.*", "head")):
        ...                          # span("WanModel.blocks", component="WanModel.blocks.7") around a call of a block

A module that is called while no other module runs is an outermost module. Its component is the name of its class; the
component of a module inside it is that name and the module's path in named_modules(). Outermost modules always get a
span. A module inside them gets one if a pattern matches its path, with or without the class. fnmatch compares each part
of the path: "blocks.*" matches every block, "blocks.*.attn" every block's attention. The name of a span is its
component without the numbers, so that all blocks share one name.

The denoise loop of a script is not known. So the outermost of our spans carries `step`: how many calls of the same
component came before it. A DiT that is called twice per step (with and without the prompt) counts two for each step.

While the hooks are attached, a call of any module takes 2.5 us more; a call that opens a span takes 3.5 us more, plus
the time of the listeners of spans.
"""

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from sys import exception
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_module_registration_hook,
)

from ray_memprof.recorder.spans import span
from ray_memprof.wording import error_line

# torch's wrappers add these parts to the paths of the modules that they wrap.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


# Raised by torch.utils.checkpoint inside a module once all that backward needs has been recomputed: no failure.
_RECOMPUTED = "_StopRecomputationError"


class _Left(BaseException):
    """Stands for an exception that left a module and was caught before our hooks could see it."""


def _unheard(text: str) -> None:
    """Ignore a problem; the default."""


@contextmanager
def naming_modules(patterns: Sequence[str], problem: Callable[[str], None] = _unheard) -> Iterator[None]:
    """Inside the block, open a span for each call on this thread of an outermost module or one that a pattern matches.

    Args:
        patterns: see the docstring of this module.
        problem: called with a message if a call could not be named; no error is raised into the model.
    """
    spans = ModuleSpans(patterns, problem)
    attached = register_module_module_registration_hook(spans.attached)
    before = register_module_forward_pre_hook(spans.before)
    # Without always_call, the span of a module that raises would never end.
    after = register_module_forward_hook(spans.after, always_call=True)
    try:
        yield
    finally:
        after.remove()
        before.remove()
        attached.remove()
        spans.close()


@dataclass(slots=True)
class _Call:
    """A module that is running."""

    module: Module
    component: str | None
    span: AbstractContextManager[None] | None
    handled: BaseException | None
    """The exception that was being handled when the call began: it does not mean that the call failed."""


@dataclass(slots=True)
class _Known:
    """A module that has a name."""

    module: "weakref.ref[Module]"
    path: str
    is_wanted: bool
    is_guess: bool
    """Its place inside the outermost module is not known yet; the next walk may find it."""


class ModuleSpans:
    """The two hooks, and the calls that are open between them."""

    def __init__(self, patterns: Sequence[str], problem: Callable[[str], None] = _unheard) -> None:
        self._patterns = [pattern.split(".") for pattern in patterns]
        self._thread = threading.get_ident()
        self._calls: list[_Call] = []
        self._num_open = 0
        self._num_calls: Counter[str] = Counter()
        # The key is the id, since a class may define any __eq__, or have no hash. The references are weak, so that a
        # model that the script drops is freed.
        self._known: dict[int, _Known] = {}
        self._credit = self._num_walked = 0
        self._problem = problem

    def before(self, module: Module, args: Any) -> None:
        """Forward pre-hook: `module` is called."""
        # Compiled code has no boundaries between modules, and a hook traced into it would break its graph. Spans belong
        # to one thread, but backward recomputes checkpointed modules on another thread.
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        try:
            self._begin(module)
        except Exception as error:  # a class may override any method or attribute, and raise in it
            self._note(error)

    def _begin(self, module: Module) -> None:
        component = self._component(module)
        around = self._calls[-1] if self._calls else None
        # A wrapper and the module that it wraps have the same component. Only the wrapper gets a span.
        is_wrapped = around is not None and around.component == component and around.module is not module
        call = _Call(module, component, None if is_wrapped else self._span(component), exception())
        if call.span is not None:
            call.span.__enter__()
            self._num_open += 1
        self._calls.append(call)

    def after(self, module: Module, args: Any, result: Any) -> None:
        """Forward hook, called after an exception too: `module` is done."""
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        error = exception()
        try:
            self._finish(module, error)
        except Exception as failed:
            self._note(failed)

    def _finish(self, module: Module, error: BaseException | None) -> None:
        for depth in range(len(self._calls) - 1, -1, -1):
            if self._calls[depth].module is module:
                break
        else:
            return  # another hook raised before ours saw the call
        # torch calls no hook after a BaseException that is no Exception (SystemExit, KeyboardInterrupt): such calls are
        # still on top of this one, and end now.
        while len(self._calls) > depth + 1:
            self._end(self._calls.pop(), error or _Left())
        call = self._calls.pop()
        is_over = error is call.handled or type(error).__name__ == _RECOMPUTED
        self._end(call, None if is_over else error)

    def close(self) -> None:
        """End the calls that are still open: an exception left the script for which torch calls no hook."""
        while self._calls:
            self._end(self._calls.pop(), exception() or _Left())

    def _end(self, call: _Call, error: BaseException | None) -> None:
        """End the span of a call; `error` is the exception that left the call, None if it ended well."""
        if call.span is None:
            return
        self._num_open -= 1
        if error is None:
            call.span.__exit__(None, None, None)
        else:
            call.span.__exit__(type(error), error, error.__traceback__)

    def _span(self, component: str | None) -> AbstractContextManager[None] | None:
        if component is None:
            return None
        name = ".".join(part for part in component.split(".") if not part.isdigit())
        if self._num_open:
            return span(name, component=component)
        step = self._num_calls[component]
        self._num_calls[component] += 1
        return span(name, component=component, step=step)

    def _component(self, module: Module) -> str | None:
        self._credit += 1
        known = self._find(module)
        if known is None or (known.is_guess and self._may_walk()):
            if self._calls:
                self._look_again(module)
            known = self._find(module)
        if known is None:
            self._learn(module, _kind(module), is_guess=bool(self._calls))
            known = self._find(module)
        return None if known is None or not known.is_wanted else known.path

    def _find(self, module: Module) -> "_Known | None":
        known = self._known.get(id(module))
        return known if known is not None and known.module() is module else None

    def _may_walk(self) -> bool:
        return bool(self._calls) and self._credit >= self._num_walked

    def _look_again(self, module: Module) -> None:
        """Walk the outermost module to find `module`, which the registration hook missed: it was written to _modules.

        The time of a walk grows with the model, and a module that forward makes for one call is never found. So the
        next walk waits until there were as many calls as the last walk visited modules: then a call costs the same on
        average, however large the model is.
        """
        if not self._may_walk():
            return
        self._credit = 0
        self._learn(self._calls[0].module, self._path_of_outermost())
        known = self._find(module)
        if known is not None:
            known.is_guess = False

    def _path_of_outermost(self) -> str:
        outermost = self._calls[0].module
        known = self._find(outermost)
        return _kind(outermost) if known is None else known.path

    def _learn(self, top: Module, path: str, *, is_guess: bool = False) -> None:
        """Name `top` by `path`, and all modules in it by `path` and their present names in torch."""
        seen: set[int] = set()
        waiting = [(top, path)]
        while waiting:
            module, path = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            self._remember(module, path, is_guess=is_guess)
            inside = [(child, _join(path, name)) for name, child in _children(module)]
            waiting += reversed(inside)  # so that the first child comes next, as in named_modules()
        if not is_guess:
            self._num_walked = len(seen)

    def _remember(self, module: Module, path: str, *, is_guess: bool) -> None:
        key = id(module)
        gone = weakref.ref(module, lambda _: self._known.pop(key, None))
        self._known[key] = _Known(gone, path, self._is_wanted(path.split(".")), is_guess)

    def attached(self, parent: Module, name: str, module: Module | None) -> None:
        """Hook of torch: `module` becomes a child of `parent`; if `parent` has a name, `module` gets one, too."""
        try:
            around = self._find(parent)
            if around is None or not isinstance(module, Module):
                return
            known, num_walked = self._find(module), self._num_walked
            if known is None or known.is_guess or "." not in known.path:  # else it keeps its first name
                self._learn(module, _join(around.path, name), is_guess=around.is_guess)
                self._num_walked = num_walked
        except Exception as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        self._problem(f"a module could not be named: {error_line(error)}")

    def _is_wanted(self, parts: list[str]) -> bool:
        return len(parts) == 1 or any(
            _matches(parts, pattern) or _matches(parts[1:], pattern) for pattern in self._patterns
        )


def _children(module: Module) -> list[tuple[str, Module]]:
    """The child modules from torch's own _modules: a class may override named_modules() and attributes."""
    inside = vars(module).get("_modules") or {}
    return [(name, child) for name, child in inside.items() if isinstance(child, Module)]


def _join(path: str, name: str) -> str:
    return path if name in _WRAPPERS else f"{path}.{name}"


def _kind(module: Module) -> str:
    """The name of a module's class; for a wrapper the class inside it, for a ScriptModule the original class."""
    seen = [module]
    while inner := next((child for name, child in _children(module) if name in _WRAPPERS), None):
        if any(one is inner for one in seen):
            break
        seen.append(module := inner)
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    return type(module).__name__


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))
