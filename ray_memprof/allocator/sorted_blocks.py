"""Free blocks of torch's caching allocator, sorted by size and then by address: where a request finds its block.

    cache = SortedBlocks(DEFAULT_POOL, is_small=False, stream=0)
    cache.add(address, size)
    address = cache.take_best(wanted, rules, unmapped)       # None: no block is large enough
    for address, size in cache: ...

Each pool, size class and stream has its own.

Source: c10/cuda/CUDACachingAllocator.cpp of torch 2.11 (get_free_block).
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ray_memprof.allocator.doubt import Pool
from ray_memprof.allocator.growing_segments import GROWING_FROM
from ray_memprof.allocator.rules import Rules

_SHIFT = 48
"""A block is one number, by which it is sorted: size << _SHIFT | address."""
_ADDRESS: int = 2**_SHIFT - 1


@dataclass(slots=True, eq=False)
class SortedBlocks:
    """The free blocks of one pool, size class and stream."""

    pool: Pool
    is_small: bool
    stream: int
    edges: list[int] = field(default_factory=list)
    """Where ranges without memory begin, in its segments that grow; sorted."""
    _keys: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of each block, in order; blocks may be removed meanwhile."""
        return iter([(key & _ADDRESS, key >> _SHIFT) for key in self._keys])

    def add(self, address: int, size: int) -> None:
        """Add a block."""
        insort(self._keys, size << _SHIFT | address)

    def remove(self, address: int, size: int) -> None:
        """Remove a block that is there."""
        del self._keys[bisect_left(self._keys, size << _SHIFT | address)]

    def take_best(self, wanted: int, rules: Rules, unmapped: Mapping[int, int]) -> int | None:
        """Remove the smallest block that is large enough, of equal ones that at the lowest address; return its address.

        Args:
            wanted: bytes, after rounding.
            rules: where they say that segments do not grow, blocks of those that do are left alone.
            unmapped: bytes of the ranges without memory, by address: a block before one can become larger.
        """
        keys = self._keys
        at = bisect_left(keys, wanted << _SHIFT)
        if at < len(keys) and keys[at] & _ADDRESS >= GROWING_FROM:
            at = self._least_room(at, unmapped) if rules.expandable_segments else self._first_plain(at)
        if at >= len(keys) or not rules.may_take(wanted, keys[at] >> _SHIFT):
            return None
        return keys.pop(at) & _ADDRESS

    def _least_room(self, at: int, unmapped: Mapping[int, int]) -> int:
        """A block that can grow counts as large as it can become: the next ones may be smaller than that."""
        keys = self._keys
        room = _room(keys[at], unmapped)
        while keys[at] & _ADDRESS >= GROWING_FROM and at + 1 < len(keys):
            other = _room(keys[at + 1], unmapped)
            if other >= room:
                break
            at, room = at + 1, other
        return at

    def _first_plain(self, at: int) -> int:
        """The first block from `at` on in a segment that does not grow; the number of blocks: there is none."""
        while at < len(self._keys) and self._keys[at] & _ADDRESS >= GROWING_FROM:
            at += 1
        return at

    def from_size(self, size: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the blocks below `size` and those from it on, in order."""
        blocks, at = list(self), bisect_left(self._keys, size << _SHIFT)
        return blocks[:at], blocks[at:]


def _room(key: int, unmapped: Mapping[int, int]) -> int:
    """The bytes that a block has, and those behind it that can get memory."""
    size = key >> _SHIFT
    return size + unmapped.get((key & _ADDRESS) + size, 0)
