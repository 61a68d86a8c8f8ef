"""Which memory pool each segment is of: CUDA graphs and torch.cuda.MemPool take theirs from pools of their own.

    pools = SegmentPools()
    rows = pools.follow(events, segments)          # events: (seq, action, address, bytes, pool or None), in order

torch 2.13 names the pool in each event (pool_id). torch 2.11 names it only in the segments of a snapshot
(segment_pool_id): a segment that came and went between two snapshots counts in the default pool. Rows are of other
pools alone, and so most programs have none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_memprof.allocator.doubt import DEFAULT_POOL, Pool, pool_of
from ray_memprof.allocator.requests import GROWTH, SHRINKAGE

SegmentEvent = tuple[int, str, int, int, Pool | None]
"""Number of the event, its action, address and bytes, and its pool; None: the event does not name it."""
OF_SEGMENTS = GROWTH | SHRINKAGE
"""Actions that are about segments."""


@dataclass(slots=True)
class PoolRows:
    """Columns of the table segment_pools."""

    seq: list[int] = field(default_factory=list)
    pool: list[str] = field(default_factory=list)


class SegmentPools:
    """Follows the segments of all pools but the default one."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, Pool]] = {}
        """Bytes and pool of segments and of parts of expandable ones, by address."""

    def follow(self, events: Iterable[SegmentEvent], at_end: Sequence[Mapping[str, Any]]) -> PoolRows:
        """Tell the pools of the next events of segments.

        Args:
            events: in their order.
            at_end: segments of a snapshot after these events.
        """
        found: dict[int, Pool] = {}
        unnamed: dict[int, int] = {}
        for seq, action, address, size, pool in events:
            if action in GROWTH:
                self._held.pop(address, None)
                if pool is None:
                    unnamed[address] = seq
                else:
                    self._hold(found, seq, address, size, pool)
                continue
            unnamed.pop(address, None)
            pool = pool or self._pool_at(address)
            if pool not in (None, DEFAULT_POOL):
                found[seq] = pool
            if action == "segment_free":
                self._held.pop(address, None)
        if unnamed:
            self._name(found, unnamed, at_end)
        rows = sorted(found.items())
        return PoolRows([seq for seq, _ in rows], [str(pool) for _, pool in rows])

    def _hold(self, found: dict[int, Pool], seq: int, address: int, size: int, pool: Pool) -> None:
        if pool != DEFAULT_POOL:
            self._held[address] = size, pool
            found[seq] = pool

    def _name(
        self, found: dict[int, Pool], unnamed: Mapping[int, int], at_end: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take the pools of segments that are still there from a snapshot's."""
        for segment in at_end:
            pool = segment["pool"] if "pool" in segment else pool_of(segment.get("segment_pool_id"))
            if pool in (None, DEFAULT_POOL):
                continue
            start, size = int(segment["address"]), int(segment["total_size"])
            for address, seq in unnamed.items():
                if start <= address < start + size:
                    self._hold(found, seq, address, size, pool)

    def _pool_at(self, address: int) -> Pool | None:
        """The pool that holds the memory at an address; None: the default one, as far as is known."""
        known = self._held.get(address)
        if known is not None:
            return known[1]
        # A part of an expandable segment that was mapped as a piece of a larger one.
        return next(
            (pool for start, (size, pool) in self._held.items() if start <= address < start + size), None
        )
