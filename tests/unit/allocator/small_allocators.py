"""Allocators over addresses that can be read, and what they did as short tuples."""

from ray_memprof.allocator.caching import CachingAllocator
from ray_memprof.allocator.rules import Rules

KIB, MIB, GIB = 2**10, 2**20, 2**30
NEXT = 2**40
"""Addresses between two segments that grow."""
Told = tuple[str, int, int]


class Rising:
    """Addresses side by side from 0 on, so that they can be read."""

    def __init__(self, start: int = 0) -> None:
        self.end = start

    def take(self, size: int) -> int:
        self.end += size
        return self.end - size

    def give_back(self, address: int, size: int) -> None:
        pass


class Falling(Rising):
    """Addresses below one another."""

    def take(self, size: int) -> int:
        self.end -= size
        return 2**40 + self.end


def made(
    *, device_bytes: int | None = None, allowed_bytes: int | None = None, **rules: object
) -> CachingAllocator:
    return CachingAllocator(
        Rules(**rules),  # type: ignore[arg-type]
        device_bytes=device_bytes,
        allowed_bytes=allowed_bytes,
        addresses=Rising(),
    )


def told(allocator: CachingAllocator) -> list[Told]:
    """The events since the last look: action, address and bytes that it counts for."""
    columns = allocator.take_events()
    return list(zip(columns.action, columns.address, columns.size_bytes, strict=True))


def counters(allocator: CachingAllocator) -> tuple[int, int, int]:
    return allocator.allocated, allocator.reserved, allocator.active


def freed(address: int, size: int) -> list[Told]:
    return [("free_requested", address, size), ("free_completed", address, size)]
