"""Plays the record of a call back into the fake device: a call of the same module that is not computed.

    playback = Playback(device, recorder, earlier)       # the records of the calls before
    record = playback.play(last)                         # takes, frees, runs and waits as that call did
    result = playback.result(record, arguments, mode)

The program's own objects stay: a tensor that the module keeps from call to call now has the block that it would have
been replaced by, and an event the moment at which its successor would have been recorded.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ray_memprof.allocator.caching import Block
from ray_memprof.predictor.call_record import CallRecord, Made, Name, Place, Viewed
from ray_memprof.predictor.fake_cuda import Event
from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.rows import Owner
from ray_memprof.recorder.spans import Span


class Listener(Protocol):
    """The part of the recorder that hears of more than spans."""

    def begin_collective(self) -> Reading | None:
        """A collective begins."""

    def end_collective(
        self, before: Reading, *, op: str, num_bytes: int, group: str, group_size: int
    ) -> None:
        """The collective has returned."""

    def claim(self, tensor: Any, owner: Owner) -> None:
        """Name the owner of a block."""


class _Held:
    """A block that a call has taken when it fails: free once nothing refers to the failure."""

    def __init__(self, device: FakeDevice, block: Block) -> None:
        self._device, self._block = device, block

    def __del__(self) -> None:
        self._device.free(self._block)


class Playback:
    """One call that is played back.

    Args:
        device: that is asked.
        listener: hears what the call would have told it.
        earlier: the records of the calls before, the last one first.
    """

    def __init__(self, device: FakeDevice, listener: Listener, earlier: Sequence[CallRecord]) -> None:
        self._device, self._listener, self._earlier = device, listener, earlier
        self._blocks: list[Block] = []
        self._events: list[Event] = []
        self._spans: list[Span] = []
        self._readings: list[Reading | None] = []
        self._alive: dict[Block, None] = {}
        self._held: list[_Held] = []
        self._do: dict[str, Callable[..., None]] = {
            "alloc": self._alloc,
            "free": self._free,
            "run": device.run,
            "occupy": device.occupy,
            "record_stream": lambda name, stream: device.use(self._block(name), stream),
            "host": self._host,
            "set_stream": device.set_stream,
            "synchronize": device.synchronize,
            "wait_stream": lambda stream, other: stream.wait_stream(other),
            "stream.synchronize": lambda stream: stream.synchronize(),
            "event.new": lambda: self._events.append(Event(device)),
            "record": lambda event, stream: self._event(event).record(stream),
            "event.moved": lambda event, to: self._move(self._event(event), self._event(to)),
            "wait_event": lambda stream, event: stream.wait_event(self._event(event)),
            "event.synchronize": lambda event: self._event(event).synchronize(),
            "span.enter": self._enter,
            "span.exit": self._exit,
            "collective.begin": lambda: self._readings.append(listener.begin_collective()),
            "collective.end": self._end_collective,
            "claim": lambda name, owner: listener.claim(self._block(name), owner),
        }

    def play(self, model: CallRecord) -> CallRecord:
        """Ask the device for what `model` asked for; returns the record of this call."""
        kept = self._kept(model)
        do = self._do
        try:
            for kind, *arguments in model.operations:
                do[kind](*arguments)
        except BaseException as error:
            self._fail(model, kept, error)
            raise
        record = replace(model, blocks=self._blocks)
        for storage, age, number in kept:
            self._device.give(storage, self._earlier[age - 1].blocks[number] if age else self._blocks[number])
        self._move_events(model)
        return record

    def _kept(self, model: CallRecord) -> list[tuple[torch.UntypedStorage, int, int]]:
        """Storages that the module keeps, and how many calls before the end of this one their blocks will be taken."""
        found = []
        for number, calls in model.kept.items():
            for age in range(calls):
                storage = self._device.owner_of(self._earlier[age].blocks[number])
                assert storage is not None, "is_playable() was asked"
                found.append((storage, age, number))
        return found

    def _move_events(self, model: CallRecord) -> None:
        for number, reference in enumerate(model.events):
            if (event := reference()) is not None:
                self._move(event, self._events[number])

    def _fail(
        self, model: CallRecord, kept: list[tuple[torch.UntypedStorage, int, int]], error: BaseException
    ) -> None:
        """Leave the device as the call would have left it, whose tensors live as long as its error."""
        for storage, age, number in kept:
            block = self._earlier[age].blocks[number]
            if self._device.owner_of(block) is None:
                self._device.take_away(storage)
        self._held = [_Held(self._device, block) for block in self._alive]
        for one in reversed(self._spans):
            one.__exit__(type(error), error, error.__traceback__)

    def result(self, record: CallRecord, arguments: Sequence[Tensor], mode: FakeTensorMode) -> Any:
        """What the call returns: new tensors in its blocks, or parts of its arguments.

        Args:
            record: of this call.
            arguments: those that are tensors.
            mode: of the tensors.
        """
        return self._returned(record.result, arguments, mode, {})

    def _returned(
        self,
        one: Any,
        arguments: Sequence[Tensor],
        mode: FakeTensorMode,
        storages: dict[int, torch.UntypedStorage],
    ) -> Any:
        if isinstance(one, Viewed):
            argument = arguments[one.argument]
            if one.place is None:
                return argument
            place = one.place._replace(offset=int(argument.storage_offset()) + one.place.offset)
            return _tensor(mode, argument.untyped_storage(), place, argument.dtype, argument.device)
        if isinstance(one, Made):
            return self._made(one, storages, mode)
        if isinstance(one, tuple):
            kind, parts = one
            return kind(self._returned(part, arguments, mode, storages) for part in parts)
        return one

    def _made(self, one: Made, storages: dict[int, torch.UntypedStorage], mode: FakeTensorMode) -> FakeTensor:
        whole = storages.get(one.number)
        if whole is None:
            with torch._C._DisableTorchDispatch():
                whole = torch.empty(one.storage_bytes, dtype=torch.uint8, device="meta").untyped_storage()
            storages[one.number] = whole
            self._device.give(whole, self._blocks[one.number])
        return _tensor(mode, whole, one.place, one.dtype, one.device)

    # ---- what is played

    def _block(self, name: Name | Block) -> Block:
        if isinstance(name, Block):
            return name
        age, number = name
        return self._earlier[age - 1].blocks[number] if age else self._blocks[number]

    def _event(self, name: Name | Event) -> Event:
        if isinstance(name, Event):
            return name
        age, number = name
        if not age:
            return self._events[number]
        event = self._earlier[age - 1].events[number]()
        assert event is not None, "who waits for an event has it"
        return event

    def _alloc(self, size: int) -> None:
        block = self._device.alloc(size)
        self._blocks.append(block)
        self._alive[block] = None

    def _free(self, name: Name) -> None:
        block = self._block(name)
        self._alive.pop(block, None)
        self._device.free(block)

    def _move(self, event: Event, to: Event) -> None:
        self._device.note("event.moved", event, to)
        event.done_ns = to.done_ns

    def _host(self, size: int) -> None:
        self._device.note("host", size)
        self._device.host_bytes += size

    def _enter(self, name: str, attributes: dict[str, Any]) -> None:
        one = Span(name, attributes)
        one.__enter__()
        self._spans.append(one)

    def _exit(self) -> None:
        self._spans.pop().__exit__(None, None, None)

    def _end_collective(self, what: dict[str, Any]) -> None:
        before = self._readings.pop()
        if before is not None:
            self._listener.end_collective(before, **what)


def _tensor(
    mode: FakeTensorMode,
    storage: torch.UntypedStorage,
    place: Place,
    dtype: torch.dtype,
    device: torch.device,
) -> FakeTensor:
    """A fake tensor at that place of a storage."""
    with torch._C._DisableTorchDispatch():
        plain = torch.empty(0, dtype=dtype, device="meta")
        plain.set_(storage, place.offset, place.shape, place.stride)
        return FakeTensor(mode, plain, device)
