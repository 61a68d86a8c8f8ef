"""Blocks in host memory that visit the device in turn: what load_strategy `stream` is made of.

streamer = Streamer(dit, dit.execution_order(), source, device)      # reads every weight into host memory
streamer.attach()                                                    # two places on the device, first copies
dit(...)                                                             # hooks on the blocks do the rest
streamer.detach()
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wan.weights.fill import Source, put

NUM_PLACES = 2
"""Blocks on the device at a time: one computes while the next one arrives."""
ALIGNMENT = 16
"""Bytes: where a parameter may begin in a buffer. Matrix products in fp8 ask for it."""


class Streamer:
    """Blocks in pinned host memory that visit the device in turn, each copied while the one before computes.

    Every block has one flat host buffer; the device has NUM_PLACES buffers of the largest block's size. A block's
    parameters point into a place while it runs and into its host buffer otherwise. Hooks on the blocks drive it.
    """

    def __init__(
        self, module: nn.Module, units: Sequence[nn.Module], source: Source, device: torch.device
    ) -> None:
        prefixes = {child: f"{name}." for name, child in module.named_modules()}
        self._device = device
        self._units = [_Unit(unit, prefixes[unit], source, pin=device.type == "cuda") for unit in units]
        self.parameters = {parameter for unit in self._units for parameter in unit.parameters}
        for name, parameter in list(module.named_parameters()):
            if parameter not in self.parameters:
                target = torch.empty(parameter.shape, dtype=parameter.dtype)
                source.read_into(name, target)
                put(module, name, target)
        source.release()
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._places: list[Tensor] = []
        self._arrived: list[torch.cuda.Event] = []
        self._hooks: list[Any] = []
        self._visit = 0  # how many blocks have run in all forward passes

    def attach(self) -> None:
        """Take the places on the device and start the first copies."""
        self.detach()
        size = max(unit.host.numel() for unit in self._units)
        self._places = [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(NUM_PLACES)]
        if self._copies is not None:
            self._arrived = [torch.cuda.Event() for _ in self._places]
        for index, unit in enumerate(self._units):
            enter, leave = (_hook(step, self, index) for step in (Streamer._enter, Streamer._leave))
            self._hooks.append(unit.module.register_forward_pre_hook(enter))
            self._hooks.append(unit.module.register_forward_hook(leave))
        self._restart(0)

    def detach(self) -> None:
        """Give the places back; parameters point to host memory."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._copies is not None:
            self._copies.synchronize()
        for unit in self._units:
            unit.point_into(unit.host)
        self._places.clear()

    def _restart(self, index: int) -> None:
        self._visit = index
        for visit in range(index, index + NUM_PLACES):
            self._fetch(visit)

    def _enter(self, index: int) -> None:
        if self._visit % len(self._units) != index:
            self._restart(index)  # an exception ended the last forward pass half way
        if self._copies is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrived[self._visit % NUM_PLACES])
        self._units[index].point_into(self._places[self._visit % NUM_PLACES])

    def _leave(self, index: int) -> None:
        self._units[index].point_into(self._units[index].host)
        self._fetch(self._visit + NUM_PLACES)
        self._visit += 1

    def _fetch(self, visit: int) -> None:
        """Copy the block of a visit into its place; after the last block come the first ones, for the next pass."""
        host = self._units[visit % len(self._units)].host
        target = self._places[visit % NUM_PLACES][: host.numel()]
        if self._copies is None:
            target.copy_(host)
            return
        # The kernels that read the block before in this place are already queued: the copy waits for them, the host
        # does not.
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            target.copy_(host, non_blocking=True)
            self._arrived[visit % NUM_PLACES].record()


def _hook(step: Callable[["Streamer", int], None], streamer: "Streamer", index: int) -> Callable[..., None]:
    # A hook belongs to its block. If it held the streamer, which holds the block, neither they nor tens of GiB would be
    # freed before the garbage collector runs.
    reference = weakref.ref(streamer)

    def call(*_: object) -> None:
        owner = reference()
        assert owner is not None, "a streamed network is used after its Component is gone"
        step(owner, index)

    return call


class _Unit:
    """A block with its weights in one flat host buffer of bytes, page-locked when a GPU reads from it."""

    def __init__(self, module: nn.Module, prefix: str, source: Source, *, pin: bool) -> None:
        self.module = module
        apart = tuple(f"{child}." for child in getattr(module, "apart", ()))
        named = [(name, p) for name, p in module.named_parameters() if not name.startswith(apart)]
        self._starts = [0]
        for _, placeholder in named:
            end = self._starts[-1] + placeholder.nbytes
            self._starts.append(-(-end // ALIGNMENT) * ALIGNMENT)
        self.host = torch.empty(self._starts[-1], dtype=torch.uint8)
        self.parameters: list[nn.Parameter] = []
        for start, (name, placeholder) in zip(self._starts, named, strict=False):
            view = _view(self.host, start, placeholder)
            source.read_into(prefix + name, view)
            self.parameters.append(put(module, name, view))
        if pin:
            pin_in_place(self.host)

    def point_into(self, buffer: Tensor) -> None:
        """Let the parameters be views of `buffer`."""
        for start, parameter in zip(self._starts, self.parameters, strict=False):
            parameter.data = _view(buffer, start, parameter)


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """The bytes of `buffer` from `start` on, as a tensor of the dtype and shape of `like`."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)


def pin_in_place(tensor: Tensor) -> None:
    """Page-lock the memory of a host tensor until it is freed.

    Not tensor.pin_memory(): that copies, and its allocator rounds up to a power of two (670 MiB become 1 GiB).
    Raises MemoryError where the system does not let so much memory be locked.
    """
    runtime = torch.cuda.cudart()
    storage = tensor.untyped_storage()
    try:
        torch.cuda.check_error(runtime.cudaHostRegister(storage.data_ptr(), storage.nbytes(), 0))
    except RuntimeError as error:
        raise MemoryError(
            f"{storage.nbytes():,} bytes of host memory cannot be page-locked: {error}"
        ) from error
    weakref.finalize(storage, runtime.cudaHostUnregister, storage.data_ptr())
