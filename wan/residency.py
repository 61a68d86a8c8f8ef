"""Who is on the device when: one Component a network, with the strategy that brings its weights there and away.

    dit = Component("dit", build, source, strategy="stream", device=device)
    with dit.on_device() as model:        # offload=True gives the device memory back at the end of the block
        model(...)

| strategy | first use | released | next use |
|---|---|---|---|
| full   | whole network read to host memory, then copied | device copy dropped, host copy stays | copied again |
| block  | read straight to the device, parameter by parameter | dropped | read again |
| stream | blocks read to pinned host memory; two at a time visit the device | the two places are dropped | as before |

On a CPU device full and block keep one copy; stream still copies blocks into its places, as it would for a GPU.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from wan.levers import LoadStrategy
from wan.spans import span
from wan.weights import Source, expected_shapes, materialize

Module = TypeVar("Module", bound=nn.Module)
Units = Callable[[Module], Sequence[nn.Module]]

NUM_PLACES = 2
"""Blocks on the device at a time under `stream`: one computes while the next one arrives."""


class Component(Generic[Module]):
    """One network of a pipeline and its weights: not loaded, in host memory, or on the device.

    Args:
        name: what its spans are called: load.<name>.
        build: makes the module on the meta device.
        source: opens where the weights come from; called at the first use.
        strategy: how the weights travel, see the module's table.
        device: where the network runs.
        offload: give the device memory back after each use.
        units: the blocks that `stream` brings in one by one, in execution order.
        stay: children that `stream` leaves in host memory for good (lookup tables).
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Module],
        source: Callable[[], Source],
        *,
        strategy: LoadStrategy,
        device: torch.device,
        offload: bool,
        units: Units[Module] | None = None,
        stay: tuple[str, ...] = (),
    ) -> None:
        self.name, self.device, self.offload = name, device, offload
        self._build, self._open = build, source
        self._units = units
        self._stay = stay
        # A network without blocks to stream is small: it is read straight to the device.
        self._strategy: LoadStrategy = "block" if strategy == "stream" and units is None else strategy
        self._source: Source | None = None
        self._module: Module | None = None
        self._host: dict[nn.Parameter, Tensor] = {}
        self._streamer: Streamer | None = None
        self._is_ready = False

    @contextmanager
    def on_device(self) -> Iterator[Module]:
        """The network, ready to run on `device`; released afterwards where `offload` is set."""
        module = self._onload()
        try:
            yield module
        finally:
            if self.offload:
                self.release()

    def _onload(self) -> Module:
        if self._module is None:
            with span(f"load.{self.name}"):
                self._module = self._load()
        if not self._is_ready:
            with span("residency.onload", component=self.name):
                self._move_in(self._module)
            self._is_ready = True
        return self._module

    def _load(self) -> Module:
        module = self._build()
        if self._source is None:
            self._source = self._open()
            self._source.check(expected_shapes(module))
        if self._strategy == "stream":
            assert self._units is not None
            self._streamer = Streamer(module, self._units(module), self._source, self.device)
        else:
            straight = self._strategy == "block"
            materialize(module, self._source, self.device if straight else torch.device("cpu"))
        return module

    def _move_in(self, module: Module) -> None:
        if self._strategy == "block" or (self._strategy == "full" and self.device.type == "cpu"):
            return
        skip: set[nn.Parameter] = set()
        if self._streamer is not None:
            self._streamer.attach()
            skip = self._streamer.parameters
        for name, parameter in module.named_parameters():
            if parameter not in skip and not name.startswith(self._stay_prefixes):
                if self.offload:
                    self._host[parameter] = parameter.data
                parameter.data = parameter.data.to(self.device)

    @property
    def _stay_prefixes(self) -> tuple[str, ...]:
        return tuple(f"{child}." for child in self._stay) if self._streamer is not None else ()

    def release(self) -> None:
        """Give the device memory back; under `block` the weights are read again at the next use."""
        if not self._is_ready:
            return
        with span("residency.offload", component=self.name):
            if self._streamer is not None:
                self._streamer.detach()
            for parameter, host in self._host.items():
                parameter.data = host
            self._host.clear()
            if self._strategy == "block":
                self._module = None
            self._is_ready = False
            empty_cache(self.device)


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
                owner, _, leaf = name.rpartition(".")
                target = torch.empty(parameter.shape, dtype=parameter.dtype)
                source.read_into(name, target)
                setattr(module.get_submodule(owner), leaf, nn.Parameter(target, requires_grad=False))
        source.release()
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._places: list[Tensor] = []
        self._arrived: list[torch.cuda.Event] = []
        self._hooks: list[Any] = []
        self._visit = 0  # how many blocks have run, counted on over forward passes

    def attach(self) -> None:
        """Take the places on the device and start the first copies."""
        size = max(unit.host.numel() for unit in self._units)
        dtype = self._units[0].host.dtype
        self._places = [torch.empty(size, dtype=dtype, device=self._device) for _ in range(NUM_PLACES)]
        if self._copies is not None:
            self._arrived = [torch.cuda.Event() for _ in self._places]
        for index, unit in enumerate(self._units):
            self._hooks.append(unit.module.register_forward_pre_hook(self._before(index)))
            self._hooks.append(unit.module.register_forward_hook(self._after(index)))
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

    def _before(self, index: int) -> Callable[..., None]:
        def enter(*_: object) -> None:
            if self._visit % len(self._units) != index:
                self._restart(index)  # an exception ended the last forward pass half way
            place = self._visit % NUM_PLACES
            if self._copies is not None:
                torch.cuda.current_stream(self._device).wait_event(self._arrived[place])
            self._units[index].point_into(self._places[place])

        return enter

    def _after(self, index: int) -> Callable[..., None]:
        def leave(*_: object) -> None:
            self._units[index].point_into(self._units[index].host)
            self._fetch(self._visit + NUM_PLACES)
            self._visit += 1

        return leave

    def _fetch(self, visit: int) -> None:
        """Copy the block of a visit into its place; past the last block come the first ones, for the next pass."""
        host = self._units[visit % len(self._units)].host
        place = self._places[visit % NUM_PLACES][: host.numel()]
        if self._copies is None:
            place.copy_(host)
            return
        # The kernels that read what stood in this place are queued before us: wait for them, not for the host.
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            place.copy_(host, non_blocking=True)
            self._arrived[visit % NUM_PLACES].record()


class _Unit:
    """A block with its weights in one flat host buffer, page-locked when a GPU reads from it."""

    def __init__(self, module: nn.Module, prefix: str, source: Source, *, pin: bool) -> None:
        self.module = module
        apart = tuple(f"{child}." for child in getattr(module, "apart", ()))
        named = [(name, p) for name, p in module.named_parameters() if not name.startswith(apart)]
        self.host = torch.empty(sum(p.numel() for _, p in named), dtype=named[0][1].dtype)
        self.parameters: list[nn.Parameter] = []
        start = 0
        for name, placeholder in named:
            view = self.host[start : start + placeholder.numel()].view(placeholder.shape)
            source.read_into(prefix + name, view)
            parameter = nn.Parameter(view, requires_grad=False)
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, parameter)
            self.parameters.append(parameter)
            start += placeholder.numel()
        if pin:
            pin_in_place(self.host)

    def point_into(self, buffer: Tensor) -> None:
        """Let the parameters be views of `buffer`."""
        start = 0
        for parameter in self.parameters:
            size = parameter.numel()
            parameter.data = buffer[start : start + size].view(parameter.shape)
            start += size


def pin_in_place(tensor: Tensor) -> None:
    """Page-lock the memory of a host tensor until it is freed.

    Not tensor.pin_memory(): that copies, and its allocator rounds up to a power of two (670 MiB become 1 GiB).
    """
    runtime = torch.cuda.cudart()
    storage = tensor.untyped_storage()
    torch.cuda.check_error(runtime.cudaHostRegister(storage.data_ptr(), storage.nbytes(), 0))
    weakref.finalize(storage, runtime.cudaHostUnregister, storage.data_ptr())


def empty_cache(device: torch.device) -> None:
    """Return what the allocator keeps to the device, so that the next component finds it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
