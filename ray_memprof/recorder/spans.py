"""Named spans, by which memory and time are reported; they cost almost nothing while nobody records.

    import ray_memprof

    for batch in batches:
        ray_memprof.step()                       # the next step begins: 0, 1, 2 ...
        with ray_memprof.span("forward"):
            ...

A program may open spans on the thread that is recorded, which is its main thread; spans of other threads are not
recorded. The path of a span has the names of all spans around it. Needs no torch.
"""

import threading
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from types import TracebackType
from typing import Protocol

from ray_memprof.store.categories import STEP

Attribute = int | str


class Listener(Protocol):
    """Hears every span open and close, in order. It must not raise."""

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        """A span begins."""

    def exit(self, name: str, failed: bool) -> None:
        """The innermost open span, called `name`, ends; `failed` when an exception leaves it."""


_listeners: tuple[Listener, ...] = ()


class Span(ContextDecorator):
    """What span() returns: a context manager that is used once, or a decorator that opens a span at each call."""

    __slots__ = ("_attributes", "_heard", "_name", "_step")

    def __init__(self, name: str, attributes: dict[str, Attribute]) -> None:
        self._name, self._attributes = name, attributes
        self._heard: tuple[Listener, ...] = ()
        self._step: Span | None = None

    def _recreate_cm(self) -> "Span":
        # contextlib calls this for each call of a decorated function, which may call itself.
        return Span(self._name, self._attributes)

    def __enter__(self) -> None:
        # Those who hear the span open hear it close, even if listeners come or leave inside.
        self._heard = _listeners
        self._step = _steps.open_here()
        for listener in self._heard:
            listener.enter(self._name, self._attributes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        step = _steps.open_here()
        if step is not self._step and step is not self:
            _steps.end()  # it was opened inside this span
        for listener in reversed(self._heard):
            listener.exit(self._name, kind is not None)


def span(name: str, **attributes: Attribute) -> Span:
    """Mark the code inside a block, or a function, with a name.

    Args:
        name: of the span, such as "forward"; the same at every call.
        attributes: `step` is the number of a step, `component` the network whose memory this is, `index` the number of
            a block of it: spans inside inherit these. `stage` is the stage that begins with it, `module` the path of a
            module that is called.
    """
    return Span(name, attributes)


class _Steps:
    """The steps of the program: each ends when the next begins."""

    def __init__(self) -> None:
        self.number = 0
        self._open: Span | None = None
        self._thread = 0

    def open_here(self) -> Span | None:
        """The step that this thread has opened, if any."""
        return self._open if self._thread == threading.get_ident() else None

    def begin(self) -> None:
        self.end()
        one = Span(STEP, {STEP: self.number})
        one.__enter__()
        self._open, self._thread = one, threading.get_ident()
        self.number += 1

    def end(self) -> None:
        last, self._open = self._open, None
        if last is not None:
            last.__exit__(None, None, None)


_steps = _Steps()


def step() -> None:
    """Begin the next step: a span "step" that ends when the next one begins, or with the span around it.

    Steps are numbered from 0 in each recording. Where a step has a block of its own, span("step", step=number) does
    the same and ends with the block.
    """
    if _listeners:
        _steps.begin()


def in_step() -> bool:
    """Whether this thread is inside a step that step() has begun."""
    return _steps.open_here() is not None


def end_step() -> None:
    """End the step that is open, if there is one: what follows belongs to no step."""
    _steps.end()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every span that is opened inside the block."""
    global _listeners
    _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        _listeners = tuple(other for other in _listeners if other is not listener)


@contextmanager
def counting_steps() -> Iterator[None]:
    """Number the steps inside the block from 0, and end the last one with it."""
    _steps.number = 0
    try:
        yield
    finally:
        end_step()


class Relay:
    """A listener that opens the spans that it hears of as spans of this module.

    with wan.spans.listening(Relay()): ...           # so that a package with spans of its own is recorded
    """

    def __init__(self) -> None:
        self._open: list[tuple[str, Span]] = []

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        """A span begins."""
        one = Span(name, attributes)
        one.__enter__()
        self._open.append((name, one))

    def exit(self, name: str, failed: bool) -> None:
        """The innermost open span of that name ends."""
        number = next((at for at in reversed(range(len(self._open))) if self._open[at][0] == name), None)
        if number is not None:
            _, one = self._open.pop(number)
            one.__exit__(*((RuntimeError, None, None) if failed else (None, None, None)))
