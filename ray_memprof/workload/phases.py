"""Spans for what a program does beside calling modules: moving them, backward, optimizers, encode and decode.

    with naming_phases(names, spans, owners, problem):
        model.to("cuda")          # span("load.dit"), later span("residency.onload"), span("residency.offload")
        loss.backward()           # span("backward")
        optimizer.step()          # span("optimizer")
        vae.decode(latents)       # span("vae.decode"): a method of a module that works through the modules inside it

Some functions and methods of torch, and methods called encode, decode and generate of the program's own modules, are
replaced inside the block by ones that open a span and call the original. Only what runs on the thread that enters the
block gets a span.
"""

import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ray_memprof.recorder.handler_errors import pass_on
from ray_memprof.recorder.replacements import Replacements
from ray_memprof.recorder.spans import Attribute, Span, span
from ray_memprof.recorder.stacks import hide_frames
from ray_memprof.store.categories import stage_of_call
from ray_memprof.wording import error_line
from ray_memprof.workload.module_names import ModuleNames
from ray_memprof.workload.module_spans import ModuleSpans

hide_frames(__file__)
_MOVES = ("to", "cuda", "cpu", "to_empty")
_METHODS = ("encode", "decode", "generate")


class PhaseListener:
    """Is told of what phases change; the methods do nothing here."""

    def moved(self, module: Module) -> None:
        """The parameters of a module are on another device now."""

    def backward_begins(self) -> None:
        """A backward begins: gradients that are there were kept from an earlier one."""

    def optimizer_steps(self, optimizer: Optimizer) -> None:
        """An optimizer begins a step: the gradients are whole."""

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """An optimizer has made a step: it has its state."""


@contextmanager
def naming_phases(
    names: ModuleNames, spans: ModuleSpans, listener: PhaseListener, problem: Callable[[str], None]
) -> Iterator["Phases"]:
    """Open spans for the phases of a program inside the block.

    Args:
        names: of the program's modules.
        spans: of the calls of modules; its training step is told when one is over.
        listener: is told of moves and steps, on any thread.
        problem: called with a message if something could not be named; no error is raised into the program.
    """
    phases = Phases(names, spans, listener, problem)
    phases.replace(torch.autograd, "backward", phases.backward)
    phases.replace(torch.autograd, "grad", phases.backward)
    for name in _MOVES:
        phases.replace(Module, name, phases.move)
    phases.replace(Module, "_apply", phases.apply)
    hooks = [
        register_optimizer_step_pre_hook(phases.before_step),
        register_optimizer_step_post_hook(phases.after_step),
        register_module_module_registration_hook(phases.attached),
    ]
    try:
        yield phases
    finally:
        for hook in hooks:
            hook.remove()
        phases.close()


class Phases:
    """What is put in place of functions and methods, and the spans that are open."""

    def __init__(
        self,
        names: ModuleNames,
        spans: ModuleSpans,
        listener: PhaseListener,
        problem: Callable[[str], None],
    ) -> None:
        self._names, self._spans, self._listener, self._problem = names, spans, listener, problem
        self._step = spans.training_step
        self._thread = threading.get_ident()
        self._replaced = Replacements()
        self._seen: weakref.WeakSet[type] = weakref.WeakSet()
        self._watched: set[tuple[int, str]] = set()
        self._is_in_method = self._is_applying = False
        self._is_moving = self._is_in_backward = False
        self._has_come: set[str] = set()
        """Components that were moved to a device before."""
        self._steps: list[tuple[Optimizer, Span, FrameType]] = []
        """Optimizers that make a step, with their spans, and the frame that makes the step."""

    def _hears(self) -> bool:
        return threading.get_ident() == self._thread and not _is_traced()

    def replace(self, owner: Any, name: str, make: Callable[[Any, str], Any]) -> None:
        """Put make(original, name) in place of an attribute, until close()."""
        self._replaced.put(owner, name, make(getattr(owner, name), name))

    def close(self) -> None:
        """Put everything back; where other code still calls ours, it only calls on."""
        self._replaced.take_back()
        self._thread = 0
        while self._steps:
            self._steps.pop()[1].__exit__(None, None, None)

    def _noted(self, work: Callable[[], Any]) -> Any:
        """Call what must not raise into the program; None where it fails."""
        try:
            return work()
        except Exception as error:
            pass_on(error)
            self._problem(f"a phase could not be named: {error_line(error)}")
            return None

    def backward(self, original: Any, name: str) -> Any:
        """torch.autograd.backward and grad, with a span."""
        phases = self

        @functools.wraps(original)
        def backward(*args: Any, **kwargs: Any) -> Any:
            # First of all: code that torch.compile looks at may not ask for the thread.
            if torch.compiler.is_compiling() or phases._is_in_backward or not phases._hears():
                return original(*args, **kwargs)
            phases.end_failed_steps()
            try:
                phases._step.has_begun = phases._is_in_backward = True
                phases._noted(phases._listener.backward_begins)
                with span("backward", stage="backward", **phases._step.attributes()):
                    return original(*args, **kwargs)
            finally:
                phases._is_in_backward = False

        return backward

    def move(self, original: Any, name: str) -> Any:
        """Module.to and the like: a span where the module changes its device."""
        phases = self

        @functools.wraps(original)
        def move(module: Module, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or phases._is_moving or not phases._hears():
                return original(module, *args, **kwargs)
            opened = phases._noted(lambda: phases._span_of_move(module, name, args, kwargs))
            try:
                phases._is_moving = True
                if opened is None:
                    return original(module, *args, **kwargs)
                with opened:
                    return original(module, *args, **kwargs)
            finally:
                phases._is_moving = False

        return move

    def apply(self, original: Any, name: str) -> Any:
        """Module._apply, through which parameters and buffers get another device or dtype: they are found anew."""
        phases = self

        @functools.wraps(original)
        def _apply(module: Module, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or phases._is_applying or not phases._hears():
                return original(module, *args, **kwargs)
            try:
                phases._is_applying = True
                return original(module, *args, **kwargs)
            finally:
                phases._is_applying = False
                phases._noted(lambda: phases._listener.moved(module))

        return _apply

    def _span_of_move(
        self, module: Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Span | None:
        """The span for a move to another device; None: the module stays where it is."""
        device = _target(name, args, kwargs)
        first = next(module.parameters(), None) if device is not None else None
        if first is None or device is None or first.device.type == device.type:
            return None
        known = self._names.named(module)
        if known is None:
            return None
        component = known.component
        if device.type in ("cpu", "meta"):
            return None if first.device.type == "meta" else span("residency.offload", component=component)
        if component in self._has_come:
            return span("residency.onload", component=component)
        self._has_come.add(component)
        return span(f"load.{component}", component=component)

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Hook of torch: an optimizer begins its step."""
        if _is_traced():
            return
        self._noted(lambda: self._listener.optimizer_steps(optimizer))
        if self._hears():
            self.end_failed_steps()
            opened = span("optimizer", stage="optimizer", **self._step.attributes(begins=False))
            frame = sys._getframe(1)
            opened.__enter__()
            # A handler may raise after this call: end_failed_steps() ends the span then.
            self._steps.append((optimizer, opened, frame))

    def after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Hook of torch: an optimizer has made its step."""
        if _is_traced():
            return
        self._noted(lambda: self._listener.optimizer_stepped(optimizer))
        if self._hears() and any(one is optimizer for one, *_ in self._steps):
            while self._steps:  # those above it have raised: torch calls no hook for them
                one, opened, _ = self._steps.pop()
                opened.__exit__(*((None,) * 3 if one is optimizer else (RuntimeError, None, None)))
                if one is optimizer:
                    break
            if not self._steps:
                self._step.end()

    def end_failed_steps(self) -> None:
        """End the spans of optimizers whose step was left by an exception: torch calls no hook for them."""
        if not self._steps:
            return
        running, frame = set[int](), sys._getframe()
        while frame is not None:
            running.add(id(frame))
            frame = frame.f_back  # type: ignore[assignment]
        while self._steps and id(self._steps[-1][2]) not in running:
            self._steps.pop()[1].__exit__(RuntimeError, None, None)

    def attached(self, parent: Module, key: str, module: Module | None) -> None:
        """Hook of torch: a module with modules inside it may work through a method of its own."""
        kind = type(parent)
        if kind in self._seen or isinstance(parent, torch.jit.ScriptModule):
            return
        self._seen.add(kind)
        self._noted(lambda: self._watch_methods(kind))

    def _watch_methods(self, kind: type) -> None:
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] == "torch" or base is object:
                continue
            for name in _METHODS:
                if (id(base), name) not in self._watched and _is_plain(vars(base).get(name)):
                    self._watched.add((id(base), name))
                    self.replace(base, name, self.method)

    def method(self, original: Any, name: str) -> Any:
        """A method of a module: a span, unless a call of a module or of such a method goes on already."""
        phases = self

        @functools.wraps(original)
        def method(module: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or phases._is_in_method or not phases._hears():
                return original(module, *args, **kwargs)
            opened = None
            if isinstance(module, Module) and not phases._spans.is_inside:
                opened = phases._noted(lambda: phases._span_of_method(module, name))
            if opened is None:
                return original(module, *args, **kwargs)
            try:
                phases._is_in_method = True
                with opened:
                    return original(module, *args, **kwargs)
            finally:
                phases._is_in_method = False

        return method

    def _span_of_method(self, module: Module, name: str) -> Span | None:
        known = self._names.named(module)
        if known is None:
            return None
        title = ".".join(part for part in known.title.split(".") if not part.isdigit())
        attributes: dict[str, Attribute] = {"component": known.component, "module": known.path}
        return span(f"{title}.{name}", **attributes, stage=stage_of_call(known.component, f"{title}.{name}"))


def _is_plain(method: Any) -> bool:
    """Whether it is a plain method.

    Of a static one, ours would get the module as an argument too many; those that give a coroutine or a generator do
    their work after they have returned.
    """
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return inspect.isfunction(method) and not any(is_kind(method) for is_kind in kinds)


def _is_traced() -> bool:
    """Whether torch.compile looks at the code, which then runs on tensors without memory, or not at all."""
    return torch.compiler.is_compiling() or torch._guards.TracingContext.try_get() is not None


def _target(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device that a call of Module.to and the like asks for; None: none, or torch will refuse the arguments."""
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda":
        return torch.device("cuda")
    try:
        if name == "to_empty":
            found = kwargs["device"] if "device" in kwargs else args[0]
            return None if found is None else torch.device(found)
        device: torch.device | None = torch._C._nn._parse_to(*args, **kwargs)[0]
        return device
    except Exception as error:
        pass_on(error)
        return None
