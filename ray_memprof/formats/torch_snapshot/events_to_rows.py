"""Replays the events of a rank and writes its rows: allocs with block sizes, spans with exact peaks, stacks once.

    rows = Rows(run_dir, rank, nested=False)
    written = rows.write(segments_at_start, spool.chunks(), stacks)

Leaves tables/{allocs,spans,stacks}/rank=N/.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_memprof.allocator.doubt import Pool
from ray_memprof.allocator.replay import (
    BlockReplay,
    Columns,
    Peaks,
    Replay,
    Segment,
)
from ray_memprof.allocator.segment_pools import OF_SEGMENTS, SegmentEvent, SegmentPools
from ray_memprof.formats.torch_snapshot.snapshot_parts import FrameLine
from ray_memprof.formats.torch_snapshot.spool import Chunk
from ray_memprof.store.categories import category_of, component_of
from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.run_files import manifest_path, table_dir
from ray_memprof.store.schema import RANK_TABLES, stack_columns

NO_TEXT = "imported"
"""Name of the span for a stretch of events without a text."""
SPAN_ROWS = 4096
MOST_LEVELS = 100
"""The most levels of spans inside spans."""


@dataclass(slots=True)
class Written:
    """What was written of a rank."""

    num_events: int
    start_ns: int
    end_ns: int
    allocated_peak: int
    reserved_peak: int
    num_allocs: int
    num_ooms: int = 0
    last_oom: "OutOfMemory | None" = None
    max_error_bytes: int = 0
    inexact_bytes: int = 0
    peak_at_least: bool = False


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A request that the device had no room for."""

    path: str
    """Innermost span at the request."""
    asked_bytes: int
    free_bytes: int | None
    """Free on the device; None: not known."""
    num_allocs: int
    """Tensors allocated before the request."""


@dataclass(frozen=True, slots=True)
class _Level:
    """The counters at one moment."""

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
    """The rows of one rank.

    Args:
        run_dir: the tables are written below it.
        rank: the rank of the tables.
        named: whether the texts of events name spans at all.
        nested: whether the texts are paths of spans, with slashes between the names.
        is_host: whether the events are of host tensors, whose sizes count as they are.
    """

    def __init__(
        self, run_dir: Path, rank: int, *, named: bool = True, nested: bool, is_host: bool = False
    ) -> None:
        self.replay: Replay = (Replay if is_host else BlockReplay)(category_of=lambda span_id: self._category)
        """The caller must give it the settings of the allocator."""
        self._store, self._named, self._nested = RankStore(run_dir, rank), named, nested
        self._category = category_of(NO_TEXT)
        self._open: list[_Span] = []
        self._ended: list[dict[str, Any]] = []
        self._num_ooms = 0
        self._last_oom: OutOfMemory | None = None
        self._num_spans = self._num_segments = 0
        self._now_ns = 0

    def write(
        self,
        segments_at_start: Iterable[Segment],
        chunks: Iterable[Chunk],
        stacks: Sequence[tuple[FrameLine, ...]],
        *,
        pools: Iterable[Pool | None] = (),
        segments_at_end: Sequence[Segment] = (),
    ) -> Written:
        """Write all rows, then close the store.

        Args:
            segments_at_start: what was held before the first event.
            chunks: the events.
            stacks: Python stacks, by number.
            pools: of each event of segments, in order; None: the event does not name it.
            segments_at_end: those of the snapshot.
        """
        start_ns, named_pools, found = -1, iter(pools), SegmentPools()
        changes: list[SegmentEvent] = []
        for chunk in chunks:
            if start_ns < 0:
                start_ns = int(chunk.t_ns[0])
                before = self.replay.prime(segments_at_start, start_ns)
                names = (name for name in Columns.__slots__ if name != "stack_id")
                self._store.append("allocs", {name: getattr(before, name) for name in names})
                held = zip(before.seq, before.action, before.address, before.requested_bytes, strict=True)
                first = [(*one, None) for one in held if one[1] in OF_SEGMENTS]
                self._append_pools(found, first, list(segments_at_start))
            first_seq = self.replay.num_events
            self._store.append("allocs", self._follow(chunk))
            changes += [(*one, next(named_pools, None)) for one in _changes(chunk, first_seq)]
        self._append_pools(found, changes, segments_at_end)
        self._close(0)
        self._flush()
        for rows in _stack_rows(stacks):
            self._store.append("stacks", rows)
        self._store.close()
        replay = self.replay
        return Written(
            replay.num_events, start_ns, self._now_ns, replay.allocated_peak, replay.reserved_peak,
            replay.num_allocs, self._num_ooms, self._last_oom,
        )  # fmt: skip

    def _append_pools(
        self, pools: SegmentPools, events: Sequence[SegmentEvent], segments: Sequence[Segment]
    ) -> None:
        rows = pools.follow(events, segments)
        if rows.seq:
            self._store.append("segment_pools", asdict(rows))

    def discard(self) -> None:
        """Delete what write() wrote; the store is closed already."""
        for table in RANK_TABLES:
            shutil.rmtree(table_dir(self._store.run_dir, table, self._store.rank), ignore_errors=True)
        manifest_path(self._store.run_dir, self._store.rank).unlink()

    def _follow(self, chunk: Chunk) -> dict[str, Any]:
        """Columns of the table allocs for the next events."""
        first, num = self.replay.num_events, len(chunk.action)
        actions = [chunk.actions[number] for number in chunk.action.tolist()]
        addresses, sizes = chunk.address.tolist(), chunk.size.tolist()
        found = Columns()
        changes = np.flatnonzero(np.diff(chunk.text)) + 1 if self._named else np.zeros(0, np.int64)
        begins = [0, *changes.tolist()]
        for begin, end in zip(begins, [*begins[1:], num], strict=True):
            text = chunk.texts[chunk.text[begin]] if self._named else ""
            here = Columns(
                action=actions[begin:end], address=addresses[begin:end], requested_bytes=sizes[begin:end]
            )
            self._stretch(text, int(chunk.t_ns[begin]), int(chunk.t_ns[end - 1]), here)
            found.size_bytes += here.size_bytes
            found.category += here.category
            found.span_id += here.span_id
        return {
            "seq": np.arange(first, first + num),
            "t_ns": chunk.t_ns,
            "action": pa.DictionaryArray.from_arrays(chunk.action.astype(np.int16), chunk.actions),
            "size_bytes": found.size_bytes,
            "requested_bytes": chunk.size,
            "address": chunk.address,
            "stream": chunk.stream,
            "span_id": found.span_id,
            "category": found.category,
            "stack_id": pa.array(chunk.stack, mask=chunk.stack < 0),
        }

    def _stretch(self, text: str, start_ns: int, end_ns: int, columns: Columns) -> None:
        """Replay a stretch of events that carry the same text."""
        span_id = self._turn(self._names(text), start_ns)
        columns.span_id = [span_id] * len(columns.action)
        before = self.replay.num_allocs
        self.replay.follow(columns)
        if "oom" in columns.action:
            self._note_ooms(columns, before)
        self._num_segments += columns.action.count("segment_alloc") + columns.action.count("segment_map")
        self._now_ns = end_ns

    def _names(self, text: str) -> list[str]:
        """Names of the spans that a text stands for, from the outermost inwards.

        Everything below MOST_LEVELS - 1 levels is one name. Every span has its whole path, so without this limit the
        paths of a long text would take the square of its length.
        """
        if not text or not self._nested:
            return [text or NO_TEXT]
        return text.split("/", MOST_LEVELS - 1)

    def _note_ooms(self, columns: Columns, num_allocs: int) -> None:
        """Count the oom events among events of the innermost span; `num_allocs` allocations came before them."""
        events = zip(columns.action, columns.requested_bytes, columns.address, strict=True)
        for action, size, free in events:
            num_allocs += action == "alloc"
            if action == "oom":
                self._num_ooms += 1
                known = free if free < 2**63 else None
                self._last_oom = OutOfMemory(self._open[-1].path, size, known, num_allocs)

    def _turn(self, names: list[str], t_ns: int) -> int:
        """Leave the spans that have ended and enter those that begin; returns the id of the innermost span."""
        common = 0
        while common < min(len(self._open), len(names)) and self._open[common].name == names[common]:
            common += 1
        self._close(common)
        self._now_ns = t_ns
        for name in names[common:]:
            self._enter(name)
        innermost = self._open[-1]
        self._category = category_of(innermost.name)
        return innermost.span_id

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
        """End the spans at this depth and deeper, now; each hands its peaks to the span around it."""
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


def _changes(chunk: Chunk, first: int) -> Iterator[tuple[int, str, int, int]]:
    """Number, action, address and bytes of the events of segments in a chunk whose first event has number `first`."""
    kinds = [number for number, action in enumerate(chunk.actions) if action in OF_SEGMENTS]
    for place in np.flatnonzero(np.isin(chunk.action, kinds)).tolist():
        action = chunk.actions[int(chunk.action[place])]
        yield first + place, action, int(chunk.address[place]), int(chunk.size[place])


def _stack_rows(stacks: Sequence[tuple[FrameLine, ...]]) -> Iterator[dict[str, list[Any]]]:
    """Columns of the table stacks, a thousand stacks at a time."""
    for several in batched(enumerate(stacks), 1000):
        rows = [(number, index, *frame) for number, frames in several for index, frame in enumerate(frames)]
        yield stack_columns(rows)


def batched(items: Iterable[Any], length: int) -> Iterator[list[Any]]:
    """Lists of `length` items, the last one shorter."""
    iterator = iter(items)
    while several := list(islice(iterator, length)):
        yield several
