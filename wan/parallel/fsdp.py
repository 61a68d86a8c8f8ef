"""Networks whose weights are stored 1/n on each rank (FSDP2), read shard by shard and given back after their stage.

    dit = Sharded("dit", build, source, ranks=ranks, units=WanDit.execution_order, device=device, offload=True)
    with dit.on_device() as model:                 # every rank together
        model(...)

fully_shard cuts every parameter along its first dimension. The module is built on the meta device and cut there; then
each rank allocates memory only for its own rows and reads only those, so neither device nor host ever holds a whole
network. A block is gathered when it runs, and the next block at the same time. After it has run, a block is freed down
to its shard; so is the root.

Lookup tables are not gathered: each rank looks up the rows that it has.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from wan.parallel.ranks import Ranks, gather_into
from wan.spans import span
from wan.weights.fill import Source
from wan.weights.residency import Component, Module, empty_cache


class Sharded(Component[Module]):
    """A network in shards: full, block and stream do not apply to it.

    Args:
        name: as for Component.
        build: makes the module on the meta device.
        source: opens where the weights come from.
        ranks: who shares the weights.
        units: the blocks that are gathered one by one.
        tables: children, nn.Embedding, whose rows are split instead of gathered.
        device: where the network runs.
        offload: free the shards after each use; they are read again at the next.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Module],
        source: Callable[[], Source],
        *,
        ranks: Ranks,
        units: Callable[[Module], Sequence[nn.Module]],
        tables: tuple[str, ...] = (),
        device: torch.device,
        offload: bool,
    ) -> None:
        super().__init__(name, build, source, strategy="block", device=device, offload=offload, units=units)
        self._ranks, self._tables = ranks, tables
        self._freed_bytes: dict[str, int] = {}

    @contextmanager
    def on_device(self) -> Iterator[Module]:
        """As Component.on_device; where an exception leaves the block, the module is made anew at the next use.

        After a forward pass that was left by an exception, FSDP acts as if the pass were still running: it keeps the
        block gathered last, and the next pass would gather shards without waiting until they are read. torch 2.11 has
        no call that resets it.
        """
        with super().on_device() as module:
            try:
                yield module
            except BaseException:
                self.release()
                self._module = self._source = None
                raise

    def _load(self, module: Module, source: Source) -> None:
        if isinstance(module, FSDPModule):
            for part in self._parts(module):
                part.local.untyped_storage().resize_(self._freed_bytes.get(part.name, 0))
        else:
            assert self._units is not None
            shard(module, self._units(module), self._tables, self._ranks)
            module.to_empty(device=self.device)
        for part in self._parts(module):
            if part.local.shape[0]:
                source.read_rows(part.name, part.local, start=part.start, shape=part.shape)
        source.release()

    def _move_in(self, module: Module) -> None:
        """Nothing to do: the shards were read directly to the device."""

    def _move_out(self, module: Module) -> None:
        if isinstance(module, FSDPModule):
            for child in module.modules():
                if isinstance(child, FSDPModule):
                    child.reshard()
            # The storage of the parameters is emptied, as FSDP does with gathered ones: whoever still refers to the
            # module keeps no memory alive, and what FSDP knows of the module stays true.
            for part in self._parts(module):
                storage = part.local.untyped_storage()
                # Compare only the types: no tensor has the device "cuda", but "cuda:0". Any other tensor is still on
                # meta.
                if part.local.device.type == self.device.type and storage.nbytes():
                    self._freed_bytes[part.name] = storage.nbytes()
                    storage.resize_(0)
        self._is_loaded = self._is_ready = False
        empty_cache(self.device)

    def _parts(self, module: nn.Module) -> Iterator["_Part"]:
        # Looked up each time: FSDP may replace what is stored, to pad it.
        for name, parameter in module.named_parameters():
            owner = module.get_submodule(name.rpartition(".")[0])
            if isinstance(parameter, DTensor):
                shape, local = parameter.shape, parameter.to_local()
            else:
                assert isinstance(owner, SplitTable), f"{name} is neither sharded nor a table"
                shape, local = owner.shape, parameter.data
            yield _Part(name, shape, first_row(shape[0], self._ranks), local)


class _Part(NamedTuple):
    """The rows of one parameter that this rank stores: none where there are more ranks than rows."""

    name: str
    shape: torch.Size
    """Of the whole parameter."""
    start: int
    local: Tensor


def first_row(num_rows: int, ranks: Ranks) -> int:
    """Where this rank's rows start: FSDP gives each rank as many as the first, until there are none left."""
    return min(num_rows, ranks.rank * -(-num_rows // ranks.size))


def shard(module: nn.Module, units: Sequence[nn.Module], tables: Sequence[str], ranks: Ranks) -> None:
    """Shard the parameters of `module`, on the meta device: each of `units` by itself, the rest together."""
    split = [SplitTable(cast(nn.Embedding, module.get_submodule(name)), ranks) for name in tables]
    for name, table in zip(tables, split, strict=True):
        module.set_submodule(name, table)
    mesh = DeviceMesh.from_group(ranks.group, ranks.device.type)
    for unit in units:
        # First, what is used outside the block's own forward pass.
        for child in getattr(unit, "apart", ()):
            if isinstance(inner := getattr(unit, child, None), nn.Module):
                fully_shard(inner, mesh=mesh, reshard_after_forward=True)
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    # By default FSDP keeps the root gathered for a backward pass, which never comes here.
    fully_shard(
        module, mesh=mesh, reshard_after_forward=True, ignored_params={table.weight for table in split}
    )
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.set_custom_all_gather(cast(Any, _AllGather()))


class _AllGather:
    """What FSDP gathers with: torch's own call, in a span."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Where a block is gathered to, before it is cut into parameters."""
        with span("comm.all_gather"):
            return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        with span("comm.all_gather"):
            return gather_into(output_tensor, input_tensor, group=group, async_op=async_op)


class SplitTable(nn.Module):
    """A lookup table whose rows are split over the ranks: the requested rows are sent, not the table."""

    def __init__(self, table: nn.Embedding, ranks: Ranks) -> None:
        super().__init__()
        self.shape = table.weight.shape
        self._ranks, self._start = ranks, first_row(self.shape[0], ranks)
        num_rows = min(-(-self.shape[0] // ranks.size), self.shape[0] - self._start)
        self.weight = nn.Parameter(table.weight[:num_rows].detach(), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., D] of ids [...], the same on all ranks."""
        if not self.weight.shape[0]:
            rows = self.weight.new_zeros(*ids.shape, self.shape[1])
        else:
            local = ids - self._start
            held = (local >= 0) & (local < self.weight.shape[0])
            rows = F.embedding(local.clamp(0, self.weight.shape[0] - 1), self.weight) * held.unsqueeze(-1)
        # One rank has the row and the others zeros: the sum is exact.
        return self._ranks.all_reduce(rows)
