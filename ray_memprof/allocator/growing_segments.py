"""Segments of torch's caching allocator that grow by pages: which of their addresses have memory.

    growing = GrowingSegments(free_blocks)
    start = growing.lowest(edges, wanted, page)             # where a block of `wanted` bytes can be
    growing.map(edges, edge, length)
    growing.unmap(edges, first, length)

Each pool and stream has one segment, and `edges` is its list of where ranges without memory begin. The free blocks
are the allocator's. Addresses come from a range of their own, so that an address tells which kind of segment it is in.

Source: c10/cuda/CUDACachingAllocator.cpp of torch 2.11 (find_expandable_block, map_block, unmap_block).
"""

from bisect import insort
from collections.abc import Iterator

from ray_memprof.allocator.replay import FreeBlocks

GROWING_FROM = 2**47
"""Segments that grow have the addresses from here on."""
_STRIDE = 2**40
"""Addresses between the beginnings of two of them; half of these are a segment's own."""


class GrowingSegments:
    """The segments of one device that grow.

    Args:
        free: the free blocks of all segments, which the allocator keeps.
    """

    def __init__(self, free: FreeBlocks) -> None:
        self.unmapped: dict[int, int]
        """Bytes of each range without memory, by its address."""
        self._free, self._unmapped = free, FreeBlocks()
        self.unmapped = self._unmapped.sizes
        self._pages: dict[int, int] = {}
        """Bytes of a page, by the address where a segment begins."""

    def page_at(self, address: int) -> int:
        """Return the bytes of a page of the segment that contains `address`."""
        return self._pages[_base(address)]

    def lowest(self, edges: list[int], wanted: int, page: int) -> int:
        """Return the lowest address from which on free and unmapped ranges are `wanted` bytes together.

        Args:
            edges: of the pool and stream; a segment is added if there is none, or none has the room.
            wanted: bytes.
            page: bytes of a page of a segment that is added.
        """
        for edge in edges:
            before = self._free.ending_at(edge)
            start = edge if before is None else before
            if self._has_room(start, wanted):
                return start
        base = GROWING_FROM
        while base in self._pages:
            base += _STRIDE
        self._pages[base] = page
        self._unmapped.give(base, _own_bytes(page))
        insort(edges, base)
        return base

    def _has_room(self, start: int, wanted: int) -> bool:
        free, unmapped = self._free.sizes, self.unmapped
        at = start
        while at - start < wanted:
            size = free.get(at) or unmapped.get(at)
            if not size:
                return False
            at += size
        return True

    def map(self, edges: list[int], edge: int, length: int) -> None:
        """The first `length` bytes of the range without memory at `edge` get memory."""
        room = self._unmapped.take(edge)
        edges.remove(edge)
        if room > length:
            self._unmapped.give(edge + length, room - length)
            insort(edges, edge + length)

    def whole_pages(self, address: int, size: int) -> tuple[int, int]:
        """Return the begin and the end of the whole pages in a block; the end is not behind the begin: none."""
        base = _base(address)
        page = self._pages[base]
        first = base + -(-(address - base) // page) * page
        return first, base + (address + size - base) // page * page

    def unmap(self, edges: list[int], address: int, length: int) -> None:
        """Whole pages lose their memory; a segment without any ends."""
        behind, base = address + length, _base(address)
        start, total = self._unmapped.merge(address, length)
        if start == address:
            insort(edges, start)
        if start + total > behind:
            edges.remove(behind)
        if total == _own_bytes(self._pages[base]):
            self._unmapped.take(base)
            edges.remove(base)
            del self._pages[base]

    def mapped(self) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of each range that has memory, by address."""
        for base, page in sorted(self._pages.items()):
            at, end = base, base + _own_bytes(page)
            for start in sorted(one for one in self.unmapped if base <= one < end):
                if start > at:
                    yield at, start - at
                at = start + self.unmapped[start]


def _base(address: int) -> int:
    """Where the segment begins that contains `address`."""
    return address - (address - GROWING_FROM) % _STRIDE


def _own_bytes(page: int) -> int:
    return _STRIDE // 2 // page * page
