"""Finds from the events what each block really took, where the allocator's settings at the end do not tell it.

    sizes = BlockSizes(replay, doubt, pools)
    sizes.start(segments_at_start)
    sizes.follow(actions, addresses, requests)                 # every event, in order
    found = sizes.conclude(final_segments)
    replay.decided = found.decided                             # then feed the replay
    found.inexact_bytes

    replay.decided = decide(replay, events, segments_after, was_expandable)     # while a program runs

A request takes the front of a free block. Whether it gives the rest back depends on the setting expandable_segments at
that moment (torch.cuda.memory._set_allocator_settings changes it at run time), and on the pool
(MemPool(no_split=True)). A snapshot has only the settings at its end, and does not say which pools split. But events
show what happened to the rest:

* a block begins in the rest while the first block lives: the rest was given back, and the size of the first is known;
* a block begins behind the rest, in free space that would have joined the rest: the rest was not given back;
* at the end, the segments have the size of every block;
* an allocation right after its own segment_alloc (segment_map): the setting was off (on) at that moment;
* a pool splits for all of its life or never: what proves it for one block proves it for all blocks of the pool.

When a block is freed, the rest joins it again. So a block that proves nothing changes nothing later on: only its own
size is not known, by at most the rest. These bytes, of all such blocks that lived at the same time, are inexact_bytes.
"""

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ray_memprof.allocator.doubt import DEFAULT_POOL, Doubt, Pool, pool_of
from ray_memprof.allocator.replay import BlockReplay, Event, FreeBlocks, Segment
from ray_memprof.allocator.rules import MIN_BLOCK_BYTES, SMALL_BYTES, exact_size

_MOST_CONTRADICTIONS = 1000
"""After so many contradictions the search stops: the events are not those of one allocator."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out."""

    decided: Mapping[int, int]
    """Bytes of allocations, by their number, where the settings give another size."""
    inexact_bytes: int
    """The most, at any moment, by which blocks of unknown size can differ from what is counted."""
    num_untold: int
    """The number of such blocks."""
    is_contradicted: bool
    """The events proved something impossible."""


@dataclass(slots=True, eq=False)
class _Segment:
    """A segment; for one that can grow, all its ranges that touch, or once touched."""

    start: int
    end: int
    is_expandable: bool
    pool: Pool | None
    """None: not known."""
    splits: bool | None = None
    """Whether its pool splits blocks; None: no event has shown it yet."""


@dataclass(slots=True, eq=False)
class _Block:
    """A block in use. It took from `least` to `most` bytes; both are equal to `size` once that is known."""

    number: int
    """Of its allocation; -1: it was there before."""
    address: int
    size: int
    least: int
    most: int
    plain: int
    """Its size by the settings alone."""
    event: int
    """Number of the event that made it."""
    segment: _Segment | None = None
    by_pool: bool = False
    """Whether only its pool decides its size."""


@dataclass(slots=True)
class BlockSizes:
    """Follows the blocks of one device as a replay does; a block whose size is not known yet is called open.

    Args:
        replay: has the settings, and the blocks when the events begin.
        doubt: what the settings do not tell.
        pools: of each segment_alloc and segment_map, in order; empty: events do not name them.
    """

    replay: BlockReplay
    doubt: Doubt
    pools: Iterator[Pool | None] = field(default_factory=lambda: iter(()))
    _free: FreeBlocks = field(default_factory=FreeBlocks)
    _used: dict[int, _Block] = field(default_factory=dict)
    _left: dict[int, _Block] = field(default_factory=dict)
    """Open blocks, by the address where the rest begins."""
    _left_starts: list[int] = field(default_factory=list)
    """Those addresses, in order."""
    _behind: dict[int, _Block] = field(default_factory=dict)
    """Open blocks, by the address where the rest ends."""
    _starts: list[int] = field(default_factory=list)
    _segments: dict[int, _Segment] = field(default_factory=dict)
    """By the addresses in _starts."""
    _all_segments: list[_Segment] = field(default_factory=list)
    """All segments, also those that are gone."""
    _untold: list[tuple[_Block, int]] = field(default_factory=list)
    """Blocks that were freed while open, and the number of that event; their pool may still show their size."""
    _open_for_good: "array[int]" = field(default_factory=lambda: array("q"))
    """Blocks whose size can never be known: first event, last event, and by how many bytes the size may be wrong."""
    _decided: dict[int, int] = field(default_factory=dict)
    _num_events: int = 0
    _num_allocs: int = 0
    _is_on: bool | None = None
    """The setting expandable_segments, as an event last showed it; None: none has."""
    _told_at: int = -2
    """Number of the event that showed it."""
    _num_contradictions: int = 0

    def start(self, segments: Iterable[Segment]) -> None:
        """Begin with what was held before the first event."""
        for segment in segments:
            start, size, is_expandable = segment["address"], segment["total_size"], segment["is_expandable"]
            self._add(_Segment(start, start + size, is_expandable, segment.get("pool")))
            if not is_expandable:
                self._free.fence(start, size)
            for block in segment["blocks"]:
                address, size = block["address"], block["size"]
                if block["state"] == "inactive":
                    self._free.give(address, size)
                else:
                    self._used[address] = _Block(-1, address, size, size, size, size, 0)

    def start_live(self, segments: Iterable[Segment]) -> None:
        """Begin where the replay is now; `segments` are those after the events that follow."""
        for segment in segments:
            start, end = segment["address"], segment["address"] + segment["total_size"]
            pool = pool_of(segment.get("segment_pool_id"))
            self._add(_Segment(start, end, segment.get("is_expandable", False), pool))
        self._free = self.replay.blocks.copy()
        for address, size in self.replay.used_sizes():
            self._used[address] = _Block(-1, address, size, size, size, size, 0)
        self._num_allocs = self.replay.num_allocs

    def follow(
        self,
        actions: Sequence[str],
        addresses: Sequence[int],
        requests: Sequence[int],
    ) -> None:
        """Take the next events."""
        for action, address, size in zip(actions, addresses, requests, strict=True):
            self._num_events += 1
            if action == "alloc":
                self._alloc(address, size)
            elif action == "free_completed":
                self._free_block(address)
            elif action == "segment_alloc":
                self._new_segment(address, size, next(self.pools, None))
            elif action == "segment_map":
                self._map(address, size, next(self.pools, None))
            elif action == "segment_free":
                self._free.take(address)
                self._free.unfence(address, size)
            elif action == "segment_unmap":
                if (owner := self._owner_of_left(address)) is not None:
                    self._settle(owner, owner.least)
                self._free.cut(address, size)

    # ----------------------------------------------------------------------------
    # Segments

    def _add(self, segment: _Segment) -> None:
        if segment.start not in self._segments:
            insort(self._starts, segment.start)
        self._segments[segment.start] = segment
        self._all_segments.append(segment)

    def _segment_of(self, address: int) -> _Segment | None:
        at = bisect_right(self._starts, address)
        segment = self._segments[self._starts[at - 1]] if at else None
        return segment if segment is not None and address < segment.end else None

    def _new_segment(self, address: int, size: int, pool: Pool | None) -> None:
        self._add(_Segment(address, address + size, False, pool))
        self._free.take(address)
        self._free.fence(address, size)
        self._free.give(address, size)
        if pool == DEFAULT_POOL or not self.doubt.pools:
            self._is_on, self._told_at = False, self._num_events

    def _map(self, address: int, size: int, pool: Pool | None) -> None:
        before = self._segment_of(address - 1)
        if before is not None and before.is_expandable and pool in (None, before.pool):
            before.end = max(before.end, address + size)
        else:
            self._add(_Segment(address, address + size, True, pool))
        self._free.merge(address, size)
        self._is_on, self._told_at = True, self._num_events

    # ----------------------------------------------------------------------------
    # Blocks

    def _alloc(self, address: int, requested: int) -> None:
        if address in self._used:
            self._free_block(address)
        wanted = self.replay.rules.rounded(requested)
        available = self._available(address)
        block = self._made(address, wanted, available, requested)
        self._num_allocs += 1
        self._used[address] = block
        if block.least < block.most:
            self._open(block)
        if block.most < available:
            self._free.give(address + block.most, available - block.most)

    def _available(self, address: int) -> int:
        """Take the free block that begins at `address`, and use what that proves; return its bytes."""
        available = self._free.take(address)
        if not available:
            return self._from_left(address)
        owner = self._behind.get(address)
        if owner is not None and not self._free.is_fenced(address):
            # If the rest had been given back, it would have joined this free block, which would begin earlier.
            self._settle(owner, owner.most)
        return available

    def _from_left(self, address: int) -> int:
        """A block begins in a rest that another block may have kept; return the bytes that are free there."""
        owner = self._owner_of_left(address)
        if owner is None:
            return self._from_middle(address)
        if owner.address + owner.least != address and not self.doubt.size_rules:
            self._num_contradictions += 1
        self._settle(owner, address - owner.address)
        return self._free.take(address)

    def _owner_of_left(self, address: int) -> _Block | None:
        at = bisect_right(self._left_starts, address)
        owner = self._left[self._left_starts[at - 1]] if at else None
        return owner if owner is not None and address < owner.address + owner.most else None

    def _from_middle(self, address: int) -> int:
        """A block begins inside a free block: the block before took more than was thought; return the free bytes."""
        self._num_contradictions += 1
        if self._num_contradictions > _MOST_CONTRADICTIONS:
            return 0
        start = self._free.around(address)
        owner = next((one for one in self._used.values() if one.address + one.size == start), None)
        if start is None or owner is None:
            return 0
        end = start + self._free.take(start)
        self._note(owner, address - owner.address)
        return end - address

    def _made(self, address: int, wanted: int, available: int, requested: int) -> _Block:
        """Return the block of a request that took the front of `available` bytes."""
        rest = available - wanted
        if rest < 0:  # the events that made this space are missing, or sizes were rounded in another way
            self._num_contradictions += 1
            size = min(available, exact_size(requested)) or wanted
            return _Block(
                self._num_allocs, address, size, size, max(size, available), wanted, self._num_events
            )
        plain = wanted if self.replay.rules.splits(wanted, rest) else available
        block = _Block(self._num_allocs, address, plain, plain, plain, plain, self._num_events)
        if rest < MIN_BLOCK_BYTES:
            return block
        block.segment = segment = self._segment_of(address)
        if segment is not None and not segment.is_expandable and address != segment.start:
            segment.splits = True
        by_setting = self._by_setting(segment, wanted, rest)
        splits = by_setting is not False and self._by_pool(segment) is not False
        block.size = wanted if splits else available
        is_told = by_setting is not None and (by_setting is False or self._by_pool(segment) is not None)
        if by_setting is None:
            block.size = wanted if self._is_on or (self._is_on is None and plain == wanted) else available
        if self.doubt.everything or self.doubt.size_rules:
            block.least, block.most = exact_size(requested), self.doubt.most(wanted, rest)
            if block.size > block.most:
                block.size = wanted
        elif not is_told:
            block.least, block.most = wanted, available
            block.by_pool = by_setting is True
        else:
            block.least = block.most = block.size
            self._note(block, block.size)
        return block

    def _by_setting(self, segment: _Segment | None, wanted: int, rest: int) -> bool | None:
        """Whether a pool that splits gives `rest` back; None: the setting of this moment decides, and is not known."""
        if wanted <= SMALL_BYTES:
            return True
        if rest > SMALL_BYTES and self.replay.rules.may_split(wanted):
            return True
        if self._told_at == self._num_events - 1:
            # The segment was made for this allocation and shows the setting; other pools may never be expandable.
            return self._is_on
        is_other = segment is not None and not segment.is_expandable and self._is_other(segment)
        if self.doubt.setting or (is_other and self.replay.rules.expandable_segments):
            return None
        return self.replay.rules.expandable_segments

    def _is_other(self, segment: _Segment) -> bool:
        return self.doubt.pools and segment.pool != DEFAULT_POOL

    def _by_pool(self, segment: _Segment | None) -> bool | None:
        """Whether the pool splits; None: not known yet."""
        if segment is None:  # the segment was given back before its pool could be read
            return None if self.doubt.pools else True
        return segment.splits if self._is_other(segment) else True

    def _free_block(self, address: int) -> None:
        block = self._used.pop(address, None)
        if block is None:
            return
        size = block.size
        if block.least < block.most:
            self._close(block)
            if block.by_pool:
                self._untold.append((block, self._num_events))
            else:
                self._leave(block, self._num_events)
            size = block.most
        self._free.merge(address, size)

    def _open(self, block: _Block) -> None:
        start, end = block.address + block.least, block.address + block.most
        if start not in self._left:
            insort(self._left_starts, start)
        self._left[start] = self._behind[end] = block

    def _leave(self, block: _Block, ended: int) -> None:
        """No event shows what this block took, and none will."""
        off = max(block.size - block.least, block.most - block.size)
        self._open_for_good.extend((block.event, ended, off))
        self._note(block, block.size)

    def _close(self, block: _Block) -> None:
        start, end = block.address + block.least, block.address + block.most
        # Where events are missing, blocks may overlap, and another one may have taken the place.
        if self._left.get(start) is block:
            del self._left[start], self._left_starts[bisect_left(self._left_starts, start)]
        if self._behind.get(end) is block:
            del self._behind[end]

    def _settle(self, block: _Block, size: int) -> None:
        """An open block took `size` bytes: the rest of it is free."""
        self._close(block)
        wanted, most = block.least, block.most
        block.least = block.most = size
        self._note(block, size)
        if block.segment is not None and block.by_pool:
            block.segment.splits = True if size == wanted else False if size == most else None
        if size < most:
            self._free.merge(block.address + size, most - size)

    def _note(self, block: _Block, size: int) -> None:
        block.size = size
        if block.number >= 0 and size != block.plain:
            self._decided[block.number] = size

    # ----------------------------------------------------------------------------
    # The end

    def conclude(self, final: Iterable[Segment]) -> Found:
        """Use the segments at the end too; return what was found, and how much stays open."""
        for segment in final:
            for block in segment["blocks"]:
                if block["state"] != "inactive":
                    self._survived(block["address"], block["size"])
            at_end = self._segment_of(segment["address"])
            if at_end is not None and at_end.pool is None:
                at_end.pool = segment.get("pool")
        self._untold += [(block, self._num_events) for block in list(self._left.values())]
        by_pool = self._pools()
        for block, ended in self._untold:
            splits = None
            if block.by_pool and block.segment is not None:
                splits = block.segment.splits
                if splits is None and block.segment.pool is not None:
                    splits = by_pool.get(block.segment.pool)
            if splits is None:
                self._leave(block, ended)
            else:
                self._note(block, block.least if splits else block.most)
        return Found(
            self._decided,
            _most(self._open_for_good),
            len(self._open_for_good) // 3,
            self._num_contradictions > 0,
        )

    def _survived(self, address: int, size: int) -> None:
        block = self._used.get(address)
        if block is None or block.size == size == block.least == block.most:
            return
        if block.least <= size <= block.most and block.least < block.most:
            if size not in (block.least, block.most) and not self.doubt.size_rules:
                self._num_contradictions += 1
            self._settle(block, size)
        elif size >= block.least:
            self._num_contradictions += 1
            self._note(block, size)

    def _pools(self) -> dict[Pool, bool]:
        """Return for each pool whether it splits, if one of its segments has shown it."""
        found: dict[Pool, bool] = {DEFAULT_POOL: True}
        for segment in self._all_segments:
            if segment.pool is not None and segment.splits is not None:
                found.setdefault(segment.pool, segment.splits)
        return found


def decide(
    replay: BlockReplay, events: Sequence[Event], segments: Sequence[Segment], was_expandable: bool
) -> Mapping[int, int]:
    """Return the bytes of allocations among `events`, by number, where the settings at their end give another size.

    Args:
        replay: has the state before the events, and the settings after them.
        events: not fed to the replay yet.
        segments: of a snapshot after the last event.
        was_expandable: the setting expandable_segments before the first event.
    """
    actions = [event["action"] for event in events]
    grows = {"segment_map" in actions, *(segment.get("is_expandable", False) for segment in segments)}
    pools = {pool_of(segment.get("segment_pool_id")) for segment in segments} - {None, DEFAULT_POOL}
    is_switched = was_expandable != replay.rules.expandable_segments or (
        len(grows) > 1 and "segment_alloc" in actions
    )
    doubt = Doubt(setting=is_switched, pools=bool(pools))
    if not doubt:
        return {}
    made = [event for event in events if event["action"] in ("segment_alloc", "segment_map")]
    sizes = BlockSizes(replay, doubt, (pool_of(event.get("pool_id")) for event in made))
    sizes.start_live(segments)
    sizes.follow(actions, [event.get("addr", 0) for event in events], [event["size"] for event in events])
    in_pools = [{**one, "pool": pool_of(one.get("segment_pool_id"))} for one in segments]
    return sizes.conclude(in_pools).decided


def _most(open_blocks: "array[int]") -> int:
    """Return the largest sum of bytes of blocks (first event, last event, bytes) that lived at the same time."""
    first, last, sizes = np.array(open_blocks, np.int64).reshape(-1, 3).T
    steps = np.concatenate((sizes, -sizes))
    # At the same event, blocks that end are sorted last: those that begin and those that end may both count there.
    order = np.lexsort((-steps, np.concatenate((first, last))))
    return int(np.cumsum(steps[order]).max(initial=0))
