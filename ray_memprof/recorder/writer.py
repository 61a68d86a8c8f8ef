"""What a parcel becomes on disk: events are followed, peaks folded into spans, rows put into the store.

    writer = writer_of(plan, problems)
    writer.write(parcel, rest)
    writer.close()
    writer.followed()                     # how the events add up

Needs no torch, so that it can work in a process of its own (writer_process.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ray_memprof.allocator.block_sizes import decide
from ray_memprof.allocator.doubt import pool_of
from ray_memprof.allocator.replay import (
    BlockReplay,
    Columns,
    Event,
    Peaks,
    Replay,
    Segment,
)
from ray_memprof.allocator.segment_pools import OF_SEGMENTS, SegmentPools
from ray_memprof.errors import DiskFull
from ray_memprof.recorder.event_spans import give_spans
from ray_memprof.recorder.meters.meter import Batch, Reading
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.owners import Owners
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.restraint import paced
from ray_memprof.recorder.rows import Parcel, SpanRecord
from ray_memprof.store.rank_store import RankStore

if TYPE_CHECKING:
    from ray_memprof.recorder.stacks import Stacks

AT_ONCE = 128
"""Events that are decoded before the model may have Python's lock: a quarter of a millisecond."""


@dataclass(frozen=True, slots=True)
class Followed:
    """How the events that were written add up."""

    num_events: int = 0
    num_lost_events: int = 0
    """Events that never came, or could not be written."""
    num_checks: int = 0
    """How often the sums were compared with the allocator's counters."""
    max_error_bytes: int = 0
    """The largest difference."""
    allocated_peak: int = 0
    reserved_peak: int = 0


class Writes(Protocol):
    """Writes parcels: in this process, or in one of its own."""

    error: DiskFull | None
    """What ended the writing; nothing is written after it."""
    problems: Problems
    """Where it notes what it could not write; a full disk is kept in `error` instead."""

    def write(self, parcel: Parcel, rest: Callable[[], None]) -> None:
        """Write the rows of a parcel; returns when they are with the kernel."""

    def close(self) -> None:
        """Seal the store; an error is kept, not raised."""

    def followed(self) -> Followed:
        """How the events so far add up."""


class Writer:
    """Owns the store and the replay of a rank; used by one thread.

    Args:
        store: where rows go.
        replay: follows the events.
        categories: of the spans whose rows are not written yet, where the replay looks them up; only the writer changes
            it.
        stacks: numbers the Python stacks of events, where the meter takes them.
        device_total_bytes: no bound of device memory is larger; 0: no limit.
        problems: see Writes.
    """

    def __init__(
        self,
        store: RankStore,
        replay: Replay,
        *,
        categories: dict[int, str],
        stacks: "Stacks | None" = None,
        device_total_bytes: int = 0,
        problems: Problems | None = None,
    ) -> None:
        self._store, self.replay, self._stacks, self._total = store, replay, stacks, device_total_bytes
        self._num_checks = self._max_error_bytes = self._num_known_lost = self._num_missing = 0
        self._num_rows = 0
        self.categories = categories
        self.error: DiskFull | None = None
        self.problems = problems or Problems()
        self._inherited: dict[int, _Inherited] = {}
        self._owners, self._pools = Owners(), SegmentPools()

    def followed(self) -> Followed:
        """How the events so far add up."""
        replay = self.replay
        return Followed(
            num_events=replay.num_events,
            # Those that never came, or could not be written.
            num_lost_events=max(self._num_known_lost, self._num_missing),
            num_checks=self._num_checks,
            max_error_bytes=self._max_error_bytes,
            allocated_peak=replay.allocated_peak,
            reserved_peak=replay.reserved_peak,
        )

    def close(self) -> None:
        """Seal the store; an error is kept, not raised."""
        self._do("what was recorded could not be closed", self._store.close)

    def _do(self, what: str, work: Callable[[], None]) -> bool:
        """Call `work`; whether it went well. A full disk ends the writing; other errors are noted, the rest goes on."""
        try:
            work()
            return True
        except DiskFull as error:  # kept for beats and for the end of the recording; the run itself goes on
            self.error = self.error or error
        except Exception as error:
            self.problems.note(what, error)
        return False

    def write(self, parcel: Parcel, rest: Callable[[], None]) -> None:
        """Write the rows of a parcel. An error that ends the writing is kept, others are noted and the rest goes on.

        Args:
            parcel: its events may be changed.
            rest: called again and again, a few tenths of a millisecond apart: others may work meanwhile.
        """
        if self.error is not None:
            return
        batch, spans = parcel.batch, parcel.spans
        self.categories.update(parcel.categories)
        # First the rows that need no replay: a process that is killed loses less.
        for table, rows in (
            ("ledger", parcel.ledger),
            ("collectives", parcel.collectives),
            ("communicators", parcel.communicators),
            ("samples", parcel.samples),
        ):
            if rows and self.error is None:
                names = type(rows[0]).__slots__
                columns = {name: [getattr(row, name) for row in rows] for name in names}
                self._do(f"rows of {table} could not be written", partial(self._store.append, table, columns))
        if parcel.base:
            base, base_ns = parcel.base, parcel.base_ns
            self._do("what was held before could not be written", lambda: self._write_base(base, base_ns))
        num_rows = self._num_rows
        if batch is not None and not self._do(
            "events could not be written", lambda: self._write_events(batch, parcel, rest)
        ):
            self._num_known_lost += len(batch.events) - (self._num_rows - num_rows)
        if spans and self.error is None:
            self._do("spans could not be written", lambda: self._write_spans(spans))
        if parcel.seal and self.error is None:
            self._do("what was recorded could not be sealed", self._store.seal)

    def _write_base(self, base: Sequence[Segment], base_ns: int) -> None:
        columns = self.replay.prime(base, base_ns)
        self._owners.prime(columns)
        self._append_events(columns, lambda: None)
        self._append_pools(columns, (), base)

    def _write_events(self, batch: Batch, parcel: Parcel, rest: Callable[[], None]) -> None:
        self._num_known_lost += batch.num_lost
        shift_us, columns = 0, Columns()
        if batch.events:
            shift_us = give_spans(batch.events, parcel.stamps, rest)
            self._configure(batch)
            columns = self._fed(batch.events, rest)
        owners = self._owners.follow(columns, parcel.claims, shift_us, rest)
        if batch.times is not None:
            columns.t_ns, owners.t_ns = batch.times.ours(columns.t_ns), batch.times.ours(owners.t_ns)
        if owners.seq:
            self._store.append("owners", asdict(owners))
        if not batch.events:
            self._count_missing(batch)
            return
        self._append_events(columns, rest)
        self._append_pools(columns, batch.events, batch.segments)
        self._check(batch)

    def _append_pools(self, columns: Columns, events: Sequence[Event], segments: Sequence[Segment]) -> None:
        """Write of which memory pools the segments in these events are; `segments`: those of a snapshot after them."""
        if OF_SEGMENTS.isdisjoint(
            columns.action
        ):  # most batches; a loop would hold Python's lock three times as long
            return
        places = [place for place, action in enumerate(columns.action) if action in OF_SEGMENTS]
        rows = self._pools.follow(
            (
                (
                    columns.seq[place],
                    columns.action[place],
                    columns.address[place],
                    columns.requested_bytes[place],
                    pool_of(events[place].get("pool_id")) if events else None,
                )
                for place in places
            ),
            segments,
        )
        if rows.seq:
            self._store.append("segment_pools", asdict(rows))

    def _fed(self, events: Sequence[Event], rest: Callable[[], None]) -> Columns:
        """Feed events to the replay, with a rest after every AT_ONCE of them."""
        columns = self.replay.feed(events[:AT_ONCE])
        for first in range(AT_ONCE, len(events), AT_ONCE):
            rest()
            more = self.replay.feed(events[first : first + AT_ONCE])
            for name in type(columns).__slots__:
                getattr(columns, name).extend(getattr(more, name))
        return columns

    def _configure(self, batch: Batch) -> None:
        """Give the replay the settings after these events, and block sizes that events prove where settings do not."""
        replay = self.replay
        was_expandable = replay.rules.expandable_segments if isinstance(replay, BlockReplay) else False
        replay.configure(batch.settings)
        if isinstance(replay, BlockReplay):
            was_expandable = was_expandable if replay.num_events else replay.rules.expandable_segments
            replay.decided = decide(replay, batch.events, batch.segments, was_expandable)

    def _append_events(self, columns: Columns, rest: Callable[[], None]) -> None:
        rows = {name: getattr(columns, name) for name in type(columns).__slots__}
        if self._stacks is None:
            del rows["stack_id"]
        else:
            self._stacks.flush()
        for part in paced(len(columns.seq), rest):
            self._store.append("allocs", {name: column[part] for name, column in rows.items()})
            self._num_rows += part.stop - part.start

    def _count_missing(self, batch: Batch) -> None:
        if batch.num_allocs >= 0:
            self._num_missing = max(self._num_missing, batch.num_allocs - self.replay.num_allocs)

    def _check(self, batch: Batch) -> None:
        self._count_missing(batch)
        reading = batch.reading
        if reading is None:
            return
        self._num_checks += 1
        for replayed, counted in (
            (self.replay.allocated, reading.allocated),
            (self.replay.reserved, reading.reserved),
            (self.replay.active, reading.active),
        ):
            self._max_error_bytes = max(self._max_error_bytes, abs(replayed - counted))

    def _write_spans(self, spans: list[SpanRecord]) -> None:
        self._store.append("spans", _columns([self._row(span) for span in spans]))

    def _row(self, span: SpanRecord) -> dict[str, object]:
        """The row of a span that ended; its peaks go on to the span around it, which ends later."""
        start, end = span.start, span.end
        assert end is not None
        peaks = self._peaks(span, start, end)
        inside = self._inherited.pop(span.span_id, _Inherited())
        for reading in (start, end):
            span.note_reading(reading)
        device_peak, outside = max(inside.device_used, span.device_used), max(inside.outside, span.outside)
        bound = peaks.reserved + outside
        # Both peaks may be of different moments, so their sum is a bound: at most the whole device, at least what was
        # seen.
        bound = max(device_peak, min(bound, self._total) if self._total else bound)
        rss_peak = max(inside.host_rss, span.host_rss, start.host_rss, end.host_rss)
        if span.parent_id:
            around = self._inherited.setdefault(span.parent_id, _Inherited())
            around.peaks.fold(peaks.allocated, peaks.reserved, peaks.active)
            around.device_used = max(around.device_used, device_peak)
            around.outside = max(around.outside, outside)
            around.host_rss = max(around.host_rss, rss_peak)
        self.categories.pop(span.span_id, None)
        return {
            "span_id": span.span_id, "parent_id": span.parent_id, "path": span.path, "name": span.name,
            "stage": span.stage, "component": span.component, "module": span.module, "step": span.step,
            "block": span.block, "branch": span.branch, "depth": span.depth, "start_ns": start.t_ns, "end_ns": end.t_ns,
            "failed": span.failed,
            "allocated_start_bytes": start.allocated, "allocated_end_bytes": end.allocated,
            "allocated_peak_bytes": peaks.allocated,
            "reserved_start_bytes": start.reserved, "reserved_end_bytes": end.reserved,
            "reserved_peak_bytes": peaks.reserved,
            "active_start_bytes": start.active, "active_end_bytes": end.active, "active_peak_bytes": peaks.active,
            "device_used_start_bytes": start.device_used, "device_used_end_bytes": end.device_used,
            "device_used_peak_bytes": device_peak, "device_used_bound_bytes": bound,
            "num_samples": span.num_samples,
            "host_rss_start_bytes": start.host_rss, "host_rss_end_bytes": end.host_rss,
            "host_rss_peak_bytes": rss_peak,
            "num_allocs": end.num_allocs - start.num_allocs, "num_segments": end.num_segments - start.num_segments,
            "num_retries": end.num_retries - start.num_retries, "recorder_ns": span.recorder_ns,
        }  # fmt: skip

    def _peaks(self, span: SpanRecord, start: Reading, end: Reading) -> Peaks:
        """Return the most that was held inside the span: by its readings, its events, and the spans inside it."""
        peaks = span.peaks
        for reading in (start, end):
            peaks.fold(reading.allocated, reading.reserved, reading.active)
        others = [self.replay.peaks.pop(span.span_id, None)]
        if span.span_id in self._inherited:
            others.append(self._inherited[span.span_id].peaks)
        for other in others:
            if other is not None:
                peaks.fold(other.allocated, other.reserved, other.active)
        return peaks


@dataclass(slots=True)
class _Inherited:
    """What the spans inside an open span have reached so far."""

    peaks: Peaks = field(default_factory=Peaks)
    device_used: int = 0
    outside: int = 0
    host_rss: int = 0


def _columns(rows: list[dict[str, object]]) -> dict[str, list[object]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterPlan:
    """What a writer is made of."""

    options: RecordingOptions
    """Of the rank; level stack needs torch."""
    has_blocks: bool
    """Whether the events are those of the CUDA allocator; else they are of host tensors."""
    is_claimed: bool = False
    """Whether the rank's manifest is there already, made for this writer."""


def writer_of(plan: WriterPlan, problems: Problems) -> Writer:
    """Return a writer that works in this process.

    Raises:
        DiskFull: its manifest could not be made, or another writer has made it.
    """
    options = plan.options
    store = RankStore(options.run_dir, options.rank, is_claimed=plan.is_claimed)
    stacks = None
    if options.has_stacks:
        from ray_memprof.recorder.stacks import Stacks

        stacks = Stacks(store)
    categories: dict[int, str] = {}
    kind = BlockReplay if plan.has_blocks else Replay
    replay = kind(
        category_of=lambda span_id: categories.get(span_id, "activation"),
        stack_of=None if stacks is None else stacks.number,
    )
    return Writer(
        store,
        replay,
        categories=categories,
        stacks=stacks,
        device_total_bytes=options.device_total_bytes,
        problems=problems,
    )
