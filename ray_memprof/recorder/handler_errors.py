"""Tells exceptions that a signal's handler of the program has raised, which are the program's, from errors of ours.

    try: ...
    except Exception as error:
        pass_on(error)                    # raises it again if a handler raised it; else returns
        problems.note("...", error)

Python calls a handler on the main thread between any two instructions, so also between those of the recorder. What it
raises there (the TimeoutError of an alarm) must reach the program as if the recorder were not there. A handler's frame
is known by what no other call has: one of its arguments is the frame that it has interrupted, its caller.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_MOST_TRIES = 1000
"""How often work is begun again that a handler has interrupted: each of its signals can do that once."""


def from_handler(error: BaseException) -> BaseException | None:
    """The exception that a handler raised: `error`, or what `error` was expressly raised from; None: neither."""
    if threading.current_thread() is not threading.main_thread():
        return None  # handlers run on the main thread
    seen: set[int] = set()
    found: BaseException | None = error
    # Not __context__: that may be an earlier exception, which the program is handling.
    while found is not None and id(found) not in seen:
        if _passes_handler(found.__traceback__):
            return found
        seen.add(id(found))
        found = found.__cause__
    return None


def pass_on(error: BaseException) -> None:
    """Return, unless a handler raised `error`: then raise what it raised.

    Raises:
        BaseException: the program's own.
    """
    if (found := from_handler(error)) is not None:
        raise found


@contextmanager
def suppressed() -> Iterator[None]:
    """Ignore an Exception in the block, unless a signal's handler raised it."""
    try:
        yield
    except Exception as error:
        pass_on(error)


def surely(work: Callable[..., None], *args: Any) -> None:
    """Call `work`, however often handlers interrupt it; it must be able to begin again. Raises what was raised last."""
    last: BaseException | None = None
    try:
        for _ in range(_MOST_TRIES):
            try:
                work(*args)
                break
            except BaseException as error:
                last = error
                if isinstance(error, Exception) and from_handler(error) is None:
                    break
        if last is not None:
            raise last
    finally:
        del last  # it would keep this frame alive, and with it what the frame holds


def _passes_handler(trace: TracebackType | None) -> bool:
    """Whether a handler is among the calls of a traceback."""
    while trace is not None:
        if _is_handler(trace.tb_frame):
            return True
        trace = trace.tb_next
    return False


def _is_handler(frame: FrameType) -> bool:
    """Whether it was called with the frame that called it: so are handlers, and functions that trace a program."""
    code, caller = frame.f_code, frame.f_back
    if caller is None:
        return False
    if code in _codes():
        return True
    num = code.co_argcount + bool(code.co_flags & 0x04)  # CO_VARARGS: *args come after the named ones
    names = (
        code.co_varnames[: code.co_argcount]
        + code.co_varnames[code.co_argcount + code.co_kwonlyargcount :][: num - code.co_argcount]
    )
    here = frame.f_locals
    for name in names:
        value = here.get(name)
        if value is caller or (isinstance(value, tuple) and any(one is caller for one in value)):
            return True
    return False


def _codes() -> set[object]:
    """The code of the handlers that are installed: one may have put something else in the place of its arguments."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    functions = [getattr(one, "__func__", one) for one in handlers if callable(one)]
    return {one.__code__ for one in functions if hasattr(one, "__code__")}
