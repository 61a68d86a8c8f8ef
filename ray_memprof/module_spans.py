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
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from sys import exception
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from wan.spans import span

# torch's wrappers put themselves into the paths of what they wrap.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


# Raised by torch.utils.checkpoint in the middle of a module once all that backward needs was computed anew.
_RECOMPUTED = "_StopRecomputationError"


class _Left(BaseException):
    """Stands for what left a module and was caught before we came to know."""


@contextmanager
def naming_modules(patterns: Sequence[str]) -> Iterator[None]:
    """Every call of a module that `patterns` match, made on this thread inside the block, is a span."""
    spans = ModuleSpans(patterns)
    before = register_module_forward_pre_hook(spans.before)
    # Without always_call, a module that raises would stay open for ever.
    after = register_module_forward_hook(spans.after, always_call=True)
    try:
        yield
    finally:
        after.remove()
        before.remove()
        spans.close()


@dataclass(slots=True)
class _Call:
    """A module that is running."""

    module: Module
    component: str | None
    span: AbstractContextManager[None] | None
    handled: BaseException | None
    """What an except block around the call was already handling: no sign that the call itself failed."""


class ModuleSpans:
    """The two hooks, and the calls that are open between them."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [pattern.split(".") for pattern in patterns]
        self._thread = threading.get_ident()
        self._calls: list[_Call] = []
        self._num_open = 0
        self._num_calls: Counter[str] = Counter()
        # Weak, so that a model that the script drops is gone; None: known, and not to be named.
        self._components: WeakKeyDictionary[Module, str | None] = WeakKeyDictionary()

    def before(self, module: Module, args: Any) -> None:
        """Forward pre-hook: `module` is called."""
        # Compiled code has no places between modules, and a hook traced into it would break its graph. Spans belong
        # to one thread: backward recomputes checkpointed modules on another.
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
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
        try:
            # One look-up in the usual case: this runs at every call of a module.
            return self._components[module]
        except KeyError:
            pass
        if self._calls:
            # `module` was put in after the first call of the outermost one, or is no child of it at all.
            self._learn(self._calls[0].module)
        if module not in self._components:
            self._learn(module)
        return self._components[module]

    def _learn(self, outermost: Module) -> None:
        """Name `outermost` and all in it, as it is now."""
        kind = type(_unwrapped(outermost)).__name__
        for path, module in outermost.named_modules():
            parts = [kind, *(part for part in path.split(".") if part and part not in _WRAPPERS)]
            self._components[module] = ".".join(parts) if self._is_wanted(parts) else None

    def _is_wanted(self, parts: list[str]) -> bool:
        return len(parts) == 1 or any(
            _matches(parts, pattern) or _matches(parts[1:], pattern) for pattern in self._patterns
        )


def _unwrapped(module: Module) -> Module:
    while inner := next((getattr(module, name) for name in _WRAPPERS if hasattr(module, name)), None):
        module = inner
    return module


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))
