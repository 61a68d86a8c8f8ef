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
import weakref
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from ray_memprof.recorder.handler_errors import surely
from ray_memprof.store.categories import STEP

Attribute = int | str


class Listener(Protocol):
    """Hears every span open and close, in order. It must not raise of itself; a signal's handler may raise in it.

    With an attribute `num_open`, the number of its open spans, it is told of each end once even then.
    """

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        """A span begins."""

    def exit(self, name: str, failed: bool) -> None:
        """The innermost open span, called `name`, ends; `failed` when an exception leaves it."""


_listeners: tuple[Listener, ...] = ()


@dataclass(slots=True)
class _Heard:
    """A listener that has heard a span open."""

    listener: Listener
    before: int
    """Its open spans before."""
    closing: int = -1
    """Its open spans when it is told of the end."""


class _Opened:
    """What must be closed when a span ends; begun again as often as a handler interrupts it."""

    __slots__ = ("heard", "is_open", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[_Heard] = []
        """Those who hear the span open hear it close, even if listeners come or leave inside."""
        self.is_open = False
        """Between the end of __enter__ and the beginning of __exit__."""

    def open(self, attributes: dict[str, Attribute]) -> None:
        """Tell all listeners."""
        for listener in _listeners:
            self.heard.append(_Heard(listener, _num_open(listener)))
            listener.enter(self.name, attributes)

    def take_back(self) -> None:
        """The block will not run: whoever has opened the span closes it; the last one told may not have."""
        while self.heard and _num_open(self.heard[-1].listener) == self.heard[-1].before:
            del self.heard[-1]
        self.close(True)

    def close(self, failed: bool) -> None:
        """Tell the listeners, the last first, that the span ends; each is told once."""
        self.is_open = False
        while self.heard:
            one = self.heard[-1]
            if one.closing < 0:
                one.closing = _num_open(one.listener)
            if _num_open(one.listener) == one.closing:
                one.listener.exit(self.name, failed)
            del self.heard[-1]


def _num_open(listener: Listener) -> int:
    """How many spans are open for a listener; 0 where it does not tell."""
    return getattr(listener, "num_open", 0)


class Span(ContextDecorator):
    """What span() returns: a context manager that is used once, or a decorator that opens a span at each call.

    A signal's handler may raise anywhere in here, and in the listeners. Then each of them is told what it was not told
    yet, before the exception goes on to the program.
    """

    __slots__ = ("_attributes", "_name", "_opened", "_step")

    def __init__(self, name: str, attributes: dict[str, Attribute]) -> None:
        self._name, self._attributes = name, attributes
        self._opened = _Opened(name)
        self._step: Span | None = None

    def _recreate_cm(self) -> "Span":
        # contextlib calls this for each call of a decorated function, which may call itself.
        return Span(self._name, self._attributes)

    def __enter__(self) -> None:
        opened, self._step = self._opened, _steps.open_here()
        if not _listeners:
            return
        try:
            _forgotten.end()
            _forgotten.note(self, opened)
            opened.open(self._attributes)
            opened.is_open = True
        except BaseException:
            surely(opened.take_back)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = kind is not None
        try:
            step = _steps.open_here()
            if step is not self._step and step is not self:
                _steps.end()  # it was opened inside this span
            self._close(trace, failed)
        except BaseException:
            surely(self._close, trace, failed)
            raise

    def _close(self, trace: TracebackType | None, failed: bool) -> None:
        if self._opened.heard:
            _forgotten.end(trace, self)
            self._opened.close(failed)


class _Forgotten:
    """Spans that nobody will end: a handler has raised in __enter__ or __exit__, outside of what is tried again."""

    def __init__(self) -> None:
        self._spans: list[tuple[weakref.ref[Span], _Opened]] = []
        """Those that the main thread has opened, where handlers run; ended ones only below others."""

    def note(self, one: Span, opened: _Opened) -> None:
        """A span opens."""
        if threading.current_thread() is threading.main_thread():
            self._spans.append((weakref.ref(one), opened))

    def end(self, trace: TracebackType | None = None, around: Span | None = None) -> None:
        """End those at the end of the list.

        Args:
            trace: of the exception that leaves the span `around`; None: there is none.
            around: the span that ends now.
        """
        while self._spans and threading.current_thread() is threading.main_thread():
            ref, opened = self._spans[-1]
            one = ref()
            if around is not None and one is around:
                return
            if opened.is_open and one is not None and not _has_left(trace, one):
                return
            opened.close(True)
            del self._spans[-1]


def _has_left(trace: TracebackType | None, one: Span) -> bool:
    """Whether an exception has left the __exit__ of a span, which is alive in its traceback."""
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code is Span.__exit__.__code__ and frame.f_locals.get("self") is one:
            return True
    return False


_forgotten = _Forgotten()


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

    @property
    def num_open(self) -> int:
        """How many of its spans are open."""
        return len(self._open)

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        """A span begins."""
        one = Span(name, attributes)
        one.__enter__()
        try:
            self._open.append((name, one))
        except BaseException:  # of a signal's handler: the block will not run
            surely(self.exit, name, True)
            raise

    def exit(self, name: str, failed: bool) -> None:
        """The innermost open span of that name ends."""
        number = next((at for at in reversed(range(len(self._open))) if self._open[at][0] == name), None)
        if number is not None:
            _, one = self._open.pop(number)
            one.__exit__(*((RuntimeError, None, None) if failed else (None, None, None)))
