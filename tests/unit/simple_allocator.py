"""A caching allocator of one stream, written from the description of torch's and not from the replay; for tests."""

from collections.abc import Callable
from dataclasses import dataclass

from ray_memprof.allocator.replay import Event

KIB, MIB = 2**10, 2**20
SEGMENT = 20 * MIB


def event(action: str, address: int, size: int, *, span: str = "0", stream: int = 0) -> Event:
    return {
        "action": action, "addr": address, "size": size, "stream": stream, "time_us": 7, "user_metadata": span,
    }  # fmt: skip


@dataclass(slots=True)
class Block:
    """A range of one segment; `segment` is what it may merge within."""

    address: int
    size: int
    segment: int
    is_free: bool = True


class Allocator:
    """A caching allocator of one stream that keeps its own counters; blocks in one list, by address.

    Written from the description, not from the replay: best fit over whole blocks, no table of free ones.
    """

    PAGE = 2 * MIB
    SPACE = 2**40
    """Addresses that an expandable segment owns."""

    def __init__(self, tell: Callable[[Event], None], *, expandable: bool) -> None:
        self._tell, self._expandable = tell, expandable
        self._blocks: list[Block] = []
        self._next = 0
        self.allocated = self.reserved = self.active = 0

    def alloc(self, requested: int) -> Block:
        wanted = max(512, -(-requested // 512) * 512)
        is_small = wanted <= MIB
        fits = [b for b in self._blocks if b.is_free and b.size >= wanted and self._is_small(b) == is_small]
        block = min(fits, key=lambda b: (b.size, b.address)) if fits else self._grow(wanted, is_small)
        rest = block.size - wanted
        if rest >= 512 if is_small or self._expandable else rest > MIB:
            self._blocks.append(Block(block.address + wanted, rest, block.segment))
            block.size = wanted
        block.is_free = False
        self.allocated += block.size
        self.active += block.size
        self._tell(event("alloc", block.address, requested))
        return block

    def request_free(self, block: Block) -> None:
        self.allocated -= block.size
        self._tell(event("free_requested", block.address, block.size))

    def complete_free(self, block: Block) -> None:
        told = event("free_completed", block.address, block.size)
        self.active -= block.size
        block.is_free = True
        self._merge(block)
        self._tell(told)

    def empty_cache(self) -> None:
        for block in [b for b in self._blocks if b.is_free]:
            if self._expandable:
                self._unmap(block)
            elif all(b is block for b in self._blocks if b.segment == block.segment):
                self._blocks.remove(block)
                self.reserved -= block.size
                self._tell(event("segment_free", block.address, block.size))

    def _is_small(self, block: Block) -> bool:
        return block.segment % 2 == 1

    def _grow(self, wanted: int, is_small: bool) -> Block:
        if self._expandable:
            return self._map(wanted, is_small)
        size = 2 * MIB if is_small else SEGMENT if wanted < 10 * MIB else -(-wanted // (2 * MIB)) * 2 * MIB
        # Segments side by side, as cudaMalloc often gives them. Even and odd numbers tell the pools apart.
        block = Block(self._next, size, 2 * self._next + is_small)
        self._next += size
        self._blocks.append(block)
        self.reserved += size
        self._tell(event("segment_alloc", block.address, size))
        return block

    def _map(self, wanted: int, is_small: bool) -> Block:
        """Pages behind what is mapped of the pool's segment, or in its first hole that is wide enough."""
        segment, page = int(is_small), self.PAGE if is_small else SEGMENT
        start = self.SPACE if is_small else 0
        mapped = sorted((b for b in self._blocks if b.segment == segment), key=lambda b: b.address)
        end, free = start, 0
        for block in mapped:
            if block.address > end and block.address - end + free >= wanted:
                break
            free = block.size if block.is_free else 0
            end = block.address + block.size
        size = -(-(wanted - free) // page) * page
        hole = min((b.address for b in mapped if b.address >= end), default=None)
        if hole is not None:
            size = min(size, hole - end)
        block = Block(end, size, segment)
        self._blocks.append(block)
        self.reserved += size
        block = self._merge(block)
        self._tell(event("segment_map", end, size))
        return block

    def _unmap(self, block: Block) -> None:
        page = self.PAGE if self._is_small(block) else SEGMENT
        base = self.SPACE if self._is_small(block) else 0
        first = base + -(-(block.address - base) // page) * page
        last = base + (block.address + block.size - base) // page * page
        if last <= first:
            return
        end = block.address + block.size
        self._blocks.remove(block)
        if block.address < first:
            self._blocks.append(Block(block.address, first - block.address, block.segment))
        if last < end:
            self._blocks.append(Block(last, end - last, block.segment))
        self.reserved -= last - first
        self._tell(event("segment_unmap", first, last - first))

    def _merge(self, block: Block) -> Block:
        for other in [b for b in self._blocks if b.is_free and b.segment == block.segment and b is not block]:
            if other.address + other.size == block.address or block.address + block.size == other.address:
                self._blocks.remove(other)
                block.address = min(block.address, other.address)
                block.size += other.size
        return block
