"""torch's CUDA caching allocator, from requests alone: which block each gets, and what the device is asked for.

    allocator = CachingAllocator(Rules(expandable_segments=True), device_bytes=24 * GIB)
    weight = allocator.alloc(4 * MIB)                   # OutOfDeviceMemory: not even without the cache
    allocator.free(weight)
    allocator.empty_cache()
    allocator.reserved_peak
    columns = allocator.take_events()                   # what torch would have recorded; a replay follows it

The events are those that torch records of the same requests, in the same order, so BlockReplay finds the same curves in
them and they fill the allocs table of a run that was predicted. Sizes, splitting and the size of segments: rules.py;
free blocks and how they join: replay.FreeBlocks. What nobody can know without the device is where it puts a segment:
addresses.py says where it probably does. It matters only where free blocks of the same size lie in segments that do
not grow.

Streams that pass, pools, settings that change and a limit of the process are for programs that run on it; requests that
were recorded need none of them.

Not modelled: a segment that grows has addresses without end (torch reserves 9/8 of the device for it); the capture of
graphs (a request names its pool); MemPool(use_on_oom=True).

Source: c10/cuda/CUDACachingAllocator.cpp of torch 2.11 (malloc, free, process_events, get_free_block, alloc_block,
release_available_cached_blocks, release_cached_blocks, garbage_collect_cached_blocks).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ray_memprof.allocator.addresses import DeviceAddresses, DriverAddresses
from ray_memprof.allocator.doubt import DEFAULT_POOL, Pool
from ray_memprof.allocator.growing_segments import GROWING_FROM, GrowingSegments
from ray_memprof.allocator.replay import UNKNOWN_FREE, Columns, FreeBlocks
from ray_memprof.allocator.rules import SMALL_BYTES, Rules
from ray_memprof.allocator.sorted_blocks import SortedBlocks


class OutOfDeviceMemory(Exception):
    """A request that does not fit, even after all that could be given back was given back.

    Attributes:
        wanted: bytes, after rounding.
        free_bytes: of the device at that moment; UNKNOWN_FREE: only the process has a limit.
    """

    def __init__(self, wanted: int, free_bytes: int) -> None:
        super().__init__(f"{wanted:,} bytes do not fit on the device, of which {free_bytes:,} are free")
        self.wanted, self.free_bytes = wanted, free_bytes


@dataclass(slots=True, eq=False)
class Block:
    """A block in use."""

    address: int
    size: int
    """Bytes that it takes."""
    requested: int
    """Bytes that were asked for."""
    cache: SortedBlocks
    streams: set[int] = field(default_factory=set)
    """Other streams that use it."""
    num_waits: int = 0
    """How many streams must pass before it is free; its free is requested."""


@dataclass(slots=True)
class _PoolKind:
    """What is special about a pool of the program's own."""

    splits: bool = True
    grows: bool = True
    is_freeable: bool = False
    """Whether nothing uses it any more, so that its unused segments are given back with the cache."""


_PLAIN_POOL = _PoolKind()


class CachingAllocator:
    """The allocator of one device.

    Args:
        rules: its settings; configure() changes them at run time.
        device_bytes: what the device has for segments, without all that is outside of them; None: no limit.
        allowed_bytes: what torch.cuda.set_per_process_memory_fraction leaves; None: it was not called.
        addresses: where the device puts segments that do not grow.
        keeps_events: False: take_events() has none, and they take no memory.
    """

    def __init__(
        self,
        rules: Rules | None = None,
        *,
        device_bytes: int | None = None,
        allowed_bytes: int | None = None,
        addresses: DeviceAddresses | None = None,
        keeps_events: bool = True,
    ) -> None:
        self.device_bytes, self.allowed_bytes = device_bytes, allowed_bytes
        self.allocated = self.reserved = self.active = 0
        self.allocated_peak = self.reserved_peak = self.active_peak = 0
        self.num_retries = self.num_ooms = 0
        self._addresses = addresses or DriverAddresses()
        self._keeps_events, self._columns = keeps_events, Columns()
        self._used: dict[int, Block] = {}
        self._waiting: dict[Block, None] = {}
        """Blocks whose free is requested, and which other streams still use."""
        self._queues: dict[int, deque[Block]] = {}
        """Those that wait for a stream, in the order in which their free was requested."""
        self._passed: dict[int, int] = {}
        """How many of them a stream has passed since the last request."""
        self._free = FreeBlocks()
        self._growing = GrowingSegments(self._free)
        self._caches: dict[tuple[Pool, bool, int], SortedBlocks] = {}
        self._kinds: dict[Pool, _PoolKind] = {}
        self._segments: dict[int, int] = {}
        """Bytes of segments that do not grow, by address."""
        self._num_searches = 0
        """Searches of the large pool, which collection measures age by."""
        self._searched_at: dict[int, int] = {}
        """By address of a free block: the number of searches when it became free."""
        self.configure(rules or Rules())

    # ----------------------------------------------------------------------------
    # What a program asks for

    def configure(self, rules: Rules) -> None:
        """Take other settings, as torch.cuda.memory._set_allocator_settings does at run time."""
        self.rules = rules
        self._plain_rules = replace(rules, expandable_segments=False)
        self._collects = self.allowed_bytes is not None and rules.garbage_collection_fraction > 0

    def open_pool(self, pool: Pool, *, splits: bool = True, grows: bool = True) -> None:
        """Say what is special about a pool; one that nobody opened is like the default one.

        Args:
            pool: as torch numbers it.
            splits: False: MemPool(no_split=True).
            grows: False: the pool has an allocator of its own, whose segments never grow.
        """
        self._kinds[pool] = _PoolKind(splits, grows)

    def release_pool(self, pool: Pool) -> None:
        """Say that no graph and no program uses `pool` any more: empty_cache() gives its unused segments back."""
        self._kinds.setdefault(pool, _PoolKind()).is_freeable = True

    def alloc(self, requested: int, stream: int = 0, pool: Pool = DEFAULT_POOL) -> Block:
        """Return a block for `requested` bytes, which are more than 0: for none, torch asks for no block.

        Raises:
            OutOfDeviceMemory: the device is full; the allocator can go on.
        """
        if self._passed and pool == DEFAULT_POOL:
            self._take_back_passed()
        rules = self.rules if not self._kinds or self._kind(pool).grows else self._plain_rules
        wanted = rules.rounded(requested)
        is_small = wanted <= SMALL_BYTES
        cache = self._caches.get((pool, is_small, stream)) or self._new_cache(pool, is_small, stream)
        if self._collects and not is_small and pool == DEFAULT_POOL:
            self._num_searches += 1
        address = cache.take_best(wanted, rules, self._growing.unmapped)
        if address is None:
            address = self._from_device(cache, wanted, rules)
        size = self._free.take(address)
        rest = size - wanted
        if rest and rules.splits(wanted, rest) and (not self._kinds or self._kind(pool).splits):
            size = wanted
            self._free.give(address + wanted, rest)
            cache.add(address + wanted, rest)
            if self._collects:
                self._searched_at[address + wanted] = self._num_searches
        block = self._used[address] = Block(address, size, requested, cache)
        self.allocated += size
        self.active += size
        if self.active > self.active_peak:
            self.active_peak = self.active
        if self.allocated > self.allocated_peak:
            self.allocated_peak = self.allocated
        self._note("alloc", address, size, requested, stream)
        return block

    def record_stream(self, block: Block, stream: int) -> None:
        """A stream other than that of the request uses the block: its free waits until that stream has passed."""
        if stream != block.cache.stream:
            block.streams.add(stream)

    def free(self, block: Block) -> None:
        """Free a block: at once, or, if other streams use it, at a request after they have passed."""
        self._request_free(block)
        if not block.streams:
            self._complete_free(block)
            return
        self._waiting[block] = None
        block.num_waits = len(block.streams)
        for stream in sorted(block.streams):
            self._queues.setdefault(stream, deque()).append(block)

    def free_later(self, block: Block) -> None:
        """Free a block that other streams use, until complete() says otherwise: for requests that were recorded."""
        self._request_free(block)
        self._waiting[block] = None
        block.num_waits = 1

    def complete(self, block: Block) -> None:
        """End the wait of a block, unless it has ended because the cache was given back."""
        if block.num_waits:
            block.num_waits = 0
            del self._waiting[block]
            self._complete_free(block)

    def pass_stream(self, stream: int) -> None:
        """`stream` has done its work so far: what waits for it comes back at the next request, when torch looks."""
        if stream in self._queues:
            self._passed[stream] = len(self._queues[stream])

    def synchronize(self) -> None:
        """All streams have done their work so far, as after torch.cuda.synchronize()."""
        for stream in self._queues:
            self.pass_stream(stream)

    def empty_cache(self) -> None:
        """Wait for all streams, and give back what is unused: whole segments, and whole pages of those that grow."""
        for block in list(self._waiting):
            self.complete(block)
        self._queues.clear()
        self._passed.clear()
        self._give_back(DEFAULT_POOL, is_small=False)
        self._give_back(DEFAULT_POOL, is_small=True)
        for pool, kind in self._kinds.items():
            if kind.is_freeable:
                self._give_back(pool, is_small=True)
                self._give_back(pool, is_small=False)

    @property
    def peaks(self) -> tuple[int, int, int]:
        """The most allocated, reserved and active bytes since the beginning, or since reset_peaks()."""
        return self.allocated_peak, self.reserved_peak, self.active_peak

    def reset_peaks(self) -> None:
        """As torch.cuda.reset_peak_memory_stats()."""
        self.allocated_peak, self.reserved_peak, self.active_peak = self.allocated, self.reserved, self.active

    def take_events(self) -> Columns:
        """Return the events since the last call, with sizes; the times, spans and categories are the caller's."""
        taken, self._columns = self._columns, Columns()
        return taken

    @property
    def num_waiting_events(self) -> int:
        """Events that take_events() would return."""
        return len(self._columns.action)

    def _note(self, action: str, address: int, size: int, requested: int, stream: int) -> None:
        if self._keeps_events:
            self._columns.note(action, address, size, requested, stream)

    # ----------------------------------------------------------------------------
    # Blocks in use

    def _request_free(self, block: Block) -> None:
        self.allocated -= block.size
        self._note("free_requested", block.address, block.size, block.requested, block.cache.stream)

    def _complete_free(self, block: Block) -> None:
        del self._used[block.address]
        self.active -= block.size
        self._note("free_completed", block.address, block.size, block.requested, block.cache.stream)
        self._add_free(block.cache, block.address, block.size)

    def _take_back_passed(self) -> None:
        """Complete the frees for which streams have passed."""
        for stream, number in self._passed.items():
            queue = self._queues[stream]
            for _ in range(number):
                block = queue.popleft()
                if block.num_waits > 1:
                    block.num_waits -= 1
                else:
                    self.complete(block)
            if not queue:
                del self._queues[stream]
        self._passed.clear()

    # ----------------------------------------------------------------------------
    # Free blocks

    def _new_cache(self, pool: Pool, is_small: bool, stream: int) -> SortedBlocks:
        cache = self._caches[pool, is_small, stream] = SortedBlocks(pool, is_small, stream)
        return cache

    def _kind(self, pool: Pool) -> _PoolKind:
        return self._kinds.get(pool, _PLAIN_POOL)

    def _add_free(self, cache: SortedBlocks, address: int, size: int) -> tuple[int, int]:
        """A range becomes free and joins its free neighbours; returns the block that it became."""
        start, total = self._free.merge(address, size)
        if total != size:
            behind = address + size
            if start != address:
                cache.remove(start, address - start)
            if start + total != behind:
                cache.remove(behind, start + total - behind)
        cache.add(start, total)
        if self._collects:
            self._searched_at[start] = self._num_searches
        return start, total

    # ----------------------------------------------------------------------------
    # From the device

    def _from_device(self, cache: SortedBlocks, wanted: int, rules: Rules) -> int:
        """Return the address of a free block, in no cache, from the device; unused memory is given back for it."""
        if self._collects:
            self._collect()
        address = self._new_block(cache, wanted, rules)
        if address is None and self._give_back_large(cache, wanted):
            address = self._new_block(cache, wanted, rules)
        if address is None and cache.pool == DEFAULT_POOL:
            self.empty_cache()
            self.num_retries += 1
            address = self._new_block(cache, wanted, rules)
        if address is None:
            self.num_ooms += 1
            free_bytes = UNKNOWN_FREE if self.device_bytes is None else self.device_bytes - self.reserved
            self._note("oom", free_bytes, wanted, wanted, cache.stream)
            raise OutOfDeviceMemory(wanted, free_bytes)
        return address

    def _new_block(self, cache: SortedBlocks, wanted: int, rules: Rules) -> int | None:
        size = rules.segment_bytes(wanted)
        if self.allowed_bytes is not None and self.reserved + size > self.allowed_bytes:
            return None
        if rules.expandable_segments:
            return self._map_block(cache, wanted)
        if not self._reserve(size):
            return None
        address = self._addresses.take(size)
        self._free.fence(address, size)
        self._free.give(address, size)
        self._segments[address] = size
        self._note("segment_alloc", address, size, size, cache.stream)
        return address

    def _reserve(self, size: int) -> bool:
        if self.device_bytes is not None and self.reserved + size > self.device_bytes:
            return False
        self.reserved += size
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        return True

    def _map_block(self, cache: SortedBlocks, wanted: int) -> int | None:
        """Give pages to the lowest addresses where free and unmapped ranges are large enough together."""
        growing = self._growing
        start = growing.lowest(cache.edges, wanted, self.rules.page_bytes(is_small=cache.is_small))
        size = self._free.sizes.get(start, 0)
        while size < wanted:
            edge = start + size
            page = growing.page_at(edge)
            length = min(growing.unmapped[edge], -(-(wanted - size) // page) * page)
            if not self._reserve(length):
                return None
            growing.map(cache.edges, edge, length)
            start, size = self._add_free(cache, edge, length)
            self._note("segment_map", edge, length, length, cache.stream)
        cache.remove(start, size)
        return start

    # ----------------------------------------------------------------------------
    # Back to the device

    def _give_back(self, pool: Pool, *, is_small: bool) -> None:
        """Give back whole segments, then whole pages of those that grow."""
        growing: list[tuple[SortedBlocks, int, int]] = []
        for cache in self._by_stream(pool, is_small):
            for address, size in cache:
                if address >= GROWING_FROM:
                    growing.append((cache, address, size))
                elif self._is_whole(address, size):
                    self._free_segment(cache, address, size)
        for cache, address, size in growing:
            self._unmap(cache, address, size)

    def _by_stream(self, pool: Pool, is_small: bool) -> list[SortedBlocks]:
        found = [one for one in self._caches.values() if one.pool == pool and one.is_small == is_small]
        return sorted(found, key=lambda cache: cache.stream)

    def _is_whole(self, address: int, size: int) -> bool:
        """Whether a free block is all of a segment, of those that do not grow."""
        return self._segments.get(address) == size

    def _free_segment(self, cache: SortedBlocks, address: int, size: int) -> None:
        cache.remove(address, size)
        self._free.take(address)
        self._free.unfence(address, size)
        del self._segments[address]
        self._addresses.give_back(address, size)
        self.reserved -= size
        self._note("segment_free", address, size, size, cache.stream)

    def _unmap(self, cache: SortedBlocks, address: int, size: int) -> None:
        """Give back the whole pages of a free block."""
        first, last = self._growing.whole_pages(address, size)
        if last <= first:
            return
        cache.remove(address, size)
        self._free.take(address)
        for start, end in ((address, first), (last, address + size)):
            if end > start:
                self._free.give(start, end - start)
                cache.add(start, end - start)
        self._growing.unmap(cache.edges, first, last - first)
        self.reserved -= last - first
        self._note("segment_unmap", first, last - first, last - first, cache.stream)

    def _give_back_large(self, cache: SortedBlocks, wanted: int) -> bool:
        """Give back segments that a limit of splitting keeps whole, but only as many as the request needs."""
        limit = self.rules.max_split_bytes
        if limit is None:
            return False
        needed = max(wanted, limit)
        smaller, larger = cache.from_size(needed)
        if larger and self._is_whole(*larger[0]):
            self._free_segment(cache, *larger[0])
            return True
        given = 0
        for address, size in reversed(smaller):
            if given >= needed or size < limit:
                break
            if self._is_whole(address, size):
                given += size
                self._free_segment(cache, address, size)
        return given >= needed

    def _collect(self) -> None:
        """Give back segments that have been unused for longer than the average, until enough are."""
        assert self.allowed_bytes is not None
        target = self.reserved - int(self.rules.garbage_collection_fraction * self.allowed_bytes)
        found = [
            (cache, address, size, self._num_searches - self._searched_at.get(address, 0))
            for cache in self._by_stream(DEFAULT_POOL, is_small=False)
            for address, size in cache
            if self._is_whole(address, size)
        ]
        given = 0
        while found and given < target:
            # The average is that of the beginning of a round, and all that are older go: there is always one.
            average = sum(age for *_, age in found) / len(found)
            for cache, address, size, age in found:
                if age >= average:
                    given += size
                    self._free_segment(cache, address, size)
            found = [one for one in found if one[3] < average]

    # ----------------------------------------------------------------------------
    # What is where

    def segments(self) -> list[dict[str, Any]]:
        """Return the segments by address, as BlockReplay.prime() takes them; ranges of one that grows are several."""
        ranges = [(start, size, False) for start, size in self._segments.items()]
        ranges += [(start, size, True) for start, size in self._growing.mapped()]
        owners = {address: cache for cache in self._caches.values() for address, _ in cache}
        owners |= {block.address: block.cache for block in self._used.values()}
        return [
            {
                "address": start,
                "total_size": size,
                "stream": owners[start].stream,
                "is_expandable": grows,
                "pool": owners[start].pool,
                "blocks": list(self._blocks(start, start + size)),
            }
            for start, size, grows in sorted(ranges)
        ]

    def _blocks(self, at: int, end: int) -> Iterator[dict[str, Any]]:
        while at < end:
            block, size = self._used.get(at), self._free.sizes.get(at, 0)
            if block is None:
                yield {"address": at, "size": size, "state": "inactive"}
            else:
                size = block.size
                state = "active_pending_free" if block in self._waiting else "active_allocated"
                yield {"address": at, "size": size, "requested_size": block.requested, "state": state}
            at += size
