"""Where a device puts segments that do not grow, which decides between free blocks of the same size.

    addresses = DriverAddresses()
    start = addresses.take(20 * MIB)
    addresses.give_back(start, 20 * MIB)

The driver does not say. In recorded programs on one H200 (driver 580) it takes address space in steps of 32 MiB, each
below the one before, and a segment that fits into what is left of one goes there: into the smallest such hole. Other
allocations of the process (NCCL, cuDNN, modules) take holes too, which nobody sees. scripts/check_allocator_model.py
tells, for a recorded run, how many blocks lie where this says, and what the order of segments changes.
"""

from typing import Protocol

from ray_memprof.allocator.replay import FreeBlocks

_STEP_BYTES = 32 * 2**20
_HIGHEST = 2**45


class DeviceAddresses(Protocol):
    """Chooses addresses below growing_segments.GROWING_FROM."""

    def take(self, size: int) -> int:
        """Return where a new segment of `size` bytes begins."""

    def give_back(self, address: int, size: int) -> None:
        """A segment ends."""


class DriverAddresses:
    """Address space as the driver probably uses it."""

    def __init__(self) -> None:
        self._lowest = _HIGHEST
        self._holes = FreeBlocks()

    def take(self, size: int) -> int:
        """Return where a new segment of `size` bytes begins."""
        fits = [(room, start) for start, room in self._holes.sizes.items() if room >= size]
        if fits:
            room, start = min(fits)
            self._holes.take(start)
        else:
            room = -(-size // _STEP_BYTES) * _STEP_BYTES
            self._lowest -= room
            start = self._lowest
        if room > size:
            self._holes.merge(start + size, room - size)  # with the hole above, where there is one
        return start

    def give_back(self, address: int, size: int) -> None:
        """A segment ends: its addresses are a hole, with those beside it."""
        self._holes.merge(address, size)
