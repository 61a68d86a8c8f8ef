"""What one call of a module asked of the fake device, in names that are the same at the next call; and its results.

    record = Reader(device, [last, last_but_one]).read(log, arguments, result)
    record.repeats(last)            # both calls asked for the same, in the same order, and returned alike

A block that a call takes is named by how many calls ago it was taken and by its number in that call, and so is an event
of a stream. So a call that frees what the call before it has kept has the same record as the call before.

A call may keep memory beyond its end: a convolution remembers frames. Each such block must be freed by the next call or
by the one after it, at the same place in each: then the number of blocks that are kept stays the same.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ray_memprof.allocator.caching import Block
from ray_memprof.predictor.fake_cuda import Event
from ray_memprof.predictor.fake_device import FakeDevice, Stream

MOST_CALLS_KEPT = 2
"""Calls after which a block that a call keeps must be free, at most."""
_NEVER_AGAIN = {
    "outside", "stream.new", "stream.query", "event.query", "empty_cache", "span.failed",
}  # fmt: skip
"""What happens once, or depends on what time it is: a call in which it happens is no repeat."""
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.memory_format)
Name = tuple[int, int]
"""How many calls ago, and the number in that call."""


class NotRepeatable(Exception):
    """Something of a call has no name that is the same at the next call."""


class Place(NamedTuple):
    """Where a tensor is in its storage."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class Made(NamedTuple):
    """A tensor that a call returns, in a block that it took."""

    number: int
    """Of the block."""
    place: "Place"
    dtype: torch.dtype
    device: torch.device
    storage_bytes: int


class Viewed(NamedTuple):
    """A tensor that a call returns, in the memory of an argument.

    `place` counts from where the argument begins; None: it is the argument itself.
    """

    argument: int
    place: Place | None = None


@dataclass(eq=False, slots=True)
class CallRecord:
    """One call."""

    is_repeatable: bool = True
    """False: something happened in it that has no name, or that happens only once."""
    operations: list[tuple[Any, ...]] = field(default_factory=list)
    result: Any = None
    stream: Stream | None = None
    """The current stream, before and after it."""
    blocks: list[Block] = field(default_factory=list)
    """What it took, by number."""
    kept: dict[int, int] = field(default_factory=dict)
    """Numbers of blocks that outlive the call and are no result, and how many calls later they are freed."""
    freed: dict[int, int] = field(default_factory=dict)
    """Numbers of blocks of earlier calls that it freed, and how many calls ago each was taken."""
    returned: set[int] = field(default_factory=set)
    others: set[Block] = field(default_factory=set)
    """Blocks that it has let other streams use, and that were there before: the next call needs them, too."""
    events: "list[weakref.ref[Event]]" = field(default_factory=list)

    @property
    def is_steady(self) -> bool:
        """Whether it leaves as much behind as it found: each block that it keeps is freed soon."""
        return self.kept.keys() == self.freed.keys() and all(
            calls <= MOST_CALLS_KEPT for calls in self.kept.values()
        )

    def repeats(self, before: "CallRecord") -> bool:
        """Whether it asked for the same as the call before it, and returned alike."""
        return (
            self.is_repeatable
            and before.is_repeatable
            and self.operations == before.operations
            and self.result == before.result
            and self.stream is before.stream
            and self.kept.keys() == before.kept.keys()
            and self.returned == before.returned
        )


class Reader:
    """Makes the record of a call from the device's log.

    Args:
        device: that is asked.
        before: the records of the calls before it, the last one first.
    """

    def __init__(self, device: FakeDevice, before: Sequence[CallRecord]) -> None:
        self._device, self._made = device, CallRecord()
        self._blocks: dict[Block, Name] = {}
        self._events: dict[Event, Name] = {}
        for age, record in enumerate(before, start=1):
            self._blocks |= {block: (age, number) for number, block in enumerate(record.blocks)}
        for number, reference in enumerate(before[0].events if before else ()):
            if (event := reference()) is not None:
                self._events[event] = (1, number)
        self._alive: set[int] = set()
        self._host_bytes = 0

    def read(self, log: Sequence[tuple[Any, ...]], arguments: Sequence[Tensor], result: Any) -> CallRecord:
        """The record of a call that has ended.

        Args:
            log: what the device was asked for meanwhile.
            arguments: of the call: those that are tensors.
            result: what it returned.
        """
        made = self._made
        for entry in log:
            try:
                made.operations.append(self._named(entry))
            except NotRepeatable:
                made.is_repeatable = False
        try:
            made.result = self._described(result, arguments)
        except NotRepeatable:
            made.is_repeatable = False
        made.is_repeatable &= not self._host_bytes and not made.returned & made.freed.keys()
        made.kept = {number: made.freed.get(number, 0) for number in self._alive - made.returned}
        return made

    def _named(self, entry: tuple[Any, ...]) -> tuple[Any, ...]:
        kind = entry[0]
        if kind == "alloc":
            return self._took(entry[1], entry[2])
        if kind == "free":
            return kind, self._gave_back(entry[1])
        if kind in _NEVER_AGAIN:
            raise NotRepeatable
        if kind == "host":
            self._host_bytes += entry[1]
        elif kind == "event.new":
            self._events[entry[1]] = (0, len(self._made.events))
            self._made.events.append(weakref.ref(entry[1]))
            return (kind,)
        elif kind in ("record", "event.synchronize"):
            return kind, self._events.get(entry[1], entry[1]), *entry[2:]
        elif kind == "event.moved":
            return kind, *(self._events.get(event, event) for event in entry[1:])
        elif kind == "wait_event":
            return kind, entry[1], self._events.get(entry[2], entry[2])
        elif kind in ("claim", "record_stream"):
            name = self._blocks.get(entry[1])
            if name is None and kind == "record_stream":
                self._made.others.add(entry[1])
            return kind, name or entry[1], *entry[2:]
        return entry

    def _took(self, size: int, block: Block) -> tuple[Any, ...]:
        number = len(self._made.blocks)
        self._made.blocks.append(block)
        self._blocks[block] = (0, number)
        self._alive.add(number)
        return "alloc", size

    def _gave_back(self, block: Block) -> Name:
        name = self._blocks.get(block)
        if name is None:
            raise NotRepeatable  # what an earlier part of the program took
        age, number = name
        if age == 0:
            self._alive.remove(number)
        elif number in self._made.freed:
            raise NotRepeatable
        else:
            self._made.freed[number] = age
        return name

    def _described(self, result: Any, arguments: Sequence[Tensor]) -> Any:
        """What a call returned, without tensors."""
        if type(result) in (list, tuple):
            return type(result), [self._described(one, arguments) for one in result]
        if isinstance(result, _PLAIN):
            return result
        if type(result) is not FakeTensor:
            raise NotRepeatable
        place = Place(result.shape, result.stride(), int(result.storage_offset()))
        storage = result.untyped_storage()
        for number, argument in enumerate(arguments):
            if argument is result:
                return Viewed(number)
            if argument.untyped_storage()._cdata == storage._cdata and argument.dtype == result.dtype:
                ahead = place.offset - int(argument.storage_offset())
                return Viewed(number, place._replace(offset=ahead))
        block = self._device.block_of(storage)
        age, number = (1, 0) if block is None else self._blocks.get(block, (1, 0))
        if age or self._device.owner_of(self._made.blocks[number]) is not storage:
            raise NotRepeatable
        self._made.returned.add(number)
        return Made(number, place, result.dtype, result.fake_device, storage.nbytes())


def key_of(values: Any) -> tuple[Any, ...]:
    """What the work of a call depends on, of its arguments; hashable. Raises NotRepeatable: that is not known."""
    storages: dict[int, int] = {}
    return tuple(_key(value, storages) for value in values)


def _key(value: Any, storages: dict[int, int]) -> Any:
    if isinstance(value, FakeTensor):
        # Arguments that share memory are told from those that do not; where they begin in it, differs in each step.
        storage = storages.setdefault(value.untyped_storage()._cdata, len(storages))
        return value.shape, value.stride(), value.dtype, value.fake_device, storage
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_key(one, storages) for one in value)
    if isinstance(value, Mapping):
        return tuple((name, _key(one, storages)) for name, one in value.items())
    if isinstance(value, nn.Module):
        return type(value), id(value)
    raise NotRepeatable


def weights_key(module: nn.Module) -> tuple[Any, ...]:
    """What the work of a module depends on, of its weights."""
    return tuple((one.shape, one.stride(), one.dtype) for one in module.parameters())
