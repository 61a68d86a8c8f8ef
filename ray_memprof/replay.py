"""Allocator blocks rebuilt from recorded events: what each allocation really took, and the curves of every moment.

An event names what was asked for; the allocator counts blocks, and a block may be larger than its request (rounding
to 512 bytes, remainders too small to split off). So the free space of every segment is followed event by event, by
the allocator's own rules: a request takes the front of the free block at its address, the rest is split off where
the pool allows it, and freed neighbours merge. The result equals the allocator's counters to the byte, or says not.

    replay = BlockReplay(expandable_segments=True)
    columns = replay.feed(events)         # events: dicts of torch's device_traces, in order
    replay.allocated, replay.allocated_peak

Source of the rules: c10/cuda/CUDACachingAllocator.cpp of torch 2.11 (round_size, should_split, try_merge_blocks).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MIN_BLOCK_BYTES = 512
SMALL_BYTES = 2**20
"""Requests up to this come from the small pool, which splits to the last 512 bytes; the large pool keeps a
remainder of up to this with the block."""

Event = Mapping[str, Any]
"""One of torch's device_traces: action, addr, size, stream, time_us, user_metadata."""
Counted = tuple[int, str | None]
"""Bytes that an event counts for, and the category of its block."""
Handler = Callable[[int, int, int], Counted]


@dataclass(slots=True)
class Peaks:
    """Most bytes while one span was the innermost; -1: nothing was seen."""

    allocated: int = -1
    reserved: int = -1
    active: int = -1

    def fold(self, allocated: int, reserved: int, active: int) -> None:
        """Take in other maxima."""
        self.allocated = max(self.allocated, allocated)
        self.reserved = max(self.reserved, reserved)
        self.active = max(self.active, active)


@dataclass(slots=True)
class Columns:
    """Events by column, as the allocs table has them."""

    seq: list[int] = field(default_factory=list)
    t_ns: list[int] = field(default_factory=list)
    action: list[str] = field(default_factory=list)
    size_bytes: list[int] = field(default_factory=list)
    requested_bytes: list[int] = field(default_factory=list)
    address: list[int] = field(default_factory=list)
    stream: list[int] = field(default_factory=list)
    span_id: list[int] = field(default_factory=list)
    category: list[str | None] = field(default_factory=list)
    stack_id: list[int | None] = field(default_factory=list)
    """Empty where no stacks are taken."""


class Replay:
    """Adds up events whose sizes are what counts (host tensors); BlockReplay knows the CUDA allocator's blocks.

    Args:
        category_of: category of what is allocated in a span.
        stack_of: number of an event's Python stack, where stacks are taken.
    """

    def __init__(
        self,
        *,
        category_of: Callable[[int], str] = lambda span_id: "activation",
        stack_of: Callable[[Event], int | None] | None = None,
    ) -> None:
        self._category_of, self._stack_of = category_of, stack_of
        self.allocated = self.reserved = self.active = 0
        self.allocated_peak = self.reserved_peak = self.active_peak = 0
        self.num_events = self.num_allocs = 0
        self.num_strays = 0
        """Events that do not fit what was followed so far: their block is not where it should be."""
        self.peaks: dict[int, Peaks] = {}
        """By span; whoever has used those of a span that ended takes them out."""
        self._used: dict[int, tuple[int, str]] = {}
        self._handlers: dict[str, Handler] = {
            "alloc": self._alloc,
            "free_requested": self._free_requested,
            "free_completed": self._free_completed,
        }

    def prime(self, segments: Iterable[Event]) -> None:
        """Start from what was held before recording began; host meters count nothing of it."""

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Take what decides sizes from the allocator's settings, as a snapshot names them."""

    def feed(self, events: Iterable[Event]) -> Columns:
        """Follow `events`, in the order in which they happened; returns them as columns."""
        columns = Columns()
        for event in events:
            action = event["action"]
            stamp = event.get("user_metadata", "")
            span_id = int(stamp) if stamp.isdecimal() else 0
            # An oom event has the bytes that were free on the device in place of an address.
            address, requested = event.get("addr", 0), event["size"]
            handler = self._handlers.get(action)
            size, category = (requested, None) if handler is None else handler(address, requested, span_id)
            self._note_peaks(span_id)
            columns.seq.append(self.num_events)
            columns.t_ns.append(event["time_us"] * 1000)
            columns.action.append(action)
            columns.size_bytes.append(size)
            columns.requested_bytes.append(requested)
            columns.address.append(signed(address))
            columns.stream.append(signed(event["stream"]))
            columns.span_id.append(span_id)
            columns.category.append(category)
            if self._stack_of is not None:
                columns.stack_id.append(self._stack_of(event))
            self.num_events += 1
        return columns

    def _note_peaks(self, span_id: int) -> None:
        allocated, reserved, active = self.allocated, self.reserved, self.active
        peaks = self.peaks.get(span_id)
        if peaks is None:
            peaks = self.peaks[span_id] = Peaks(allocated, reserved, active)
        if allocated > peaks.allocated:
            peaks.allocated = allocated
        if reserved > peaks.reserved:
            peaks.reserved = reserved
        if active > peaks.active:
            peaks.active = active
        if allocated > self.allocated_peak:
            self.allocated_peak = allocated
        if reserved > self.reserved_peak:
            self.reserved_peak = reserved
        if active > self.active_peak:
            self.active_peak = active

    def _alloc(self, address: int, requested: int, span_id: int) -> Counted:
        self._reserve(requested)
        return self._use(address, requested, span_id)

    def _use(self, address: int, size: int, span_id: int) -> Counted:
        category = self._category_of(span_id)
        self._used[address] = (size, category)
        self.num_allocs += 1
        self.allocated += size
        self.active += size
        return size, category

    def _free_requested(self, address: int, requested: int, span_id: int) -> Counted:
        size, category = self._used.get(address, (0, None))
        if category is None:
            self.num_strays += 1
            return requested, None
        self.allocated -= size
        return size, category

    def _free_completed(self, address: int, requested: int, span_id: int) -> Counted:
        size, category = self._used.pop(address, (0, None))
        if category is None:
            self.num_strays += 1
            return requested, None
        self.active -= size
        self._release(address, size)
        return size, category

    def _reserve(self, size: int) -> None:
        """What is used is all that there is."""
        self.reserved += size

    def _release(self, address: int, size: int) -> None:
        self.reserved -= size


class BlockReplay(Replay):
    """Follows one device's caching allocator.

    Args:
        expandable_segments: whether the allocator grows segments (its splitting rule differs).
        max_split_bytes: requests of this size and more are never split; None: no limit.
        category_of: category of what is allocated in a span.
        stack_of: number of an event's Python stack, where stacks are taken.
    """

    def __init__(
        self,
        *,
        expandable_segments: bool = False,
        max_split_bytes: int | None = None,
        category_of: Callable[[int], str] = lambda span_id: "activation",
        stack_of: Callable[[Event], int | None] | None = None,
    ) -> None:
        super().__init__(category_of=category_of, stack_of=stack_of)
        self.expandable_segments, self._max_split_bytes = expandable_segments, max_split_bytes
        self._divisions: tuple[int, ...] = ()
        self._free: dict[int, int] = {}
        self._free_by_end: dict[int, int] = {}
        self._segment_starts: set[int] = set()
        self._handlers |= {
            "segment_alloc": self._segment_alloc,
            "segment_free": self._segment_free,
            "segment_map": self._segment_map,
            "segment_unmap": self._segment_unmap,
        }

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Take the rule of splitting from the allocator's settings, as a snapshot names them."""
        self.expandable_segments = bool(settings.get("expandable_segments", self.expandable_segments))
        limit = settings.get("max_split_size", -1)
        self._max_split_bytes = limit if limit > 0 else None
        divisions = settings.get("roundup_power2_divisions", {})
        # Keys are powers of two, "1" for up to 2 MiB; no division is the default.
        steps = tuple(divisions[key] for key in sorted(divisions, key=int))
        self._divisions = steps if any(step > 1 for step in steps) else ()

    def prime(self, segments: Iterable[Event]) -> None:
        """Start from what the allocator held before recording began: `segments` of a snapshot."""
        for segment in segments:
            self.reserved += segment["total_size"]
            if not segment.get("is_expandable", False):
                self._segment_starts.add(segment["address"])
            for block in segment["blocks"]:
                address, size = block["address"], block["size"]
                if block["state"] == "inactive":
                    self._give(address, size)
                    continue
                self._used[address] = (size, "activation")
                self.active += size
                self.allocated += size if block["state"] == "active_allocated" else 0
        self.allocated_peak, self.reserved_peak, self.active_peak = self.allocated, self.reserved, self.active

    def _alloc(self, address: int, requested: int, span_id: int) -> Counted:
        wanted = self.rounded(requested)
        available = self._take(address)
        if available < wanted:
            # Recording began after this block's segment was made, or an event was lost.
            self.num_strays += 1
            size = wanted
        elif self.splits(wanted, available - wanted):
            size = wanted
            self._give(address + wanted, available - wanted)
        else:
            size = available
        return self._use(address, size, span_id)

    def _release(self, address: int, size: int) -> None:
        self._merge(address, size)

    def rounded(self, requested: int) -> int:
        """Bytes that a request becomes before a block is looked for."""
        divisions = self._divisions_of(requested) if self._divisions else 0
        if divisions > 1 and requested > MIN_BLOCK_BYTES * divisions:
            return _next_division(requested, divisions)
        return max(MIN_BLOCK_BYTES, -(-requested // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES)

    def _divisions_of(self, requested: int) -> int:
        """Steps between two powers of two: one setting for each power from 1 MiB on, those at the ends for the rest."""
        interval = max(0, requested.bit_length() - SMALL_BYTES.bit_length())
        return self._divisions[min(interval, len(self._divisions) - 1)]

    def splits(self, wanted: int, rest: int) -> bool:
        """Whether a request that leaves `rest` bytes of the block that it found gives them back."""
        if self.expandable_segments or wanted <= SMALL_BYTES:
            return rest >= MIN_BLOCK_BYTES
        return rest > SMALL_BYTES and (self._max_split_bytes is None or wanted < self._max_split_bytes)

    def _segment_alloc(self, address: int, requested: int, span_id: int) -> Counted:
        self.reserved += requested
        self._segment_starts.add(address)
        self._give(address, requested)
        return requested, None

    def _segment_free(self, address: int, requested: int, span_id: int) -> Counted:
        self.reserved -= requested
        self._segment_starts.discard(address)
        if self._take(address) != requested:
            self.num_strays += 1
        return requested, None

    def _segment_map(self, address: int, requested: int, span_id: int) -> Counted:
        self.reserved += requested
        self._merge(address, requested)
        return requested, None

    def _segment_unmap(self, address: int, requested: int, span_id: int) -> Counted:
        """Whole pages are unmapped, so what lies before and after them in the free block stays mapped."""
        self.reserved -= requested
        for start, size in (
            self._free.items() if address not in self._free else ((address, self._free[address]),)
        ):
            if start <= address and address + requested <= start + size:
                break
        else:
            self.num_strays += 1
            return requested, None
        self._take(start)
        if start < address:
            self._give(start, address - start)
        if address + requested < start + size:
            self._give(address + requested, start + size - address - requested)
        return requested, None

    def _merge(self, address: int, size: int) -> None:
        """A range becomes free: it joins the free neighbours of its own segment."""
        after = address + size
        if after in self._free and after not in self._segment_starts:
            size += self._take(after)
        if address in self._free_by_end and address not in self._segment_starts:
            before = self._free_by_end[address]
            size += self._take(before)
            address = before
        self._give(address, size)

    def _give(self, address: int, size: int) -> None:
        self._free[address] = size
        self._free_by_end[address + size] = address

    def _take(self, address: int) -> int:
        """Bytes of the free block that begins at `address`, which is free no more; 0: there is none."""
        size = self._free.pop(address, 0)
        if size:
            del self._free_by_end[address + size]
        return size


def _next_division(size: int, divisions: int) -> int:
    """The next of `divisions` equal steps between two powers of two."""
    floor = 1 << (size.bit_length() - 1)
    step = floor >> (divisions.bit_length() - 1)
    if size == floor:
        return size
    return floor << 1 if step == 0 else -(-size // step) * step


def signed(value: int) -> int:
    """An unsigned 64-bit number as the signed one of the same bits: columns are int64."""
    return value if value < 2**63 else value - 2**64
