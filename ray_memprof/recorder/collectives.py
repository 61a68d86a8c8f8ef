"""Records the collectives that this process calls, by wrapping the functions of torch.distributed.

    with watching(recorder):
        torch.distributed.all_reduce(x)          # a row of the collectives table

A row has the bytes, the group, and by how much device memory grew outside the allocator across the call: NCCL takes
its buffers when a group is made and when it is first used. Not recorded: isend and irecv on their own, functional
collectives (torch.ops._c10d_functional), collectives that C++ starts, and functions that a module imported by name
before the block (DeviceMesh imports new_group so). Memory that these take is found by the number of calls that each
group has counted (communicators.py).
"""

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ray_memprof.recorder.handler_errors import pass_on, suppressed
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.replacements import found_as
from ray_memprof.recorder.status import Group

# isend and irecv are not wrapped: P2POp accepts only the functions that torch.distributed has under these names, and a
# module may have imported the originals by name before.
OPS = (
    "init_process_group", "new_group", "destroy_process_group", "barrier", "broadcast", "all_reduce", "reduce",
    "all_gather", "all_gather_into_tensor", "all_gather_single", "gather", "scatter", "reduce_scatter",
    "reduce_scatter_tensor", "reduce_scatter_single", "all_to_all", "all_to_all_single", "send", "recv",
    "batch_isend_irecv",
)  # fmt: skip
_FROM_CPP = ("_verify_params_across_processes", "_broadcast_coalesced")
"""Functions of C++ with which DistributedDataParallel begins: the first calls of its group, before the first span."""
_MAKES_GROUP = ("init_process_group", "new_group")
_BATCH = "batch_isend_irecv"
_passed: Counter[Group] = Counter()
"""For each pair of ranks, the sends and receives of batches called inside watching(): NCCL does not report them."""


class CollectiveListener(Protocol):
    """The part of the recorder that is told of collectives."""

    def begin_collective(self) -> Reading | None:
        """A collective begins."""

    def end_collective(
        self, before: Reading, *, op: str, num_bytes: int, group: str, group_size: int
    ) -> None:
        """The collective has returned."""

    def problem(self, text: str) -> None:
        """Note what is unknown of a collective; the other two methods never raise."""


@contextmanager
def watching(listener: CollectiveListener) -> Iterator[None]:
    """Tell `listener` of every collective called inside the block."""
    import torch.distributed as dist

    if not dist.is_available():
        yield
        return
    calls = _Calls()
    modules = (dist, dist.distributed_c10d)
    # *_single exist since torch 2.13, and distributed_c10d lacks what comes from C++.
    originals = {op: getattr(dist, op) for op in (*OPS, *_FROM_CPP) if hasattr(dist, op)}
    places = [(module, op) for op in originals for module in modules if hasattr(module, op)]
    watched = {op: _watched(op, original, listener, calls) for op, original in originals.items()}
    for op, ours in watched.items():
        found_as(dist, op, ours)
    for module, op in places:
        setattr(module, op, watched[op])
    try:
        yield
    finally:
        calls.is_shut = True  # a module that imported a function by name inside the block keeps the wrapper
        for module, op in places:
            setattr(module, op, originals[op])


class _Calls:
    """Shut (collectives are ignored) while one runs, because those that it calls are part of it, and after the end."""

    __slots__ = ("is_shut",)

    def __init__(self) -> None:
        self.is_shut = False


def _watched(
    op: str, original: Callable[..., Any], listener: CollectiveListener, calls: _Calls
) -> Callable[..., Any]:
    # Functions of C++ have no signature; the group comes first in those that are watched.
    parameters = ["group"] if op in _FROM_CPP else list(inspect.signature(original).parameters)
    place = parameters.index("group") if "group" in parameters else -1

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if op == _BATCH:
            with suppressed():  # torch itself raises what is wrong with a batch
                _count_batch(kwargs.get("p2p_op_list", args and args[0]))
        if op in _MAKES_GROUP and not calls.is_shut:
            _make_context(kwargs.get("backend"), kwargs.get("device_id"))
        before = None if calls.is_shut else listener.begin_collective()
        if before is None:
            return original(*args, **kwargs)
        calls.is_shut = True
        try:
            result = original(*args, **kwargs)
        finally:
            calls.is_shut = False
        try:
            group = _group_of(op, args, kwargs, place, result)
            name, size = _describe(group)
            num_bytes = 0 if op == _FROM_CPP[0] else _num_bytes(args, kwargs)  # it passes shapes, not tensors
        except Exception as error:  # a program's own classes may lack attributes that torch does not need
            pass_on(error)
            listener.problem(f"group and bytes of {op} are unknown: {type(error).__name__}")
            name, size, num_bytes = "", 0, 0
        listener.end_collective(before, op=op, num_bytes=num_bytes, group=name, group_size=size)
        return result

    return watched


def _group_of(op: str, args: tuple[Any, ...], kwargs: dict[str, Any], place: int, result: Any) -> Any:
    """Return the group that a call names; None: the default one. `place`: index of the argument `group`, or -1."""
    if op == "new_group":
        return result
    if op == _BATCH:
        return kwargs.get("p2p_op_list", args and args[0])[0].group
    return kwargs.get("group", args[place] if 0 <= place < len(args) else kwargs.get("process_group"))


def _make_context(backend: Any, device: Any) -> None:
    """Make the CUDA context if the call that follows will make it, so that its size is known apart from NCCL's.

    A call with device_id makes the group's communicator at once, and the context before it. Nothing is made for a group
    that has another backend, or whose call names no device.
    """
    import torch

    with suppressed():  # the call itself raises what is wrong with the device
        if backend is not None and "nccl" not in str(backend):
            return
        if isinstance(device, torch.device) and device.type == "cuda":
            torch.cuda.mem_get_info(device)


def _count_batch(operations: Any) -> None:
    """Count each pair of ranks by itself: in a pipeline, inner ranks send more often than the first and the last."""
    import torch.distributed as dist

    for operation in operations:
        if operation.group.name() != "gloo":
            one, other = sorted((dist.get_rank(), operation.peer))
            name = f"{operation.group.group_name} between ranks {one} and {other}"
            _passed[Group(name=name, first_rank=one, second_rank=other)] += 1


def _describe(group: Any) -> tuple[str, int]:
    """Return name and size of a process group, for None of the default one; "" and 0 where there is none."""
    import torch.distributed as dist

    if group is None:
        group = dist.group.WORLD if dist.is_initialized() else None
    if not isinstance(group, dist.ProcessGroup):
        return "", 0
    return str(group.group_name), int(group.size())


def joined() -> dict[Group, int]:
    """Return how many collectives of each group this process has called, finished or not; from any thread.

    The numbers are torch's own, which count every call, whatever code makes it; those of sends and receives in batches
    are from _passed. Groups of gloo are left out: gloo also counts every send and receive, so ranks differ without a
    hang; and its calls block, so stacks show where a rank waits. Never raises: a rank that does not answer would be
    blamed for a hang.
    """
    c10d = sys.modules.get("torch.distributed.distributed_c10d")
    if c10d is None:
        return {}
    found = dict(_passed)
    for group in list(c10d._world.pg_map):
        # Some backends do not count, a program's own classes may lack attributes, and a group may be gone by now.
        with suppressed():
            # name() is of the backend that counts. get_backend() says "undefined" or "cpu:gloo" where the program asked
            # for that.
            if group.name() != "gloo":
                name, first_rank = str(group.group_name), min(c10d.get_process_group_ranks(group))
                found[Group(name=name, first_rank=first_rank)] = group._get_sequence_number_for_group()
    return found


def _num_bytes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the bytes of the largest tensor, or list of tensors, among the arguments."""
    return max((_size(value) for value in (*args, *kwargs.values())), default=0)


def _size(value: Any) -> int:
    import torch

    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (list, tuple)):
        return sum(_size(item) for item in value)
    return _size(value.tensor) if hasattr(value, "tensor") else 0
