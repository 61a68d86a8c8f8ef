"""Modules that run again and again are computed a few times; then what they asked of the device is played back.

    repeats = Repeats(device, recorder)
    with repeats.replaying(mode):
        ...                                 # wan, as it is

A video of 14B runs the same block 40 times in each pass, and the same pass 100 times. The work is the same each time:
on fake tensors there are no numbers on which it could depend. A call is played back if the two calls before it

- had arguments and weights of the same shapes, dtypes and strides as it has,
- asked the device for the same, in the same order: memory, kernels, waits, spans, exchanges (call_record.py),
- returned alike, and kept no more memory than they found.

Whatever else happens in a call, such as a library that is loaded, makes it one that is computed. Blocks are in a pass,
passes in a step: each is played back by itself. Hooks of FSDP and of streaming are not part of a block's forward():
they run each time, until a whole pass is played back.

Calls of a block are compared within a pass, calls of a layer of the VAE within one slab: what a pass begins with
(buffers of a ring, the past of a convolution) is computed anew in each.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ray_memprof.allocator.caching import Block
from ray_memprof.predictor.call_record import (
    MOST_CALLS_KEPT,
    CallRecord,
    NotRepeatable,
    Reader,
    key_of,
    weights_key,
)
from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.predictor.playback import Playback
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.rows import Owner
from ray_memprof.recorder.spans import listening

if TYPE_CHECKING:
    from ray_memprof.recorder.recorder import Recorder

Key = Callable[..., tuple[Any, ...]]


class _History:
    """The last calls that had the same key."""

    def __init__(self) -> None:
        self.key: Any = None
        self.records: list[CallRecord] = []
        """The last one first."""
        self.is_repeating = False

    def clear(self, key: Any = None) -> None:
        self.key, self.records, self.is_repeating = key, [], False

    def add(self, record: CallRecord) -> None:
        self.is_repeating = bool(self.records) and record.is_steady and record.repeats(self.records[0])
        self.push(record)

    def push(self, record: CallRecord) -> None:
        self.records = [record, *self.records[: MOST_CALLS_KEPT - 1]]


class Repeats:
    """Those of one rank.

    Args:
        device: that is asked.
        recorder: hears of spans, collectives and owners.
    """

    def __init__(self, device: FakeDevice, recorder: "Recorder") -> None:
        self._device, self._recorder = device, recorder
        self._histories: dict[str, dict[Any, _History]] = {}
        self._owners: dict[Block, Owner] = {}
        self.num_played = 0
        """Calls that were played back."""

    @contextmanager
    def replaying(self, mode: FakeTensorMode) -> Iterator[None]:
        """Inside the block, modules of wan that run again are played back.

        Args:
            mode: of the tensors.
        """
        from transformers.models.umt5.modeling_umt5 import UMT5Block

        from wan import pipeline
        from wan.networks.dit import Block as DitBlock
        from wan.networks.dit import VaceBlock, WanDit
        from wan.networks.text import TextEncoder
        from wan.networks.vae.layers import ResidualBlock, SlabPass

        with ExitStack() as stack:

            def put(place: Any, name: str, instead: Callable[[Any], Any]) -> None:
                stack.enter_context(patch.object(place, name, instead(getattr(place, name))))

            put(pipeline, "_guided", lambda original: self._around(mode, "steps", original, _whole_key))
            for block in (DitBlock, VaceBlock, UMT5Block):
                put(block, "forward", lambda original: self._around(mode, "blocks", original, _block_key))
            put(ResidualBlock, "forward", lambda original: self._around(mode, "layers", original, _layer_key))
            for whole in (WanDit, TextEncoder):
                put(whole, "forward", lambda original: self._clearing("blocks", original))
            # With the hooks of the whole network: FSDP gathers its root in one, and frees it in another.
            put(WanDit, "__call__", lambda _: self._around(mode, "passes", _called, _whole_key))
            put(SlabPass, "__init__", lambda original: self._clearing("layers", original))
            for name in ("begin_collective", "end_collective", "claim"):
                put(self._recorder, name, getattr(self, f"_{name}"))
            stack.enter_context(listening(self))
            yield

    # ---- calls

    def _clearing(self, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._histories.pop(kind, None)
            return original(*args, **kwargs)

        return call

    def _around(
        self, mode: FakeTensorMode, kind: str, original: Callable[..., Any], key: Key
    ) -> Callable[..., Any]:
        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                whose, found = key(*args, **kwargs)
            except NotRepeatable:
                return original(*args, **kwargs)
            history = self._histories.setdefault(kind, {}).setdefault((original, whose), _History())
            if history.key != found:
                history.clear(found)
            # Not those in lists: the call may empty a list to free them.
            arguments = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
            if history.is_repeating and self._is_playable(history.records):
                return self._play(mode, history, arguments)
            return self._compute(history, arguments, lambda: original(*args, **kwargs))

        return call

    def _is_playable(self, records: list[CallRecord]) -> bool:
        """Whether what the calls before have kept, and what they have used of others, is still there."""
        last, device = records[0], self._device
        kept = [records[age].blocks[number] for number, calls in last.kept.items() for age in range(calls)]
        return device.stream is last.stream and all(
            device.owner_of(block) is not None for block in (*kept, *last.others)
        )

    def _play(self, mode: FakeTensorMode, history: _History, arguments: list[Any]) -> Any:
        self.num_played += 1
        playback = Playback(self._device, self._recorder, history.records)
        try:
            record = playback.play(history.records[0])
        except BaseException:
            history.clear()
            raise
        history.push(record)
        return playback.result(record, arguments, mode)

    def _compute(self, history: _History, arguments: list[Any], work: Callable[[], Any]) -> Any:
        device = self._device
        is_outermost, stream = device.log is None, device.stream
        log = device.log = [] if device.log is None else device.log
        start = len(log)
        try:
            result = work()
            record = Reader(device, history.records).read(log[start:], arguments, result)
            record.stream = stream
            record.is_repeatable &= device.stream is stream
            history.add(record)
        except BaseException:
            history.clear()
            raise
        finally:
            if is_outermost:
                device.log = None
        return result

    # ---- what is heard meanwhile

    def enter(self, name: str, attributes: dict[str, Any]) -> None:
        """A span begins."""
        self._device.note("span.enter", name, attributes)

    def exit(self, name: str, failed: bool) -> None:
        """A span ends."""
        self._device.note("span.failed" if failed else "span.exit")

    def _begin_collective(self, original: Callable[[], Reading | None]) -> Callable[[], Reading | None]:
        def begin_collective() -> Reading | None:
            self._device.note("collective.begin")
            return original()

        return begin_collective

    def _end_collective(self, original: Callable[..., None]) -> Callable[..., None]:
        def end_collective(before: Reading, **what: Any) -> None:
            self._device.note("collective.end", what)
            original(before, **what)

        return end_collective

    def _claim(self, original: Callable[[Any, Owner], None]) -> Callable[[Any, Owner], None]:
        """A claim that only says again what is known of a block is no part of a call's record."""

        def claim(tensor: Any, owner: Owner) -> None:
            block = tensor
            if not isinstance(tensor, Block):
                block = self._device.block_of(tensor.untyped_storage())
            if block is not None:
                known = self._owners.get(block)
                self._owners[block] = owner
                if known is None or (known.category, known.component) != (owner.category, owner.component):
                    self._device.note("claim", block, owner)
            original(tensor, owner)

        return claim


def _called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """As Module.__call__, which is looked up late: who names modules replaces it."""
    return nn.Module.__call__(module, *args, **kwargs)


def _whole_key(dit: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Of a pass through a network, or of a denoise step, which has both passes of guidance."""
    return id(dit), (key_of(args), key_of((kwargs,)))


def _block_key(block: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Of a block: others of its kind do the same work, on weights of the same shapes."""
    return type(block), (block.training, weights_key(block), key_of(args), key_of((kwargs,)))


def _layer_key(layer: Any, x: Any, past: Any, crop: Any) -> tuple[Any, ...]:
    """Of a layer of the VAE, which remembers frames of one slab."""
    return (id(layer), id(past)), (key_of((x,)), _crop_key(crop))


def _crop_key(crop: Any) -> Any:
    keywords = getattr(crop, "keywords", None)
    return crop if keywords is None else (crop.func, tuple(keywords.items()))
