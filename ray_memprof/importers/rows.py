"""Follows the events of a rank and writes its rows: allocs with block sizes, spans with exact peaks, stacks once.

    rows = Rows(run_dir, rank, nested=False)
    rows.replay.prime(segments_at_start)
    written = rows.write(spool.chunks(), stacks)

Leaves tables/{allocs,spans,stacks}/rank=N/.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from ray_memprof.categories import category_of, component_of
from ray_memprof.importers.pickle_stream import Frame
from ray_memprof.replay import BlockReplay, Columns, Peaks
from ray_memprof.store import RankStore

NO_TEXT = "imported"
"""Name of a stretch of events that carry none."""
SPAN_ROWS = 4096
Chunk = tuple[list[str], list[dict[str, Any]]]
"""Texts of events, and the events."""


@dataclass(slots=True)
class Written:
    """What was written of a rank."""

    num_events: int
    start_ns: int
    end_ns: int
    allocated_peak: int
    reserved_peak: int
    max_error_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Level:
    """The counters of a moment."""

    t_ns: int
    allocated: int
    reserved: int
    active: int
    num_allocs: int
    num_segments: int


@dataclass(slots=True)
class _Span:
    span_id: int
    name: str
    path: str
    start: _Level
    component: str | None
    peaks: Peaks = field(default_factory=Peaks)


class Rows:
    """Of one rank.

    Args:
        run_dir: where its tables go.
        rank: whose they are.
        named: whether the texts of events name spans at all.
        nested: whether the texts are paths of spans, by slashes.
    """

    def __init__(self, run_dir: Path, rank: int, *, named: bool = True, nested: bool) -> None:
        self.replay = BlockReplay(
            category_of=lambda span_id: self._category, stack_of=lambda event: event["stack"]
        )
        """To be primed with what was held at the beginning."""
        self._store, self._named, self._nested = RankStore(run_dir, rank), named, nested
        self._category = category_of(NO_TEXT)
        self._open: list[_Span] = []
        self._ended: list[dict[str, Any]] = []
        self._num_spans = self._num_segments = 0
        self._now_ns = 0

    def write(self, chunks: Iterable[Chunk], stacks: Mapping[tuple[Frame, ...], int]) -> Written:
        """Write all; the store is closed then."""
        start_ns = -1
        for texts, events in chunks:
            columns, at = Columns(), 0
            for text, stretch in groupby(texts if self._named else [""] * len(texts)):
                num = sum(1 for _ in stretch)
                self._follow(text, events[at : at + num], columns)
                at += num
            start_ns = columns.t_ns[0] if start_ns < 0 else start_ns
            self._store.append("allocs", {name: getattr(columns, name) for name in Columns.__slots__})
        self._close(0)
        self._flush()
        for rows in _stack_rows(stacks):
            self._store.append("stacks", rows)
        self._store.close()
        replay = self.replay
        return Written(replay.num_events, start_ns, self._now_ns, replay.allocated_peak, replay.reserved_peak)

    def _follow(self, text: str, events: list[dict[str, Any]], columns: Columns) -> None:
        """Events that carry the same text."""
        stamp = self._turn(text.split("/") if text and self._nested else [text or NO_TEXT], events[0])
        for event in events:
            event["user_metadata"] = stamp
        followed = self.replay.feed(events)
        for name in Columns.__slots__:
            getattr(columns, name).extend(getattr(followed, name))
        self._num_segments += sum(action in ("segment_alloc", "segment_map") for action in followed.action)
        self._now_ns = followed.t_ns[-1]

    def _turn(self, names: list[str], event: dict[str, Any]) -> str:
        """Leave the spans that are over, enter those that begin; the innermost one as a stamp of events."""
        common = 0
        while common < min(len(self._open), len(names)) and self._open[common].name == names[common]:
            common += 1
        self._close(common)
        self._now_ns = event["time_us"] * 1000
        for name in names[common:]:
            self._enter(name)
        innermost = self._open[-1]
        self._category = category_of(innermost.name)
        return str(innermost.span_id)

    def _enter(self, name: str) -> None:
        around = self._open[-1] if self._open else None
        self._num_spans += 1
        path = f"{around.path}/{name}" if around else name
        component = component_of(name, None, around.component if around else None) if self._nested else None
        self._open.append(_Span(self._num_spans, name, path, self._level(), component))

    def _level(self) -> _Level:
        replay = self.replay
        return _Level(
            self._now_ns,
            replay.allocated,
            replay.reserved,
            replay.active,
            replay.num_allocs,
            self._num_segments,
        )

    def _close(self, depth: int) -> None:
        """End the spans that are this deep and deeper, now; their peaks go on to the one around them."""
        end = self._level()
        while len(self._open) > depth:
            span = self._open.pop()
            for level in (span.start, end):
                span.peaks.fold(level.allocated, level.reserved, level.active)
            inside = self.replay.peaks.pop(span.span_id, None)
            if inside is not None:
                span.peaks.fold(inside.allocated, inside.reserved, inside.active)
            if self._open:
                self._open[-1].peaks.fold(span.peaks.allocated, span.peaks.reserved, span.peaks.active)
            self._ended.append(self._row(span, end))
        if len(self._ended) >= SPAN_ROWS:
            self._flush()

    def _row(self, span: _Span, end: _Level) -> dict[str, Any]:
        start, peaks, around = span.start, span.peaks, self._open[-1] if self._open else None
        return {
            "span_id": span.span_id, "parent_id": around.span_id if around else 0,
            "path": span.path, "name": span.name, "stage": self._open[0].name if self._open else span.name,
            "component": span.component, "depth": len(self._open),
            "start_ns": start.t_ns, "end_ns": end.t_ns, "failed": False,
            "allocated_start_bytes": start.allocated, "allocated_end_bytes": end.allocated,
            "allocated_peak_bytes": peaks.allocated,
            "reserved_start_bytes": start.reserved, "reserved_end_bytes": end.reserved,
            "reserved_peak_bytes": peaks.reserved,
            "active_start_bytes": start.active, "active_end_bytes": end.active, "active_peak_bytes": peaks.active,
            "device_used_start_bytes": start.reserved, "device_used_end_bytes": end.reserved,
            "device_used_peak_bytes": peaks.reserved, "device_used_bound_bytes": peaks.reserved,
            "num_samples": 0,
            "host_rss_start_bytes": 0, "host_rss_end_bytes": 0, "host_rss_peak_bytes": 0,
            "num_allocs": end.num_allocs - start.num_allocs, "num_segments": end.num_segments - start.num_segments,
            "num_retries": 0, "recorder_ns": 0,
        }  # fmt: skip

    def _flush(self) -> None:
        if self._ended:
            self._store.append("spans", {name: [row[name] for row in self._ended] for name in self._ended[0]})
            self._ended.clear()


def _stack_rows(stacks: Mapping[tuple[Frame, ...], int]) -> Iterator[dict[str, list[Any]]]:
    """Columns of the table stacks, a thousand stacks at a time."""
    for several in batched(stacks.items(), 1000):
        rows = [(number, index, *frame) for frames, number in several for index, frame in enumerate(frames)]
        names = ("stack_id", "frame", "function", "file", "line")
        yield dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def batched(items: Iterable[Any], length: int) -> Iterator[list[Any]]:
    """Lists of `length` items, the last one shorter."""
    iterator = iter(items)
    while several := list(islice(iterator, length)):
        yield several
