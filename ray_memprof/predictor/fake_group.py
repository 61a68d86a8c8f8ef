"""torch.distributed for one rank that is alone: an exchange takes the memory and the time that NCCL would take.

The other ranks are taken to be ready when this one is.

    with fake_group(device, shapes, environment):
        torch.distributed.init_process_group("nccl", rank=1, world_size=4)

Tensors that only the first rank makes, and that the others receive, have shapes that only the first rank knows: it
notes them in `shapes`, and the others read them there.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.predictor.outside import DEFAULT_BUFFER_BYTES, Nccl
from ray_memprof.predictor.shapes import Shapes
from wan.parallel.fsdp import SplitTable
from wan.parallel.ranks import Ranks

_OPS = (
    "barrier", "broadcast", "all_reduce", "all_gather_into_tensor", "all_gather_single", "all_to_all_single",
)  # fmt: skip
_GATHERED = ("output_tensor", "input_tensor")
_TENSORS = {
    "broadcast": ("tensor", ""), "all_reduce": ("tensor", ""), "all_gather_into_tensor": _GATHERED,
    "all_gather_single": _GATHERED, "all_to_all_single": ("output", "input"),
}  # fmt: skip
"""The names of a function's tensors."""


@contextmanager
def fake_group(device: FakeDevice, shapes: Shapes, environment: Mapping[str, str]) -> Iterator[None]:
    """Let torch.distributed be about ranks that are not there.

    Args:
        device: of this rank.
        shapes: what the first rank makes alone: written by it, read by the others.
        environment: of the rank: NCCL_BUFFSIZE counts.
    """
    nccl = Nccl(device, int(environment.get("NCCL_BUFFSIZE", DEFAULT_BUFFER_BYTES)))
    modules = (dist, dist.distributed_c10d)
    instead: dict[str, Any] = {name: _watched(name, nccl) for name in _OPS if hasattr(dist, name)}
    instead["init_process_group"] = _joining(nccl)
    instead["batch_isend_irecv"] = _passing(nccl)
    with ExitStack() as stack:
        for name, function in instead.items():
            for module in modules:
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, function))
        stack.enter_context(patch.object(DeviceMesh, "from_group", _mesh_of))
        stack.enter_context(patch.object(ShardingPropagator, _META, _without_memory))
        stack.enter_context(patch.object(SplitTable, "_apply", _applied))
        stack.enter_context(patch.object(Ranks, "_empty", lambda ranks, _: _received(shapes, ranks.device)))
        stack.enter_context(patch.object(Ranks, "_broadcast", _noting(shapes)))
        stack.callback(_leave)
        yield


def _leave() -> None:
    """Leave the group that a rank which failed has not left."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _joining(nccl: Nccl) -> Callable[..., None]:
    original = dist.init_process_group

    @functools.wraps(original)
    def join(backend: str | None = None, **kwargs: Any) -> None:
        with _disable_current_modes():
            original("fake", store=FakeStore(), rank=kwargs["rank"], world_size=kwargs["world_size"])
        nccl.join(kwargs["rank"], kwargs["world_size"])

    return join


def _watched(name: str, nccl: Nccl) -> Callable[..., Any]:
    original = getattr(dist, name)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        nccl.call(name, args)
        result = original(*args, **kwargs)
        if name == "barrier":
            return result
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        exchange = nccl.exchange(_crossing_bytes(name, given))
        if given.get("async_op"):
            return exchange
        exchange.wait()
        return result

    return call


def _crossing_bytes(name: str, given: Mapping[str, Any]) -> int:
    """Bytes that a rank sends to others, or receives from them: the larger of both.

    Args:
        name: of the function of torch.distributed.
        given: its arguments by their names.
    """
    size, rank = dist.get_world_size(), dist.get_rank()
    others = (size - 1) / size
    first, second = (given[key] if key else torch.empty(0) for key in _TENSORS[name])
    if name == "all_to_all_single":
        ways = (first, given.get("output_split_sizes")), (second, given.get("input_split_sizes"))
        return max(
            int(_bytes(x) * (1 - rows[rank] / max(1, sum(rows)) if rows else others)) for x, rows in ways
        )
    # A ring passes every part but one on; in a sum each of them twice, first added up and then spread.
    return int(_bytes(first) * {"broadcast": 1, "all_reduce": 2 * others}.get(name, others))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _passing(nccl: Nccl) -> Callable[..., Any]:
    original = dist.batch_isend_irecv

    @functools.wraps(original)
    def call(p2p_op_list: list[Any]) -> list[Any]:
        nccl.call("batch_isend_irecv", (p2p_op_list,))
        original(p2p_op_list)
        return [nccl.transfer(p2p_op_list)]

    return call


_from_group = DeviceMesh.from_group


def _mesh_of(*args: Any, **kwargs: Any) -> DeviceMesh:
    """A mesh reads the numbers of its ranks out of a tensor, which must be a real one."""
    with _disable_current_modes():
        return _from_group(*args, **kwargs)


_META = "_propagate_tensor_meta_non_cached"
_meta_of = getattr(ShardingPropagator, _META)


def _without_memory(*args: Any, **kwargs: Any) -> Any:
    """What a DTensor will look like: torch finds it out once in a process, on fake tensors that no rank has."""
    with _disable_current_modes():
        return _meta_of(*args, **kwargs)


def _applied(table: SplitTable, change: Callable[[Tensor], Tensor], recurse: bool = True) -> SplitTable:
    """As nn.Module._apply: that one swaps two tensors, which fake ones do not allow."""
    table.weight = nn.Parameter(change(table.weight), requires_grad=False)
    return table


def _received(shapes: Shapes, device: torch.device) -> Tensor:
    dtype, shape = shapes.take()
    return torch.empty(shape, dtype=dtype, device=device)


def _noting(shapes: Shapes) -> Callable[[Ranks, Tensor], None]:
    broadcast, is_header = Ranks._broadcast, True

    def noted(ranks: Ranks, tensor: Tensor) -> None:
        nonlocal is_header
        broadcast(ranks, tensor)
        # A header and the tensor that it tells of take turns.
        if ranks.rank == 0 and not is_header:
            shapes.append(tensor.dtype, tuple(tensor.shape))
        is_header = not is_header

    return noted
