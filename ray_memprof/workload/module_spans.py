"""Spans of a script that opens none: forward hooks on torch.nn.Module name what runs, without a change to the script.

    with naming_modules(("blocks.*", "head")):
        ...                          # span("WanModel.blocks", component="WanModel.blocks.7") around a call of a block

The module called while no other is running is the outermost one; it goes by the name of its class, and a module inside
it by that name and its path in named_modules(). Outermost modules always have a span. A pattern adds modules inside
them: it is compared with the path, with or without the class, part by part as fnmatch does: "blocks.*" is every block,
"blocks.*.attn" every block's attention. A span is called as its component without the numbers: blocks share one name.

A script has no denoise loop that we know of. So the outermost of our spans carries `step`: how many calls of the same
component came before it. A DiT that is called twice a step (with and without the prompt) counts two a step.

A call of any module costs 2.5 us more while this listens, one that is named 3.5 us and what the listeners take.
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

from wan.spans import span

# torch's wrappers put themselves into the paths of what they wrap.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


# Raised by torch.utils.checkpoint in the middle of a module once all that backward needs was computed anew.
_RECOMPUTED = "_StopRecomputationError"


class _Left(BaseException):
    """Stands for what left a module and was caught before we came to know."""


def _unheard(text: str) -> None:
    """Where nobody asks for problems."""


@contextmanager
def naming_modules(patterns: Sequence[str], problem: Callable[[str], None] = _unheard) -> Iterator[None]:
    """Every call of a module that `patterns` match, made on this thread inside the block, is a span.

    Args:
        patterns: see above.
        problem: is told where a call could not be named; nothing is raised into the model.
    """
    spans = ModuleSpans(patterns, problem)
    attached = register_module_module_registration_hook(spans.attached)
    before = register_module_forward_pre_hook(spans.before)
    # Without always_call, a module that raises would stay open for ever.
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
    """What an except block around the call was already handling: no sign that the call itself failed."""


@dataclass(slots=True)
class _Known:
    """A module that has a name."""

    module: "weakref.ref[Module]"
    path: str
    is_wanted: bool
    is_guess: bool
    """It was found inside no other: by the next walk it may be."""


class ModuleSpans:
    """The two hooks, and the calls that are open between them."""

    def __init__(self, patterns: Sequence[str], problem: Callable[[str], None] = _unheard) -> None:
        self._patterns = [pattern.split(".") for pattern in patterns]
        self._thread = threading.get_ident()
        self._calls: list[_Call] = []
        self._num_open = 0
        self._num_calls: Counter[str] = Counter()
        # By id: a class may be equal to anything, or have no hash. Weak: a model that the script drops is gone.
        self._known: dict[int, _Known] = {}
        self._credit = self._num_walked = 0
        self._problem = problem

    def before(self, module: Module, args: Any) -> None:
        """Forward pre-hook: `module` is called."""
        # Compiled code has no places between modules, and a hook traced into it would break its graph. Spans belong
        # to one thread: backward recomputes checkpointed modules on another.
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        try:
            self._begin(module)
        except Exception as error:  # a class may do anything in what every object has
            self._note(error)

    def _begin(self, module: Module) -> None:
        component = self._component(module)
        around = self._calls[-1] if self._calls else None
        # A wrapper and what it wraps have one name, and one span: that of the wrapper.
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
        # torch calls no hook for what is no Exception (SystemExit, KeyboardInterrupt): such calls still lie above.
        while len(self._calls) > depth + 1:
            self._end(self._calls.pop(), error or _Left())
        call = self._calls.pop()
        is_over = error is call.handled or type(error).__name__ == _RECOMPUTED
        self._end(call, None if is_over else error)

    def close(self) -> None:
        """End what is open: the script was left by something that torch calls no hook for."""
        while self._calls:
            self._end(self._calls.pop(), exception() or _Left())

    def _end(self, call: _Call, error: BaseException | None) -> None:
        """`error`: what left the call; None: it ended well."""
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
        """Find `module` inside the outermost one, where it was put past torch's own ways: by writing to _modules.

        A walk takes as long as the model is large, and a module that forward makes for one call is nowhere in it. So
        another walk is made once as many calls have gone by as the last one visited modules, and each costs the same.
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
        """Name `top` by `path`, and all in it by what torch calls them, as it is now."""
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
        """Hook of torch: `module` becomes a child of `parent`; where that is known, it has a place from now on."""
        try:
            around = self._find(parent)
            if around is None or not isinstance(module, Module):
                return
            known, num_walked = self._find(module), self._num_walked
            if known is None or known.is_guess or "." not in known.path:  # else it stays what it was first
                self._learn(module, _join(around.path, name), is_guess=around.is_guess)
                self._num_walked = num_walked
        except Exception as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        text = str(error).partition("\n")[0]
        self._problem(f"a module could not be named: {type(error).__name__}: {text}")

    def _is_wanted(self, parts: list[str]) -> bool:
        return len(parts) == 1 or any(
            _matches(parts, pattern) or _matches(parts[1:], pattern) for pattern in self._patterns
        )


def _children(module: Module) -> list[tuple[str, Module]]:
    """As torch keeps them: named_modules() and attributes may be a program's own."""
    inside = vars(module).get("_modules") or {}
    return [(name, child) for name, child in inside.items() if isinstance(child, Module)]


def _join(path: str, name: str) -> str:
    return path if name in _WRAPPERS else f"{path}.{name}"


def _kind(module: Module) -> str:
    """Name of the class; of a wrapper's that of what it wraps, of a compiled script's that of what it was made from."""
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
