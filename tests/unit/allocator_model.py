"""A caching allocator as torch describes its own, played by random histories, and the snapshot that it would leave.

Written from the description, not from the replay: blocks lie in lists, every search is a loop, nothing is merged by
address. It has what makes sizes hard to tell: a setting that is switched meanwhile, pools that split nothing or have an
allocator of their own, limits, roundings, several streams, frees that wait, and a cache that is given back.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KIB, MIB = 2**10, 2**20
SMALL, ROUND = MIB, 2 * MIB
SPACE = 2**36
"""Addresses that a segment which grows owns."""
Event = dict[str, Any]
Pool = tuple[int, int]
DEFAULT: Pool = (0, 0)


@dataclass(frozen=True)
class Version:
    """Which keys a version of torch writes."""

    name: str
    expandable: bool = True
    times: bool = True
    settings: bool = True
    pools: bool = True
    event_pools: bool = True
    user_pools: bool = True
    """Whether pools may split nothing, or have an allocator of their own."""


VERSIONS = (
    Version(
        "2.0", expandable=False, times=False, settings=False, pools=False, event_pools=False, user_pools=False
    ),
    Version("2.1", settings=False, pools=False, event_pools=False, user_pools=False),
    Version("2.4", event_pools=False, user_pools=False),
    Version("2.11", event_pools=False),
    Version("2.14"),
)


@dataclass
class Settings:
    """Of the allocator at one moment."""

    expandable: bool = False
    max_split: int | None = None
    divisions: int = 0
    """Steps between two powers of two; 0: none."""
    by_segment: bool = False
    """Whether the kind of the segment decides how a large block is split, in place of the setting of the moment."""


@dataclass(eq=False)
class Block:
    """A range of a segment."""

    address: int
    size: int
    requested: int = 0
    state: str = "inactive"


@dataclass(eq=False)
class Segment:
    """Blocks by address; one that grows has gaps between them."""

    base: int
    pool: Pool
    stream: int
    is_small: bool
    grows: bool
    blocks: list[Block] = field(default_factory=list)

    @property
    def page(self) -> int:
        return 2 * MIB if self.is_small else 20 * MIB


class Model:
    """The allocator.

    Args:
        settings: at the beginning.
        no_split: pools that split nothing.
        own: pools with an allocator of their own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        no_split: frozenset[Pool] = frozenset(),
        own: frozenset[Pool] = frozenset(),
    ) -> None:
        self.settings, self._no_split, self._own = settings, no_split, own
        self.conf = "expandable_segments:True" if settings.expandable else ""
        """What was set last."""
        self.events: list[Event] = []
        self.counters = [(0, 0, 0)]
        """Allocated, reserved and active bytes before each event, and after the last."""
        self.segments: list[Segment] = []
        self._allocated = self._reserved = self._active = 0
        self._next, self._next_growing = 2**45, 2**46
        self._waiting: list[tuple[Segment, Block]] = []
        self.used: list[tuple[Segment, Block]] = []

    def _tell(self, action: str, address: int, size: int, segment: Segment) -> None:
        self.events.append(
            {
                "action": action, "addr": address, "size": size, "stream": segment.stream,
                "time_us": 10 + len(self.events), "pool_id": segment.pool, "user_metadata": "",
            }
        )  # fmt: skip
        self.counters.append((self._allocated, self._reserved, self._active))

    # ----------------------------------------------------------------------------
    # Requests

    def rounded(self, size: int) -> int:
        steps = self.settings.divisions
        if steps > 1 and size > 512 * steps:
            power = 1
            while power * 2 <= size:
                power *= 2
            step = power // steps
            return size if size == power else -(-size // step) * step
        return max(512, -(-size // 512) * 512)

    def alloc(self, size: int, pool: Pool = DEFAULT, stream: int = 0) -> None:
        wanted = self.rounded(size)
        is_small = wanted <= SMALL
        found = self._find(wanted, pool, stream, is_small)
        if found is None:
            grows = self.settings.expandable and pool not in self._own
            found = (self._grow if grows else self._new)(wanted, pool, stream, is_small)
        segment, block = found
        rest = block.size - wanted
        if self._splits(segment, wanted, rest):
            at = segment.blocks.index(block)
            segment.blocks.insert(at + 1, Block(block.address + wanted, rest))
            block.size = wanted
        block.state, block.requested = "active_allocated", size
        self._allocated += block.size
        self._active += block.size
        self.used.append((segment, block))
        self._tell("alloc", block.address, size, segment)

    def _find(self, wanted: int, pool: Pool, stream: int, is_small: bool) -> tuple[Segment, Block] | None:
        limit = self.settings.max_split
        fits = []
        for segment in self.segments:
            if (segment.pool, segment.stream, segment.is_small) != (pool, stream, is_small):
                continue
            for block in segment.blocks:
                is_kept = limit is not None and block.size >= limit
                if block.state != "inactive" or block.size < wanted:
                    continue
                if is_kept and (wanted < limit or block.size >= wanted + 20 * MIB):  # type: ignore[operator]
                    continue
                fits.append((block.size, block.address, segment, block))
        if not fits:
            return None
        *_, segment, block = min(fits, key=lambda fit: fit[:2])
        return segment, block

    def _splits(self, segment: Segment, wanted: int, rest: int) -> bool:
        if segment.pool in self._no_split:
            return False
        fine = segment.grows if self.settings.by_segment else self.settings.expandable
        if segment.is_small or fine:
            return rest >= 512
        limit = self.settings.max_split
        return rest > SMALL and (limit is None or wanted < limit)

    def _new(self, wanted: int, pool: Pool, stream: int, is_small: bool) -> tuple[Segment, Block]:
        size = 2 * MIB if is_small else 20 * MIB if wanted < 10 * MIB else -(-wanted // ROUND) * ROUND
        segment = Segment(self._next, pool, stream, is_small, grows=False)
        self._next += size  # side by side, as cudaMalloc often gives them
        block = Block(segment.base, size)
        segment.blocks.append(block)
        self.segments.append(segment)
        self._reserved += size
        self._tell("segment_alloc", block.address, size, segment)
        return segment, block

    def _grow(self, wanted: int, pool: Pool, stream: int, is_small: bool) -> tuple[Segment, Block]:
        key = (pool, stream, is_small, True)
        segment = next((s for s in self.segments if (s.pool, s.stream, s.is_small, s.grows) == key), None)
        if segment is None:
            segment = Segment(self._next_growing, pool, stream, is_small, grows=True)
            self._next_growing += SPACE
            self.segments.append(segment)
        start, end = segment.base, segment.base
        # The lowest place where free and unmapped space together are enough.
        for block in segment.blocks:
            if block.address - start >= wanted:
                break
            end = block.address + block.size
            if block.state != "inactive":
                start = end
            elif end - start >= wanted:
                break
        self._map(segment, start, start + wanted)
        return segment, next(block for block in segment.blocks if block.address == start)

    def _map(self, segment: Segment, start: int, end: int) -> None:
        """Whole pages of [start, end) that are not mapped yet."""
        while (gap := self._gap(segment, start, end)) is not None:
            first, last = gap
            size = -(-(min(last, end) - first) // segment.page) * segment.page
            block = Block(first, size)
            at = sum(other.address < first for other in segment.blocks)
            segment.blocks.insert(at, block)
            self._reserved += size
            self._join(segment, block)
            self._tell("segment_map", first, size, segment)

    @staticmethod
    def _gap(segment: Segment, start: int, end: int) -> tuple[int, int] | None:
        at = start
        for block in segment.blocks:
            if block.address + block.size <= start:
                continue
            if block.address >= end:
                break
            if block.address > at:
                return at, block.address
            at = block.address + block.size
        if at >= end:
            return None
        later = [block.address for block in segment.blocks if block.address >= at]
        return at, min(later, default=at + SPACE)

    # ----------------------------------------------------------------------------
    # Frees

    def free(self, index: int, *, waits: bool = False) -> None:
        segment, block = self.used.pop(index)
        self._allocated -= block.size
        self._tell("free_requested", block.address, block.requested, segment)
        block.state = "active_pending_free"
        if waits:
            self._waiting.append((segment, block))
        else:
            self._complete(segment, block)

    def complete(self, index: int) -> None:
        self._complete(*self._waiting.pop(index))

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def _complete(self, segment: Segment, block: Block) -> None:
        self._active -= block.size
        address, requested = block.address, block.requested
        block.state, block.requested = "inactive", 0
        self._join(segment, block)
        self._tell("free_completed", address, requested, segment)

    @staticmethod
    def _join(segment: Segment, block: Block) -> None:
        at = segment.blocks.index(block)
        if at + 1 < len(segment.blocks):
            after = segment.blocks[at + 1]
            if after.state == "inactive" and after.address == block.address + block.size:
                block.size += after.size
                segment.blocks.remove(after)
        if at > 0:
            before = segment.blocks[at - 1]
            if before.state == "inactive" and before.address + before.size == block.address:
                block.address, block.size = before.address, block.size + before.size
                segment.blocks.remove(before)

    def empty_cache(self, *, most: int = 10**9) -> None:
        """Give back what is unused, at most so many segments (as the collection of garbage does)."""
        for segment in list(self.segments):
            if segment.grows:
                for block in [b for b in segment.blocks if b.state == "inactive"]:
                    self._unmap(segment, block)
            elif len(segment.blocks) == 1 and segment.blocks[0].state == "inactive" and most > 0:
                most -= 1
                self.segments.remove(segment)
                (block,) = segment.blocks
                self._reserved -= block.size
                self._tell("segment_free", block.address, block.size, segment)

    def _unmap(self, segment: Segment, block: Block) -> None:
        page, end = segment.page, block.address + block.size
        first = segment.base + -(-(block.address - segment.base) // page) * page
        last = segment.base + (end - segment.base) // page * page
        if last <= first:
            return
        at = segment.blocks.index(block)
        parts = [Block(block.address, first - block.address), Block(last, end - last)]
        segment.blocks[at : at + 1] = [part for part in parts if part.size]
        self._reserved -= last - first
        self._tell("segment_unmap", first, last - first, segment)

    # ----------------------------------------------------------------------------
    # Snapshot

    def snapshot(self, version: Version, start: int = 0) -> dict[str, Any]:
        """What is dumped at the end by a program whose first event in the ring is number `start`."""
        dropped = {"time_us"} if not version.times else set()
        dropped |= set() if version.event_pools else {"pool_id"}
        events = [{key: one[key] for key in one if key not in dropped} for one in self.events[start:]]
        content: dict[str, Any] = {"device_traces": [events], "segments": []}
        for segment in self.segments:
            for blocks in self._ranges(segment):
                content["segments"].append(self._segment(segment, blocks, version))
        if version.settings:
            settings = self.settings
            content["allocator_settings"] = {
                "PYTORCH_CUDA_ALLOC_CONF": self.conf,
                "max_split_size": -1 if settings.max_split is None else settings.max_split,
                "garbage_collection_threshold": 0.0,
                "expandable_segments": settings.expandable,
                "roundup_power2_divisions": {str(2**power): settings.divisions for power in range(16)},
            }
        return content

    @staticmethod
    def _ranges(segment: Segment) -> list[list[Block]]:
        ranges: list[list[Block]] = []
        for block in segment.blocks:
            if ranges and ranges[-1][-1].address + ranges[-1][-1].size == block.address:
                ranges[-1].append(block)
            else:
                ranges.append([block])
        return ranges

    @staticmethod
    def _segment(segment: Segment, blocks: list[Block], version: Version) -> dict[str, Any]:
        told: dict[str, Any] = {
            "device": 0,
            "address": blocks[0].address,
            "total_size": sum(block.size for block in blocks),
            "stream": segment.stream,
            "segment_type": "small" if segment.is_small else "large",
            "blocks": [
                {"address": b.address, "size": b.size, "requested_size": b.requested, "state": b.state} for b in blocks
            ],
        }  # fmt: skip
        if version.expandable:
            told["is_expandable"] = segment.grows
        if version.pools:
            told["segment_pool_id"] = segment.pool
        return told


@dataclass(frozen=True)
class Scenario:
    """What a random program does beside allocating and freeing."""

    settings: Settings
    no_split: frozenset[Pool] = frozenset()
    own: frozenset[Pool] = frozenset()
    pools: tuple[Pool, ...] = (DEFAULT,)
    streams: tuple[int, ...] = (0,)
    toggles: bool = False
    """Whether the setting is switched now and then."""
    changes: bool = False
    """Whether the limit of splitting and the rounding are set anew now and then."""


def play(
    seed: int, scenario: Scenario, operations: int, look: Callable[[Model], None] = lambda model: None
) -> Model:
    """A random program; `look` is called after each operation."""
    chance = random.Random(seed)
    settings = Settings(**vars(scenario.settings))
    model = Model(settings, no_split=scenario.no_split, own=scenario.own)
    for _ in range(operations):
        dice = chance.random()
        while model.num_waiting and chance.random() < 0.4:
            model.complete(chance.randrange(model.num_waiting))
        if dice < 0.5 or not model.used:
            size = int(2 ** chance.uniform(4, 25))
            if (
                chance.random() < 0.4
            ):  # of a segment of its own, nearly: what is left is too little, or just enough
                size = 20 * MIB - int(2 ** chance.uniform(0, 21))
            model.alloc(max(size, 1), chance.choice(scenario.pools), chance.choice(scenario.streams))
        elif dice < 0.9:
            model.free(chance.randrange(len(model.used)), waits=chance.random() < 0.2)
        elif dice < 0.93:
            model.empty_cache(most=chance.choice((1, 10**9)))
        elif dice < 0.96 and scenario.toggles:
            settings.expandable = not settings.expandable
            model.conf = f"expandable_segments:{settings.expandable}"
        elif dice < 0.97 and scenario.changes:
            settings.max_split = chance.choice((None, 30 * MIB))
            settings.divisions = chance.choice((0, 2, 4))
        look(model)
    return model
