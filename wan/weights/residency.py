"""Which network is on the device at which time: one Component for each, with a strategy for moving its weights.

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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from wan.levers import LoadStrategy
from wan.spans import span
from wan.weights.fill import Source, expected_shapes, materialize, put
from wan.weights.streaming import Streamer

Module = TypeVar("Module", bound=nn.Module)
Units = Callable[[Module], Sequence[nn.Module]]


@runtime_checkable
class LaysOut(Protocol):
    """A part of a network that wants its weights in another order in memory than files have them."""

    def lay_out(self) -> None:
        """Bring the weights into that order, on whatever device they are."""


class Component(Generic[Module]):
    """One network of a pipeline and its weights: not loaded, in host memory, or on the device.

    Args:
        name: what its spans are called: load.<name>.
        build: makes the module on the meta device.
        source: opens the source of the weights; prepare() calls it once.
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
        self._stay = tuple(f"{child}." for child in stay)
        # A network without blocks to stream is small: it is read straight to the device.
        self._strategy: LoadStrategy = "block" if strategy == "stream" and units is None else strategy
        self._source: Source | None = None
        self._module: Module | None = None
        self._streamer: Streamer | None = None
        self._host: dict[nn.Parameter, Tensor] = {}
        self._is_loaded = self._is_ready = False

    def prepare(self) -> None:
        """Make the module on meta and see that the source fits it; reads headers, takes no device memory.

        Raises:
            WeightsError: files are missing or damaged, or keys or shapes do not fit.
        """
        if self._source is None:
            module, source = self._build(), self._open()
            source.check(expected_shapes(module))
            self._module, self._source = module, source

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
        self.prepare()
        assert self._module is not None and self._source is not None
        if self._is_ready:
            return self._module
        try:
            if not self._is_loaded:
                with span(f"load.{self.name}"):
                    self._load(self._module, self._source)
                self._is_loaded = True
            with span("residency.onload", component=self.name):
                self._move_in(self._module)
        except BaseException:
            self._move_out(self._module)
            raise
        self._is_ready = True
        return self._module

    def _load(self, module: Module, source: Source) -> None:
        if self._strategy == "stream":
            assert self._units is not None
            self._streamer = Streamer(module, self._units(module), source, self.device)
        else:
            materialize(module, source, self.device if self._strategy == "block" else torch.device("cpu"))
            for part in module.modules():
                if isinstance(part, LaysOut):
                    part.lay_out()

    def _move_in(self, module: Module) -> None:
        if self._strategy == "block" or (self._strategy == "full" and self.device.type == "cpu"):
            return
        skip: set[nn.Parameter] = set()
        if self._streamer is not None:
            self._streamer.attach()
            skip = self._streamer.parameters
        for name, parameter in module.named_parameters():
            if parameter in skip or (self._streamer is not None and name.startswith(self._stay)):
                continue
            if self.offload:
                self._host[parameter] = parameter.data
            parameter.data = parameter.data.to(self.device)

    def _move_out(self, module: Module) -> None:
        """Undo _move_in, or as much of it as was done."""
        if self._streamer is not None:
            self._streamer.detach()
        for parameter, host in self._host.items():
            parameter.data = host
        self._host.clear()
        if self._strategy == "block":
            # So whoever still refers to the module keeps no memory alive.
            for name, parameter in list(module.named_parameters()):
                put(module, name, torch.empty_like(parameter, device="meta"))
            self._is_loaded = False
        self._is_ready = False
        empty_cache(self.device)

    def release(self) -> None:
        """Give the device memory back; under `block` the weights are read again at the next use."""
        if self._is_ready:
            assert self._module is not None
            with span("residency.offload", component=self.name):
                self._move_out(self._module)


def empty_cache(device: torch.device) -> None:
    """Return cached memory to the device, so that the next component can have it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
