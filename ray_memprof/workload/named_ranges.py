"""Spans for the ranges that a program has named for other tools: NVTX ranges, and torch.profiler.record_function.

    with naming_ranges(("nvtx", "record_function")):
        ...         # torch.cuda.nvtx.range("forward") opens a span "forward", and so does record_function("forward")

torch names parts of its own with record_function: "Optimizer.step#AdamW.step" and "enumerate(DataLoader)#..." become
spans, too. A range is a span on the thread that entered the block; ranges of other threads, range_start and range_end
(which may end on another thread) and ranges inside a graph that torch.compile traces are not. A slash in a name becomes
a point, since slashes separate the names in a span's path. A range costs 2 us more, plus the time of the listeners.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.profiler import record_function
from torch.cuda import nvtx

from ray_memprof.recorder.handler_errors import pass_on, surely
from ray_memprof.recorder.problems import unheard
from ray_memprof.recorder.replacements import Replacements
from ray_memprof.recorder.spans import Span, span
from ray_memprof.wording import error_line


@contextmanager
def naming_ranges(kinds: Sequence[str], problem: Callable[[str], None] = unheard) -> Iterator[None]:
    """Inside the block, open a span for each range of this thread.

    Args:
        kinds: nvtx, record_function or both; none: nothing is done.
        problem: called with a message if a range could not be heard; no error is raised into the program.
    """
    if not kinds:
        yield
        return
    ranges, replaced = NamedRanges(problem), Replacements()
    if "nvtx" in kinds:
        replaced.put(nvtx, "range_push", ranges.around_push(nvtx.range_push))
        replaced.put(nvtx, "range_pop", ranges.around_pop(nvtx.range_pop))
    if "record_function" in kinds:
        replaced.put(record_function, "__enter__", ranges.around_enter(record_function.__enter__))
        replaced.put(record_function, "__exit__", ranges.around_exit(record_function.__exit__))
    try:
        yield
    finally:
        replaced.take_back()
        ranges.close()


_NVTX, _GONE = object(), None


def _reference(label: object) -> Callable[[], object]:
    """What returns the label, or _GONE once nobody else has it."""
    try:
        return weakref.ref(label)
    except TypeError:  # NVTX; a class of the program's own may not allow it
        return lambda: label


class NamedRanges:
    """The ranges that are open, and the functions that open and end them."""

    def __init__(self, problem: Callable[[str], None] = unheard) -> None:
        self._thread, self._problem = threading.get_ident(), problem
        self._open: list[tuple[Callable[[], object], Span]] = []
        """With each span a reference to the record_function that opened it, or to NVTX."""
        self._is_closed = False

    def around_push(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap torch.cuda.nvtx.range_push."""

        @functools.wraps(original)
        def range_push(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)  # raises where torch has no NVTX: then there is no range
            if self._hears():
                self._begin(_NVTX, kwargs["msg"] if "msg" in kwargs else args[0])
            return result

        return range_push

    def around_pop(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap torch.cuda.nvtx.range_pop."""

        @functools.wraps(original)
        def range_pop(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                self._leave(_NVTX)

        return range_pop

    def around_enter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap record_function.__enter__."""

        @functools.wraps(original)
        def enter(label: Any) -> Any:
            result = original(label)
            if self._hears():
                self._begin(label, label.name)
            return result

        return enter

    def around_exit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap record_function.__exit__."""

        @functools.wraps(original)
        def leave(label: Any, kind: Any = None, error: Any = None, trace: Any = None) -> Any:
            try:
                return original(label, kind, error, trace)
            finally:
                self._leave(label, kind)

        return leave

    def _hears(self) -> bool:
        # Compiled code has no boundaries between ranges, and a span traced into it would break its graph.
        if torch.compiler.is_compiling() or self._is_closed:
            return False
        return threading.get_ident() == self._thread

    def _begin(self, label: object, name: object) -> None:
        try:
            one = span(str(name).replace("/", ".") or "range")
        except Exception as error:  # a name may be any object, whose text raises
            pass_on(error)
            self._problem(f"a range could not be named: {error_line(error)}")
            return
        self._end_left()
        one.__enter__()
        try:
            self._open.append((_reference(label), one))
        except BaseException as error:  # of a signal's handler: the range's block will not run
            surely(self._end, label, type(error))
            raise

    def _leave(self, label: object, kind: Any = None) -> None:
        """End a range once, wherever a signal's handler raises meanwhile."""
        num_before = None
        try:
            if self._hears():
                num_before = len(self._open)
                self._end(label, kind)
        except BaseException:
            if num_before is not None:
                surely(self._end_one_of, num_before, label, kind)
            raise

    def _end_one_of(self, num: int, label: object, kind: Any) -> None:
        if len(self._open) == num:
            self._end(label, kind)

    def _end(self, label: object, kind: Any = None) -> None:
        """End the innermost range of that label; none is open where it began before the recording."""
        for at in range(len(self._open) - 1, -1, -1):
            if self._open[at][0]() is label:
                try:
                    self._open[at][1].__exit__(kind, None, None)
                finally:
                    del self._open[at]
                return

    def _end_left(self) -> None:
        """End ranges whose block has been left without a word: a signal's handler has raised before leave() began.

        Their record_function is gone then. The innermost ones come first; an NVTX range lasts until it is popped.
        """
        while self._open and self._open[-1][0]() is _GONE:
            self._open[-1][1].__exit__(RuntimeError, None, None)
            del self._open[-1]

    def close(self) -> None:
        """End the ranges that are still open; later ones are not heard."""
        self._is_closed = True
        while self._open:
            _, one = self._open.pop()
            one.__exit__(None, None, None)
