"""Whether recorded requests fit under other settings of the allocator, or on another device, and how large it must be.

    outside = [(0, 552_402_944), (310, 726_532_096)]        # bytes outside the allocator, from an event on
    outcome = play(requests, outside, Rules(), 24 * GIB)
    outcome.fits, outcome.reserved_peak, outcome.device_peak
    smallest_device(requests, outside, Rules())

Takes what was recorded of one rank. What the program would have done otherwise on a smaller device is not known: it is
taken to ask for the same, in the same order, and to end at the first request that does not fit.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ray_memprof.allocator.caching import CachingAllocator, OutOfDeviceMemory
from ray_memprof.allocator.requests import Requests
from ray_memprof.allocator.rules import SEGMENT_STEP_BYTES, Rules

Outside = Sequence[tuple[int, int]]
"""Bytes held outside the allocator, each with the number of the event from which on; in order."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the requests."""

    fits: bool
    reserved_peak: int
    """Bytes, until the end or the request that did not fit."""
    device_peak: int
    """Most bytes of the device that the allocator and all that is outside held together; never more than it has."""
    num_retries: int
    """Times that the cache was given back because the device was full."""
    event: int = -1
    """Number of the event whose request did not fit."""
    wanted: int = 0
    """Bytes that did not fit: of the request, or of what grew outside."""
    is_outside: bool = False
    """Whether it was memory outside the allocator that did not fit; it gets nothing of the allocator's cache."""


def play(requests: Requests, outside: Outside, rules: Rules, device_bytes: int | None) -> Outcome:
    """Put the requests to an allocator with these rules, on a device of this size; None: without end."""
    return _played(requests, _Device(CachingAllocator(rules, keeps_events=False), outside, device_bytes))


def _played(requests: Requests, device: "_Device") -> Outcome:
    event = 0
    try:
        for event in requests.put_to(device.allocator):
            device.see(event)
            if device.lacking:
                return device.outcome(event, device.lacking, is_outside=True)
    except OutOfDeviceMemory as error:
        return device.outcome(event, error.wanted)
    device.see(sys.maxsize)
    return device.outcome(event, device.lacking, is_outside=True) if device.lacking else device.outcome()


class _Device:
    """A device on which the memory outside the allocator changes as it did when it was recorded."""

    def __init__(self, allocator: CachingAllocator, outside: Outside, device_bytes: int | None) -> None:
        self.allocator, self._size = allocator, device_bytes
        self._outside, self._next, self._held, self._peak = outside, 0, 0, 0
        self.least = 0
        """Most bytes that were in use at once, in blocks and outside: a smaller device cannot do."""
        self.lacking = 0
        """Bytes outside the allocator that did not fit."""
        allocator.device_bytes = device_bytes

    def see(self, event: int) -> None:
        """All requests before that of `event` are done; what grew outside until then is there."""
        self._weigh()
        while self._next < len(self._outside) and self._outside[self._next][0] <= event:
            held = self._outside[self._next][1]
            if self._size is not None:
                if held > self._held and self.allocator.reserved + held > self._size:
                    self.lacking = held - self._held
                    return
                self.allocator.device_bytes = self._size - held
            self._held = held
            self._next += 1
            self._weigh()

    def _weigh(self) -> None:
        self._peak = max(self._peak, self.allocator.reserved + self._held)
        self.least = max(self.least, self.allocator.active + self._held)

    def outcome(self, event: int = -1, wanted: int = 0, *, is_outside: bool = False) -> Outcome:
        """Return what became of the requests."""
        return Outcome(
            fits=event < 0,
            reserved_peak=self.allocator.reserved_peak,
            device_peak=self._peak,
            num_retries=self.allocator.num_retries,
            event=event,
            wanted=wanted,
            is_outside=is_outside,
        )


def smallest_device(requests: Requests, outside: Outside, rules: Rules) -> int:
    """Return the bytes of the smallest device on which the requests fit; with 2 MiB less, they do not.

    It is found by halving, as if more memory never did harm.
    """
    device = _Device(CachingAllocator(rules, keeps_events=False), outside, None)
    enough = _played(requests, device).device_peak
    too_little = device.least - 1
    while enough - too_little > SEGMENT_STEP_BYTES:
        middle = (enough + too_little) // 2
        outcome = play(requests, outside, rules, middle)
        if outcome.fits:
            enough = outcome.device_peak  # what was never held is not needed
        else:
            too_little = middle
    return enough
