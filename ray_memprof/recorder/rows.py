"""Rows on their way to disk: what the recorder hands to the thread that writes."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ray_memprof.allocator.replay import (
    Peaks,
    Segment,
)
from ray_memprof.recorder.event_spans import Stamp
from ray_memprof.recorder.flag import Flag
from ray_memprof.recorder.meters.meter import Batch, Reading


@dataclass(slots=True)
class SpanRecord:
    """A span while it is open, and until its row is written."""

    span_id: int
    parent_id: int
    name: str
    path: str
    stage: str
    component: str | None
    module: str | None
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
    device_used: int = 0
    """The most that readings and samples inside it saw; between them it is not known."""
    outside: int = 0
    """The most device memory outside the allocator that readings and samples saw."""
    host_rss: int = 0
    """The most that samples saw: no event tells of host memory between the ends of a span."""
    num_samples: int = 0

    def note_reading(self, reading: Reading) -> None:
        """A reading was taken inside it, or at its end."""
        used = reading.device_used
        if used > self.device_used:
            self.device_used = used
        if used - reading.reserved > self.outside:
            self.outside = used - reading.reserved

    def note_sample(self, sample: "Sample", *, is_whole: bool) -> None:
        """A sample was taken: it counts if it lies inside the span. For `is_whole` see Recorder.tick."""
        if sample.t_ns < self.start.t_ns or (self.end is not None and sample.t_ns > self.end.t_ns):
            return
        self.num_samples += 1
        self.host_rss = max(self.host_rss, sample.host_rss_bytes)
        self.device_used = max(self.device_used, sample.device_used_bytes)
        if is_whole:
            self.outside = max(self.outside, sample.device_used_bytes - sample.reserved_bytes)


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


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the ledger table."""

    t_ns: int
    span_id: int
    account: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an allocation is, and what for."""

    name: str
    """Path of the parameter, the buffer or the module."""
    component: str | None
    category: str
    dtype: str | None = None


class Claim(NamedTuple):
    """What was found at a moment: a storage and its owner. A tuple, for thousands are made in a training step."""

    time_us: int
    """By the clock of the events."""
    address: int
    bytes: int
    """Of the storage: what was asked for when it was allocated."""
    owner: Owner


@dataclass(frozen=True, slots=True)
class Communicator:
    """A row of the communicators table."""

    t_ns: int
    group: str
    backend: str
    group_size: int
    ranks: str
    num_calls: int
    bytes: int | None
    shared_bytes: int
    how_known: str


@dataclass(slots=True)
class Parcel:
    """What the recorder hands over at once."""

    base: list[Segment] = field(default_factory=list)
    """What the allocator held when recording began; comes with the very first events."""
    base_ns: int = 0
    """When that was."""
    batch: Batch | None = None
    stamps: Sequence[Stamp] = ()
    """The stamps that the model's thread was given while the events of `batch` happened."""
    claims: list[Claim] = field(default_factory=list)
    """Whose storages are, as found while these events happened."""
    categories: dict[int, str] = field(default_factory=dict)
    """Of the spans that began, by number: what their allocations are for."""
    spans: list[SpanRecord] = field(default_factory=list)
    """Those that ended."""
    ledger: list[Entry] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    communicators: list[Communicator] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seal: bool = False
    """Turn what is written so far into sealed parts."""
    done: Flag | None = None
    """Set once all rows of this parcel are written, or cannot be written any more."""
    since: float = 0.0
    """When it was handed over."""
    is_counted: bool = False
    """Whether its events count as handed over."""
    is_written: bool = False

    def num_ended_by(self, known_ns: int) -> int:
        """How many of its first spans ended by then: a sample may still come that belongs to the others."""
        # They are in the order in which they ended.
        return bisect_right(self.spans, known_ns, key=lambda span: span.end.t_ns if span.end else 0)

    @property
    def num_events(self) -> int:
        """How many events this parcel has."""
        return 0 if self.batch is None else len(self.batch.events)
