"""Named spans, by which memory and time are reported; they cost almost nothing while nobody listens.

    with span("denoise", step=3):
        with span("dit.block", index=12):
            ...

Stages are prompt_extend, load.{t5,clip,vae,dit}, encode.{text,image,video}, denoise, decode, save and
residency.{onload,offload}; inside them dit.*, vae.* and t5.* name parts of a network, comm.* name exchanges between
ranks. The path of a span has the names of all spans around it. Spans are opened by one thread per process, the one that
runs the model.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Protocol

Attribute = int | str


class Listener(Protocol):
    """Hears every span open and close, in order, on the thread that runs the model. It must not raise."""

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        """A span begins."""

    def exit(self, name: str, failed: bool) -> None:
        """The innermost open span, called `name`, ends; `failed` when an exception leaves it."""


class _Silent:
    """What span() returns while nobody listens: one shared object, so that a span costs no allocation."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    # Three named arguments, not *exc: packing a tuple would double the cost of a silent span.
    def __exit__(self, kind: object, error: object, trace: object) -> None:
        return None


class _Heard:
    __slots__ = ("_attributes", "_listeners", "_name")

    def __init__(self, name: str, attributes: dict[str, Attribute], listeners: tuple[Listener, ...]) -> None:
        self._name = name
        self._attributes = attributes
        self._listeners = listeners

    def __enter__(self) -> None:
        heard = 0
        try:
            for listener in self._listeners:
                listener.enter(self._name, self._attributes)
                heard += 1
        except BaseException:  # a signal's handler raised in between: the block will not run
            for listener in reversed(self._listeners[:heard]):
                listener.exit(self._name, True)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The listeners that heard the span open hear it close, the last one first, even if listeners came or left
        # inside.
        for listener in reversed(self._listeners):
            listener.exit(self._name, kind is not None)


_SILENT = _Silent()
_listeners: tuple[Listener, ...] = ()


def span(name: str, **attributes: Attribute) -> AbstractContextManager[None]:
    """A context manager that marks the code inside it with `name` and `attributes`."""
    if not _listeners:
        return _SILENT
    return _Heard(name, attributes, _listeners)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Every span opened inside the block is told to `listener`."""
    global _listeners
    _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        _listeners = tuple(other for other in _listeners if other is not listener)
