"""The writing half of the recorder: a thread that decodes events, folds peaks into spans and puts rows into the store.

The thread that runs the model only hands over what it took (Parcel); everything that costs time happens here.
"""

import queue
import threading
from dataclasses import dataclass, field

from ray_memprof.ledger import Entry
from ray_memprof.meters import Batch, Reading
from ray_memprof.replay import Event, Peaks, Replay
from ray_memprof.store import RankStore

QUEUE_LENGTH = 16
"""Parcels that may wait; beyond it the model waits too, so that memory stays bounded."""


@dataclass(slots=True)
class SpanRecord:
    """A span while it is open, and until its row is written."""

    span_id: int
    parent_id: int
    name: str
    path: str
    stage: str
    component: str | None
    step: int | None
    block: int | None
    branch: str | None
    depth: int
    start: Reading
    end: Reading | None = None
    failed: bool = False
    recorder_ns: int = 0
    peaks: Peaks = field(default_factory=Peaks)
    """Its own, from readings; the scribe adds those from events and from the spans inside it."""
    host_rss: int = 0
    """The most that samples saw: no event tells of host memory between the ends of a span."""


@dataclass(frozen=True, slots=True)
class Collective:
    """A row of the collectives table."""

    start_ns: int
    end_ns: int
    span_id: int
    op: str
    bytes: int
    group: str
    group_size: int
    non_torch_growth_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A row of the samples table."""

    t_ns: int
    device_used_bytes: int
    process_used_bytes: int | None
    others_used_bytes: int | None
    allocated_bytes: int
    reserved_bytes: int
    host_rss_bytes: int
    utilisation_fraction: float | None


@dataclass(slots=True)
class Parcel:
    """What the recorder hands over at once."""

    batch: Batch | None = None
    spans: list[SpanRecord] = field(default_factory=list)
    ledger: list[Entry] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seal: bool = False
    """Turn what is written so far into sealed parts."""
    done: threading.Event | None = None
    """Told once all that this one brings is written, or never will be."""

    @property
    def num_events(self) -> int:
        """How many it brings."""
        return 0 if self.batch is None else len(self.batch.events)


class Scribe:
    """Owns the store and the replay; deliver() from any thread, close() once.

    Args:
        store: where rows go.
        replay: follows the events.
        categories: of the spans whose rows are not written yet; the recorder adds them, the scribe takes them out.
        stacks: numbers their Python stacks, where the meter takes them.
        device_total_bytes: no peak of device memory is larger; 0: no limit.
    """

    def __init__(
        self,
        store: RankStore,
        replay: Replay,
        *,
        categories: dict[int, str],
        stacks: "Stacks | None" = None,
        device_total_bytes: int = 0,
    ) -> None:
        self._store, self.replay, self._stacks, self._total = store, replay, stacks, device_total_bytes
        self.num_checks = self.max_error_bytes = self.num_lost_events = 0
        self.most_waiting_events = 0
        self._num_delivered = self._num_written = 0
        self.categories = categories
        self.error: Exception | None = None
        """What ended the writing; nothing is written after it."""
        self._inherited: dict[int, _Inherited] = {}
        self._queue: queue.Queue[Parcel | None] = queue.Queue(QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._work, name="scribe", daemon=True)
        self._thread.start()

    def deliver(self, parcel: Parcel) -> None:
        """Hand over, one caller at a time; waits when too much is waiting already."""
        self._num_delivered += parcel.num_events
        self.most_waiting_events = max(self.most_waiting_events, self.num_waiting_events)
        self._queue.put(parcel)

    @property
    def num_waiting_events(self) -> int:
        """Delivered and not yet written."""
        return self._num_delivered - self._num_written

    def close(self) -> None:
        """Write all that was delivered and seal the store; the error that stopped the writing is kept, not raised."""
        self._queue.put(None)
        self._thread.join()
        try:
            self._store.close()
        except Exception as error:  # kept for whoever asks; the run itself went well
            self.error = self.error or error

    def _work(self) -> None:
        while (parcel := self._queue.get()) is not None:
            try:
                if self.error is None:
                    self._write(parcel)
            except Exception as error:  # a disk that is full, a bug: told at the end, never into the model
                self.error = error
            self._num_written += parcel.num_events
            if parcel.done is not None:
                parcel.done.set()

    def _write(self, parcel: Parcel) -> None:
        if parcel.batch is not None and parcel.batch.events:
            self._write_events(parcel.batch)
        if parcel.spans:
            self._write_spans(parcel.spans)
        for table, rows in (
            ("ledger", parcel.ledger),
            ("collectives", parcel.collectives),
            ("samples", parcel.samples),
        ):
            if rows:
                names = type(rows[0]).__slots__
                self._store.append(table, {name: [getattr(row, name) for row in rows] for name in names})
        if parcel.seal:
            self._store.seal()

    def _write_events(self, batch: Batch) -> None:
        self.replay.configure(batch.settings)
        columns = self.replay.feed(batch.events)
        rows = {name: getattr(columns, name) for name in type(columns).__slots__}
        if self._stacks is None:
            del rows["stack_id"]
        else:
            self._stacks.flush()
        self._store.append("allocs", rows)
        self._check(batch)

    def _check(self, batch: Batch) -> None:
        if batch.num_allocs >= 0:
            self.num_lost_events = max(self.num_lost_events, batch.num_allocs - self.replay.num_allocs)
        reading = batch.reading
        if reading is None:
            return
        self.num_checks += 1
        for replayed, counted in (
            (self.replay.allocated, reading.allocated),
            (self.replay.reserved, reading.reserved),
            (self.replay.active, reading.active),
        ):
            self.max_error_bytes = max(self.max_error_bytes, abs(replayed - counted))

    def _write_spans(self, spans: list[SpanRecord]) -> None:
        self._store.append("spans", _columns([self._row(span) for span in spans]))

    def _row(self, span: SpanRecord) -> dict[str, object]:
        """The row of a span that ended; its peaks go on to the span around it, which ends later."""
        start, end = span.start, span.end
        assert end is not None
        peaks = self._peaks(span, start, end)
        inside = self._inherited.pop(span.span_id, _Inherited())
        outside = max(start.device_used - start.reserved, end.device_used - end.reserved)
        device_peak = max(inside.device_used, start.device_used, end.device_used, peaks.reserved + outside)
        if self._total:
            device_peak = min(device_peak, self._total)
        rss_peak = max(inside.host_rss, span.host_rss, start.host_rss, end.host_rss)
        if span.parent_id:
            around = self._inherited.setdefault(span.parent_id, _Inherited())
            around.peaks.fold(peaks.allocated, peaks.reserved, peaks.active)
            around.device_used = max(around.device_used, device_peak)
            around.host_rss = max(around.host_rss, rss_peak)
        self.categories.pop(span.span_id, None)
        return {
            "span_id": span.span_id, "parent_id": span.parent_id, "path": span.path, "name": span.name,
            "stage": span.stage, "component": span.component, "step": span.step, "block": span.block,
            "branch": span.branch, "depth": span.depth, "start_ns": start.t_ns, "end_ns": end.t_ns,
            "failed": span.failed,
            "allocated_start_bytes": start.allocated, "allocated_end_bytes": end.allocated,
            "allocated_peak_bytes": peaks.allocated,
            "reserved_start_bytes": start.reserved, "reserved_end_bytes": end.reserved,
            "reserved_peak_bytes": peaks.reserved,
            "active_start_bytes": start.active, "active_end_bytes": end.active, "active_peak_bytes": peaks.active,
            "device_used_start_bytes": start.device_used, "device_used_end_bytes": end.device_used,
            "device_used_peak_bytes": device_peak, "device_used_bound_bytes": device_peak, "num_samples": 0,
            "host_rss_start_bytes": start.host_rss, "host_rss_end_bytes": end.host_rss,
            "host_rss_peak_bytes": rss_peak,
            "num_allocs": end.num_allocs - start.num_allocs, "num_segments": end.num_segments - start.num_segments,
            "num_retries": end.num_retries - start.num_retries, "recorder_ns": span.recorder_ns,
        }  # fmt: skip

    def _peaks(self, span: SpanRecord, start: Reading, end: Reading) -> Peaks:
        """The most that was held inside: by its readings, its events, and the spans in it."""
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
    host_rss: int = 0


class Stacks:
    """Numbers for Python stacks: the same frames, the same number."""

    def __init__(self, store: RankStore) -> None:
        self._store = store
        self._numbers: dict[tuple[tuple[str, str, int], ...], int] = {}
        self._new: list[tuple[int, int, str, str, int]] = []

    def number(self, event: Event) -> int | None:
        """Of the frames of `event`; None where it has none."""
        frames = tuple((frame["name"], frame["filename"], frame["line"]) for frame in event.get("frames", ()))
        if not frames:
            return None
        if frames not in self._numbers:
            number = self._numbers[frames] = len(self._numbers)
            self._new += [(number, index, *frame) for index, frame in enumerate(frames)]
        return self._numbers[frames]

    def flush(self) -> None:
        """Write the stacks that are new."""
        if self._new:
            names = ("stack_id", "frame", "function", "file", "line")
            self._store.append(
                "stacks", dict(zip(names, map(list, zip(*self._new, strict=True)), strict=True))
            )
            self._new.clear()


def _columns(rows: list[dict[str, object]]) -> dict[str, list[object]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
