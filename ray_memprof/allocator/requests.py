"""The requests of a recorded program, to be put to an allocator with other settings or another device.

    requests = Requests.of(recorded)                        # events as columns, in order
    for _ in requests.put_to(allocator): ...                # yields the number of each event that a request came from

A recording has what was asked for and when it was freed, also where other streams kept a block for a while. It does not
have calls of empty_cache(): a burst of segment_free or segment_unmap tells of one, unless the allocator itself gave the
cache back because the device was full. Calls that gave nothing back leave no event, and pools have no column: all
requests count as those of the default one.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from ray_memprof.allocator.caching import Block, CachingAllocator, OutOfDeviceMemory

GROWTH = frozenset(("segment_alloc", "segment_map"))
SHRINKAGE = frozenset(("segment_free", "segment_unmap"))
_ALLOC, _FREE, _FREE_LATER, _COMPLETE, _EMPTY_CACHE, _TRY = range(6)


@dataclass(slots=True)
class Recorded:
    """Events of one rank by column, in order, as the allocs table has them."""

    action: Sequence[str]
    address: Sequence[int]
    requested_bytes: Sequence[int]
    stream: Sequence[int]
    span_id: Sequence[int]


@dataclass(slots=True)
class Requests:
    """What a program asked its allocator for, in order."""

    steps: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """Kind, number of the event, number of the block, bytes and stream; each 0 where it means nothing."""
    num_blocks: int = 0
    num_strays: int = 0
    """Events whose block no event before has made: they are left out."""
    num_retries: int = 0
    """Times that the cache was given back because the device was full."""
    is_cut_off: bool = False
    """Whether a request failed: what the program would have asked for after it is not known."""
    ended_full: bool = False
    """Whether the last request failed: the program ended because of it, and did not fit."""

    @classmethod
    def of(cls, events: Recorded, retried: AbstractSet[int] = frozenset()) -> "Requests":
        """Return the requests that made these events.

        Args:
            events: of one rank.
            retried: numbers of the spans in which the allocator found the device full.
        """
        return _Reading(events, retried).requests()

    def put_to(self, allocator: CachingAllocator) -> Iterator[int]:
        """Ask `allocator` for the same; yields the number of the event before each request.

        Raises:
            OutOfDeviceMemory: a request does not fit that did when it was recorded.
        """
        blocks: list[Block | None] = [None] * self.num_blocks
        for kind, event, number, size, stream in self.steps:
            yield event
            if kind == _ALLOC:
                blocks[number] = allocator.alloc(size, stream)
            elif kind == _EMPTY_CACHE:
                allocator.empty_cache()
            elif kind == _TRY:
                _try(allocator, size, stream)
            else:
                block = blocks[number]
                assert block is not None
                if kind == _FREE:
                    allocator.free(block)
                elif kind == _FREE_LATER:
                    allocator.free_later(block)
                else:
                    allocator.complete(block)


def _try(allocator: CachingAllocator, size: int, stream: int) -> None:
    """A request that failed when it was recorded, and after which the program asked for other memory."""
    try:
        block = allocator.alloc(size, stream)
    except OutOfDeviceMemory:
        return
    allocator.free(block)


class _Reading:
    """Turns events into requests."""

    def __init__(self, events: Recorded, retried: AbstractSet[int]) -> None:
        self._events, self._retried = events, retried
        self._found = Requests()
        self._used: dict[int, int] = {}
        """Number of the block at an address."""
        self._waiting: set[int] = set()

    def requests(self) -> Requests:
        """Return the requests."""
        events = self._events
        number, last = 0, len(events.action)
        while number < last:
            action = events.action[number]
            if action == "alloc":
                self._alloc(number)
            elif action == "free_requested":
                number += self._free(number)
            elif action == "free_completed":
                self._complete(number)
            elif action in SHRINKAGE:
                number = self._burst(number)
            elif action == "oom":
                self._found.is_cut_off = True
                self._step(_TRY, number, 0, events.requested_bytes[number], events.stream[number])
            number += 1
        self._ask_for_the_last()
        return self._found

    def _ask_for_the_last(self) -> None:
        """Let a failed request behind which nothing was allocated be one that must fit: it ended the program."""
        steps = self._found.steps
        last = next((n for n in reversed(range(len(steps))) if steps[n][0] in (_ALLOC, _TRY)), -1)
        if last >= 0 and steps[last][0] == _TRY:
            _, event, _, size, stream = steps[last]
            self._found.ended_full = True
            steps[last] = (_ALLOC, event, self._found.num_blocks, size, stream)
            self._found.num_blocks += 1

    def _step(self, kind: int, event: int, number: int = 0, size: int = 0, stream: int = 0) -> None:
        self._found.steps.append((kind, event, number, size, stream))

    def _alloc(self, event: int) -> None:
        address, found = self._events.address[event], self._found
        if address in self._used:  # the events that freed that one are missing
            found.num_strays += 1
            self._step(_COMPLETE if address in self._waiting else _FREE, event, self._used[address])
            self._waiting.discard(address)
        self._used[address] = found.num_blocks
        self._step(
            _ALLOC, event, found.num_blocks, self._events.requested_bytes[event], self._events.stream[event]
        )
        found.num_blocks += 1

    def _free(self, event: int) -> int:
        """Take one free, or both of its events if the second comes at once; returns how many more were taken."""
        events, address = self._events, self._events.address[event]
        if address not in self._used or address in self._waiting:
            self._found.num_strays += 1
            return 0
        after = event + 1
        if (
            after < len(events.action)
            and events.action[after] == "free_completed"
            and events.address[after] == address
        ):
            self._step(_FREE, event, self._used.pop(address))
            return 1
        self._waiting.add(address)
        self._step(_FREE_LATER, event, self._used[address])
        return 0

    def _complete(self, event: int) -> None:
        address = self._events.address[event]
        if address not in self._waiting:
            self._found.num_strays += 1
            return
        self._waiting.discard(address)
        self._step(_COMPLETE, event, self._used.pop(address))

    def _burst(self, event: int) -> int:
        """Take a burst of segments and pages that were given back; returns the number of its last event."""
        events, end = self._events, event
        while end + 1 < len(events.action) and events.action[end + 1] in SHRINKAGE:
            end += 1
        is_before_growth = end + 1 < len(events.action) and events.action[end + 1] in GROWTH | {"oom"}
        if is_before_growth and events.span_id[end] in self._retried:
            self._found.num_retries += 1
        else:
            self._step(_EMPTY_CACHE, event)
        return end
