"""What the allocator held when a trace began, found from the trace itself and from the segments at its end.

    before.see(actions, addresses, sizes, pools)              # every event, in order
    columns = replay.prime(before.segments_at_start(final_segments, replay.rules), t_ns)

A trace rarely begins with the program: recording was switched on late, or the ring of events was full and the oldest
are gone. But a block that is freed without having been allocated was there before, and so was a block at the end that
no event names. The segments at the start are found by undoing their events from the last to the first.

What each block took (often more than was asked for) is known from the snapshot for blocks that are there at the end.
For the others it follows from the allocator's rule of splitting and from the next block behind them. This is exact,
with one exception. Without expandable segments, a request above 1 MiB may have kept up to 1 MiB that was too little to
split off; in a pool that splits nothing, a request may have kept all that its segment had. If the space behind such a
block was free at the start, and no block began there before it was freed, no event shows its size. Then the size is
what the settings say, and `doubt_bytes` says by how much it may be wrong.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ray_memprof.allocator.doubt import DEFAULT_POOL, Doubt, Pool
from ray_memprof.allocator.ranges import parts_outside
from ray_memprof.allocator.replay import Segment
from ray_memprof.allocator.requests import GROWTH, SHRINKAGE
from ray_memprof.allocator.rules import MIN_BLOCK_BYTES, SETTINGS_VARIABLES, SMALL_BYTES, Rules, exact_size

Block = dict[str, Any]
_GROWING = frozenset(("segment_map", "segment_unmap"))
_LIMITS = ("max_split_size", "roundup_power2_divisions")
_SWITCHED_OFF = "expandable_segments:False"
_Range = tuple[int, bool, Pool | None, int]
"""Where a segment ends, whether it can grow, its pool, and its stream."""


@dataclass(slots=True)
class _Elder:
    """A block that was there before the trace."""

    address: int
    requested: int
    state: str
    freed_at: int
    """Number of the event that ended it; -1: it is there at the end."""


@dataclass(slots=True)
class BeforeTrace:
    """Sees every event once and keeps what tells about the time before: a few entries for each address in use."""

    doubt_bytes: int = 0
    """By how many bytes, in all, the sizes of blocks in segments_at_start() may be wrong."""
    _num_events: int = 0
    _alive: set[int] = field(default_factory=set)
    """Blocks that an event has named and that are not freed."""
    _first_alloc: dict[int, int] = field(default_factory=dict)
    _elders: dict[int, _Elder] = field(default_factory=dict)
    _segment_events: list[tuple[str, int, int, Pool | None, int]] = field(default_factory=list)
    _addresses: list[int] = field(default_factory=list)
    """The addresses of _first_alloc, sorted, once all events are seen."""

    def see(
        self,
        actions: Sequence[str],
        addresses: Sequence[int],
        sizes: Sequence[int],
        pools: Sequence[Pool | None] = (),
        streams: Sequence[int] = (),
    ) -> None:
        """Take the next events; `pools` and `streams` have those of each event, where events name them."""
        first = self._num_events + 1
        alive, first_alloc = self._alive, self._first_alloc
        number = self._num_events
        for action, address, size in zip(actions, addresses, sizes, strict=True):
            number += 1
            if action == "alloc":
                alive.add(address)
                first_alloc.setdefault(address, number)
            elif action == "free_requested":
                if address not in alive:
                    self._elders.setdefault(address, _Elder(address, size, "active_allocated", -1))
                    alive.add(address)
            elif action == "free_completed":
                if address in alive:
                    alive.discard(address)
                else:
                    self._elders.setdefault(address, _Elder(address, size, "active_pending_free", -1))
                elder = self._elders.get(address)
                if elder is not None and elder.freed_at < 0:
                    elder.freed_at = number
            elif action in GROWTH | SHRINKAGE:
                pool = pools[number - first] if pools else None
                stream = streams[number - first] if streams else 0
                self._segment_events.append((action, address, size, pool, stream))
        self._num_events = number

    def segment_pools(self) -> Iterator[Pool | None]:
        """Return the pool of each event of segments, in order; None: the event does not name it."""
        return (pool for _, _, _, pool, _ in self._segment_events)

    def new_pools(self) -> Iterator[Pool | None]:
        """Return the pool of each segment_alloc and segment_map, in order; None: the event does not name it."""
        return (
            pool
            for action, _, _, pool, _ in self._segment_events
            if action in ("segment_alloc", "segment_map")
        )

    def doubt(self, final: Sequence[Segment], settings: Mapping[str, Any]) -> Doubt:
        """Return which parts of the rule of splitting the settings do not tell for all moments and segments."""
        events = {(action in _GROWING, pool) for action, _, _, pool, _ in self._segment_events}
        there = {(segment["is_expandable"], segment["pool"]) for segment in final}
        pools = {pool for _, pool in events | there}
        # A pool with an allocator of its own is never expandable: its segments say nothing of the setting.
        kinds = {
            is_expandable
            for is_expandable, pool in events | there
            if is_expandable or pool in (None, DEFAULT_POOL)
        }
        # Early versions of torch leave the settings out: then the segments must tell.
        is_mixed = bool(kinds - {settings.get("expandable_segments", any(kinds))})
        # Off is the default: a program that writes it has probably had the setting on before.
        conf = [settings[name] for name in SETTINGS_VARIABLES[:1] if name in settings]
        is_mixed |= any(_SWITCHED_OFF in text for text in conf)
        return Doubt(
            setting=is_mixed,
            pools=bool(pools - {None, DEFAULT_POOL}),
            size_rules=not all(name in settings or (conf and name not in conf[0]) for name in _LIMITS),
        )

    def is_expandable(self, final: Sequence[Segment]) -> bool:
        """Whether any segment could grow."""
        return any(segment["is_expandable"] for segment in final) or any(
            action in _GROWING for action, *_ in self._segment_events
        )

    def segments_at_start(
        self, final: Iterable[Segment], rules: Rules, doubt: Doubt | None = None
    ) -> list[Segment]:
        """The segments when the trace began, as BlockReplay.prime() takes them, each with its pool (None: unknown)."""
        final, doubt = list(final), doubt or Doubt()
        self.doubt_bytes = 0
        ranges = self._ranges(final)
        known = {block["address"]: block for block in self._survivors(final)}
        used = sorted(known.keys() | self._elders.keys())
        segments: list[Segment] = []
        for start, (end, is_expandable, pool, stream) in sorted(ranges.items()):
            inside = used[bisect_left(used, start) : bisect_left(used, end)]
            here = Doubt(
                setting=doubt.setting,
                pools=doubt.pools and pool != DEFAULT_POOL,
                size_rules=doubt.size_rules,
                everything=doubt.everything,
            )
            blocks = self._blocks(start, end, inside, known, rules, here)
            segments.append(
                {
                    "address": start,
                    "total_size": end - start,
                    "stream": stream,
                    "is_expandable": is_expandable,
                    "pool": pool,
                    "blocks": blocks,
                }
            )
        return segments

    def _survivors(self, final: list[Segment]) -> Iterable[Block]:
        """Yield the blocks at the end that were there at the start, with their state at the start."""
        for segment in final:
            for block in segment["blocks"]:
                if block["state"] == "inactive":
                    continue
                elder = self._elders.get(block["address"])
                if block["address"] not in self._alive:
                    yield dict(block)
                elif elder is not None and elder.freed_at < 0:  # its free was requested in the trace
                    yield {**block, "state": elder.state}

    def _ranges(self, final: list[Segment]) -> dict[int, _Range]:
        """Return the segments at the start, by address: every change is undone."""
        ranges = {
            segment["address"]: (
                segment["address"] + segment["total_size"],
                segment.get("is_expandable", False),
                segment.get("pool"),
                segment.get("stream", 0),
            )
            for segment in final
        }
        for action, address, size, pool, stream in reversed(self._segment_events):
            if action == "segment_alloc":
                ranges.pop(address, None)
            elif action == "segment_free":
                ranges[address] = address + size, False, pool, stream
            elif action == "segment_map":
                _cut(ranges, address, address + size)
            else:
                _join(ranges, (address, address + size), pool, stream)
        return ranges

    def _blocks(
        self,
        start: int,
        end: int,
        used: list[int],
        known: Mapping[int, Block],
        rules: Rules,
        doubt: Doubt,
    ) -> list[Block]:
        """Return the blocks of a segment: at the `used` addresses those in use, and free ones between them."""
        blocks: list[Block] = []
        at = start
        for index, address in enumerate(used):
            if address > at:
                blocks.append({"address": at, "size": address - at, "state": "inactive"})
            if address in known:
                block = known[address]
            else:
                behind = used[index + 1] if index + 1 < len(used) else end
                elder = self._elders[address]
                size = self._size(elder, behind, rules, doubt)
                block = {
                    "address": address,
                    "size": size,
                    "requested_size": elder.requested,
                    "state": elder.state,
                }
            blocks.append(block)
            at = address + block["size"]
        if at < end:
            blocks.append({"address": at, "size": end - at, "state": "inactive"})
        return blocks

    def _size(self, elder: _Elder, behind: int, rules: Rules, doubt: Doubt) -> int:
        """Return the bytes of a freed block: those asked for, rounded, and a rest that was too small to split off."""
        wanted = rules.rounded(elder.requested)
        end = elder.address + wanted
        if not self._addresses:
            self._addresses = sorted(self._first_alloc)
        for address in islice(self._addresses, bisect_left(self._addresses, end), None):
            if address >= behind:
                break
            # A block that began here while the elder lived lies behind the elder.
            if self._first_alloc[address] < elder.freed_at:
                behind = address
        rest = behind - end
        if rest < MIN_BLOCK_BYTES:
            if doubt.size_rules or doubt.everything:
                self.doubt_bytes += max(behind, end) - elder.address - exact_size(elder.requested)
            return max(behind, end) - elder.address
        self.doubt_bytes += _untold(wanted, rest, rules, doubt)
        return wanted if rules.splits(wanted, rest) else behind - elder.address


def _untold(wanted: int, rest: int, rules: Rules, doubt: Doubt) -> int:
    """Return by how much of the `rest` behind a block its size may differ from what the settings say."""
    if doubt.pools or doubt.everything:
        return rest
    if doubt.size_rules:
        return doubt.most(wanted, rest) - wanted
    if wanted <= SMALL_BYTES:
        return 0
    is_split_anyway = rest > SMALL_BYTES and rules.may_split(wanted)
    if not is_split_anyway and (doubt.setting or (rest > SMALL_BYTES and not rules.expandable_segments)):
        return rest
    if is_split_anyway and (doubt.setting or not rules.expandable_segments):
        # The block may have kept a part of `rest`, if what remains was enough for another block of the same pool.
        return min(SMALL_BYTES, rest - SMALL_BYTES)
    return 0


def _cut(ranges: dict[int, _Range], first: int, last: int) -> None:
    """Remove [first, last) from the ranges that can grow."""
    for start, (end, is_expandable, pool, stream) in list(ranges.items()):
        if not is_expandable or end <= first or start >= last:
            continue
        del ranges[start]
        ranges |= {
            begin: (until, True, pool, stream) for begin, until in parts_outside(start, end, first, last)
        }


def _join(ranges: dict[int, _Range], added: tuple[int, int], pool: Pool | None, stream: int) -> None:
    """Add a range from the first to before the last address, joined with the ranges that it touches."""
    first, last = added
    for start, (end, is_expandable, other, _) in list(ranges.items()):
        if is_expandable and end >= first and start <= last:
            del ranges[start]
            first, last, pool = min(first, start), max(last, end), pool or other
    ranges[first] = last, True, pool, stream
