"""Allocator blocks rebuilt from recorded events: what each allocation really took, and the curves of every moment.

An event names what was asked for; the allocator counts blocks, and a block may be larger than its request (rounding
to 512 bytes, remainders too small to split off). So the free space of every segment is followed event by event, by
the allocator's own rules: a request takes the front of the free block at its address, the rest is split off where
the pool allows it, and freed neighbours merge. The result equals the allocator's counters to the byte, or the
difference is reported.

    replay = BlockReplay(rules=Rules(expandable_segments=True))
    columns = replay.feed(events)         # events: dicts of torch's device_traces, in order
    replay.allocated, replay.allocated_peak

Source: c10/cuda/CUDACachingAllocator.cpp of torch 2.11 (try_merge_blocks); sizes: rules.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_memprof.allocator.rules import Rules

BEFORE = "before"
"""Category of what was held before the first event."""
UNKNOWN_FREE = 2**64 - 1
"""Stands for the free bytes of an oom event that does not name them: no device has so many."""
Event = Mapping[str, Any]
"""One of torch's device_traces: action, addr, size, stream, time_us, user_metadata."""
Segment = Mapping[str, Any]
"""One of a snapshot's segments: address, total_size, stream, is_expandable, blocks."""
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
        """Take the larger of these maxima and other ones."""
        self.allocated = max(self.allocated, allocated)
        self.reserved = max(self.reserved, reserved)
        self.active = max(self.active, active)


def address_of(event: Event) -> Any:
    """Return the address of an event; an oom event has the bytes that were free on the device in its place."""
    if "addr" in event:
        return event["addr"]
    return event.get("device_free", UNKNOWN_FREE if event["action"] == "oom" else 0)


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

    def note(self, action: str, address: int, size: int, requested: int, stream: int) -> None:
        """Add a row with these values; its other columns are filled in later."""
        self.action.append(action)
        self.address.append(address)
        self.size_bytes.append(size)
        self.requested_bytes.append(requested)
        self.stream.append(unsigned(stream))


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
        self.num_strays = self.stray_bytes = 0
        """Events that do not fit those before, and their bytes: their block is not where it should be."""
        self.peaks: dict[int, Peaks] = {}
        """Peaks by span; the caller removes those of a span that ended, after using them."""
        self._used: dict[int, tuple[int, str]] = {}
        self._waiting: set[int] = set()
        """Blocks whose free is requested and not completed, because other streams may still use them."""
        self._handlers: dict[str, Handler] = {
            "alloc": self._alloc,
            "free_requested": self._free_requested,
            "free_completed": self._free_completed,
        }

    def prime(self, segments: Iterable[Segment], t_ns: int) -> Columns:
        """Start from what was held before the first event; host meters do not count it: there are no rows."""
        return Columns()

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Take the settings that decide sizes, as a snapshot names them."""

    def feed(self, events: Iterable[Event]) -> Columns:
        """Follow `events`, in the order in which they happened; returns them as columns."""
        events = events if isinstance(events, list) else list(events)
        first = self.num_events
        self.num_events += len(events)
        columns = Columns(
            seq=list(range(first, self.num_events)),
            t_ns=[event["time_us"] * 1000 for event in events],
            action=[event["action"] for event in events],
            requested_bytes=[event["size"] for event in events],
            address=[address_of(event) for event in events],
            stream=[event["stream"] for event in events],
            span_id=_spans([event.get("user_metadata", "") for event in events]),
        )
        if self._stack_of is not None:
            columns.stack_id = [self._stack_of(event) for event in events]
        self._follow(columns)
        return columns

    def follow(self, columns: Columns) -> None:
        """Follow events whose action, address, requested bytes and span are columns; add size and category."""
        self.num_events += len(columns.action)
        self._follow(columns)

    def _follow(self, columns: Columns) -> None:
        """Fill in what each event counts for, and the peaks. Most time is spent in this loop."""
        handlers, note_size, note_category = (
            self._handlers,
            columns.size_bytes.append,
            columns.category.append,
        )
        last, peaks = -1, Peaks()
        for action, address, requested, span_id in zip(
            columns.action, columns.address, columns.requested_bytes, columns.span_id, strict=True
        ):
            handler = handlers.get(action)
            size, category = (requested, None) if handler is None else handler(address, requested, span_id)
            note_size(size)
            note_category(category)
            if span_id != last:
                peaks, last = self.peaks.get(span_id) or self.peaks.setdefault(span_id, Peaks()), span_id
            allocated, reserved, active = self.allocated, self.reserved, self.active
            if allocated > peaks.allocated:
                peaks.allocated = allocated
                if allocated > self.allocated_peak:
                    self.allocated_peak = allocated
            if reserved > peaks.reserved:
                peaks.reserved = reserved
                if reserved > self.reserved_peak:
                    self.reserved_peak = reserved
            if active > peaks.active:
                peaks.active = active
                if active > self.active_peak:
                    self.active_peak = active

    def _alloc(self, address: int, requested: int, span_id: int) -> Counted:
        if address in self._used:
            self._lose(address)
        self._reserve(requested)
        return self._use(address, requested, span_id)

    def _lose(self, address: int) -> None:
        """A block is made where one is in use: the events that freed that one are missing."""
        size, _ = self._used[address]
        self._stray(size)
        if address not in self._waiting:
            self._free_requested(address, size, 0)
        self._free_completed(address, size, 0)

    def _stray(self, size: int) -> None:
        self.num_strays += 1
        self.stray_bytes += size

    def _use(self, address: int, size: int, span_id: int) -> Counted:
        category = self._category_of(span_id)
        self._used[address] = (size, category)
        self.num_allocs += 1
        self.allocated += size
        self.active += size
        return size, category

    def _free_requested(self, address: int, requested: int, span_id: int) -> Counted:
        size, category = self._used.get(address, (0, None))
        if category is None or address in self._waiting:
            self._stray(requested)
            return requested, None
        self._waiting.add(address)
        self.allocated -= size
        return size, category

    def _free_completed(self, address: int, requested: int, span_id: int) -> Counted:
        size, category = self._used.pop(address, (0, None))
        if category is None:
            self._stray(requested)
            return requested, None
        self._waiting.discard(address)
        self.active -= size
        self._release(address, size)
        return size, category

    def _reserve(self, size: int) -> None:
        """All reserved memory is in use: there is no cache."""
        self.reserved += size

    def _release(self, address: int, size: int) -> None:
        self.reserved -= size


class BlockReplay(Replay):
    """Follows one device's caching allocator.

    Args:
        rules: for sizes, until configure() gets settings.
        category_of: category of what is allocated in a span.
        stack_of: number of an event's Python stack, where stacks are taken.
    """

    def __init__(
        self,
        *,
        rules: Rules | None = None,
        category_of: Callable[[int], str] = lambda span_id: "activation",
        stack_of: Callable[[Event], int | None] | None = None,
    ) -> None:
        super().__init__(category_of=category_of, stack_of=stack_of)
        self.rules = rules or Rules()
        """The rules under the last settings."""
        self.decided: Mapping[int, int] = {}
        """Bytes of allocations, by number, where the settings alone give another size (see block_sizes.py)."""
        self.blocks = FreeBlocks()
        """The free blocks."""
        self._handlers |= {
            "segment_alloc": self._segment_alloc,
            "segment_free": self._segment_free,
            "segment_map": self._segment_map,
            "segment_unmap": self._segment_unmap,
        }

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Take the rules from the allocator's settings, as a snapshot names them."""
        self.rules = self.rules.under(settings)

    def prime(self, segments: Iterable[Segment], t_ns: int) -> Columns:
        """Start from what the allocator held before the first event.

        Args:
            segments: of a snapshot.
            t_ns: when the first event was, or recording began.

        Returns:
            Rows that lead from nothing to what was held, so that curves begin at the right height. Their category is
            "before", and their seq is below zero, because they are no events.
        """
        columns = Columns()
        for segment in segments:
            self._prime_segment(segment, columns)
        num = len(columns.action)
        columns.seq = list(range(-num, 0))
        columns.t_ns, columns.span_id, columns.category = [t_ns] * num, [0] * num, [BEFORE] * num
        columns.stack_id = [None] * num if self._stack_of is not None else []
        self.allocated_peak = max(self.allocated_peak, self.allocated)
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        self.active_peak = max(self.active_peak, self.active)
        return columns

    def _prime_segment(self, segment: Segment, columns: Columns) -> None:
        stream = segment.get("stream", 0)
        is_expandable = segment.get("is_expandable", False)
        address, total = unsigned(segment["address"]), segment["total_size"]
        columns.note("segment_map" if is_expandable else "segment_alloc", address, total, total, stream)
        self.reserved += total
        if not is_expandable:
            self.blocks.fence(address, total)
        for block in segment["blocks"]:
            address, size = unsigned(block["address"]), block["size"]
            if block["state"] == "inactive":
                self.blocks.give(address, size)
                continue
            requested = block.get("requested_size", size)
            self._used[address] = (size, BEFORE)
            columns.note("alloc", address, size, requested, stream)
            self.active += size
            if block["state"] == "active_allocated":
                self.allocated += size
            else:
                self._waiting.add(address)
                columns.note("free_requested", address, size, requested, stream)

    def used_sizes(self) -> Iterator[tuple[int, int]]:
        """Address and bytes of every block in use."""
        return ((address, size) for address, (size, _) in self._used.items())

    def _alloc(self, address: int, requested: int, span_id: int) -> Counted:
        if address in self._used:
            self._lose(address)
        available = self.blocks.take(address)
        size = self.decided.get(self.num_allocs, 0) if self.decided else 0
        if not size or size > available:
            wanted = self.rules.rounded(requested)
            size = wanted if self.rules.splits(wanted, available - wanted) else available
            if available < wanted:
                # Recording began after this block's segment was made, or an event was lost.
                self._stray(wanted)
                size = wanted
        if size < available:
            self.blocks.give(address + size, available - size)
        return self._use(address, size, span_id)

    def _release(self, address: int, size: int) -> None:
        self.blocks.merge(address, size)

    def _segment_alloc(self, address: int, requested: int, span_id: int) -> Counted:
        self.reserved += requested
        if self.blocks.take(address):
            self._stray(requested)  # the event that gave an earlier one back is missing
        self.blocks.fence(address, requested)
        self.blocks.give(address, requested)
        return requested, None

    def _segment_free(self, address: int, requested: int, span_id: int) -> Counted:
        self.reserved -= requested
        if self.blocks.take(address) != requested:
            self._stray(requested)
        self.blocks.unfence(address, requested)
        return requested, None

    def _segment_map(self, address: int, requested: int, span_id: int) -> Counted:
        self.reserved += requested
        self.blocks.merge(address, requested)
        return requested, None

    def _segment_unmap(self, address: int, requested: int, span_id: int) -> Counted:
        self.reserved -= requested
        if not self.blocks.cut(address, requested):
            self._stray(requested)
        return requested, None


class FreeBlocks:
    """The free blocks of one device's segments, by address."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        """Bytes of each free block, by its address."""
        self._by_end: dict[int, int] = {}
        self._fences: dict[int, int] = {}
        """How many segments that cannot grow begin or end at an address."""

    def copy(self) -> "FreeBlocks":
        """Return an independent copy."""
        other = FreeBlocks()
        other.sizes, other._by_end, other._fences = dict(self.sizes), dict(self._by_end), dict(self._fences)
        return other

    def fence(self, address: int, size: int) -> None:
        """Add a segment that cannot grow: no block reaches across its ends, though segments may lie side by side."""
        for end in (address, address + size):
            self._fences[end] = self._fences.get(end, 0) + 1

    def unfence(self, address: int, size: int) -> None:
        """Remove a segment that cannot grow."""
        for end in (address, address + size):
            if self._fences.get(end, 0) > 1:
                self._fences[end] -= 1
            else:
                self._fences.pop(end, None)

    def is_fenced(self, address: int) -> bool:
        """Whether blocks on either side of `address` lie in different segments."""
        return address in self._fences

    def give(self, address: int, size: int) -> None:
        """Add a free block that has no free neighbour to join."""
        self.sizes[address] = size
        self._by_end[address + size] = address

    def take(self, address: int) -> int:
        """Remove the free block that begins at `address`, and return its bytes; 0: there is none."""
        size = self.sizes.pop(address, 0)
        # Where events are missing, ranges may overlap: another block may end there.
        if size and self._by_end.get(address + size) == address:
            del self._by_end[address + size]
        return size

    def ending_at(self, address: int) -> int | None:
        """Return where the free block begins that ends at `address`; None: there is none."""
        return self._by_end.get(address)

    def merge(self, address: int, size: int) -> tuple[int, int]:
        """A range becomes free: it joins the free neighbours of its own segment; returns what it became."""
        sizes, by_end, fences = self.sizes, self._by_end, self._fences
        after = address + size
        if after in sizes and after not in fences:
            size += sizes.pop(after)
        if address in by_end and address not in fences:
            start = by_end.pop(address)
            size += address - start
            address = start
        sizes[address] = size
        by_end[address + size] = address
        return address, size

    def around(self, address: int) -> int | None:
        """Return where the free block begins that contains `address`; None: there is none. Slow."""
        if address in self.sizes:
            return address
        return next((start for start, size in self.sizes.items() if start < address < start + size), None)

    def cut(self, address: int, size: int) -> bool:
        """Remove a range from a free block: whole pages are unmapped, what lies before and after them stays mapped."""
        start = self.around(address)
        if start is None or address + size > start + self.sizes[start]:
            return False
        end = start + self.take(start)
        if start < address:
            self.give(start, address - start)
        if address + size < end:
            self.give(address + size, end - address - size)
        return True


def _spans(stamps: list[str]) -> list[int]:
    """Return the spans that events were stamped with; 0: the stamp is another text, or empty."""
    known = {stamp: int(stamp) if stamp.isdecimal() else 0 for stamp in set(stamps)}
    return [known[stamp] for stamp in stamps]


def unsigned(value: int) -> int:
    """Return an address or a handle as torch counts them: early versions write those of the upper half as negative."""
    return value if value >= 0 else value + 2**64
