"""The open spans of the model's thread: which is inside which, their attributes, and where an exception came from.

opened = OpenSpans(recorder.problem)
opened.append(opened.opened_span("dit.block", {"index": 3}, reading))
"""

from collections.abc import Callable

from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.rows import SpanRecord
from ray_memprof.recorder.spans import Attribute
from ray_memprof.store.categories import component_of, stage_of

_BLOCKS = ("dit.", "t5.", "clip.", "comm.")
"""Prefixes of spans whose index, their own or that of the span around them, numbers a transformer block."""


class OpenSpans(list[SpanRecord]):
    """The open spans, the outermost first.

    Args:
        problem: is told of an attribute that has an impossible value.
    """

    def __init__(self, problem: Callable[[str], None]) -> None:
        super().__init__()
        self._problem = problem
        self._num_spans = 0
        self._failure: tuple[str, int, Reading] | None = None
        self._failed_into = 0

    def opened_span(self, name: str, attributes: dict[str, Attribute], reading: Reading) -> SpanRecord:
        """Return a span that begins now; attributes that it lacks come from the span around it."""
        name = _plain(name)
        around = self[-1] if self else None
        self._num_spans += 1
        block = self._number(attributes, "index", around.block if around else None)
        branch = attributes.get("branch", around.branch if around else None)
        component, module = _text(attributes, "component"), _text(attributes, "module")
        return SpanRecord(
            span_id=self._num_spans,
            parent_id=around.span_id if around else 0,
            name=name,
            path=f"{around.path}/{name}" if around else name,
            stage=stage_of(name, around.stage if around else None, component, _text(attributes, "stage")),
            component=component_of(name, component, around.component if around else None),
            step=self._number(attributes, "step", around.step if around else None),
            module=module,
            block=block if module is not None or name.startswith(_BLOCKS) else None,
            branch=None if branch is None else _plain(str(branch)),
            depth=len(self),
            start=reading,
        )

    def _number(self, attributes: dict[str, Attribute], key: str, inherited: int | None) -> int | None:
        """Return an attribute that is a number; a program's own spans may have any value there."""
        value = attributes.get(key, inherited)
        if value is None:
            return None
        try:
            number = int(value)
            if -(2**31) <= number < 2**31:
                return number
        except (TypeError, ValueError, OverflowError):
            pass
        self._problem(f"the {key} of a span is no whole number of 32 bits: {value!r:.60}")
        return inherited

    def named(self, name: str) -> SpanRecord | None:
        """Return the innermost span of that name, not always the last: asyncio tasks take turns. None: it has ended."""
        name = _plain(name)
        if self and self[-1].name == name:
            return self[-1]
        return next((one for one in reversed(self) if one.name == name), None)

    def drop(self, span: SpanRecord) -> None:
        """Remove `span`, if it is still open."""
        if self and self[-1] is span:
            self.pop()
            return
        self[:] = [one for one in self if one is not span]
        for one in self:
            if one.parent_id == span.span_id:  # it goes on; its peaks now count for the span around both
                one.parent_id = span.parent_id

    def note_end(self, span: SpanRecord, reading: Reading, failed: bool) -> None:
        """Keep where an exception came from, until the span around it ends without one: then it was handled."""
        if failed:
            if self._failure is None or span.span_id != self._failed_into:
                # This is not the span around the one that failed last: the exception is a new one, and the earlier one
                # was handled.
                self._failure = (span.path, -1 if span.step is None else span.step, reading)
            self._failed_into = span.parent_id
        elif self._failure is not None and span.span_id == self._failed_into:
            self._failure = None

    def failure(self) -> tuple[str, int, int, int] | None:
        """Path and step of the innermost span that an exception left, allocated and reserved bytes then; None: none."""
        if self._failure is None:
            return None
        path, step, reading = self._failure
        return path, step, reading.allocated, reading.reserved

    def device_used_at_failure(self) -> int | None:
        """Return the device bytes in use when an exception left that span; None: no exception, or not known."""
        used = 0 if self._failure is None else self._failure[2].device_used
        return used if used > 0 else None


def _text(attributes: dict[str, Attribute], key: str) -> str | None:
    return _plain(str(attributes[key])) if key in attributes else None


def _plain(text: str) -> str:
    """A text as a file can hold it: of no class of the program's own (an enum), and without halves of characters."""
    return str.__str__(text).encode("utf-8", "replace").decode("utf-8")
