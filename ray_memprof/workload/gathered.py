"""Finds the buffers of DDP and FSDP2: what is gathered from other ranks or sent to them, copies of weights included.

    with claiming_gathered(recorder.claim, problem):
        ...                              # FSDP's gathered weights are communication, owner "blocks.7"

Functions of torch that are not public are replaced inside the block by ones that call them and look at the result.
Where a release of torch has none of that name, nothing is replaced: then gathered weights have no owner.
"""

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ray_memprof.recorder.after_import import after_import
from ray_memprof.recorder.handler_errors import pass_on
from ray_memprof.recorder.replacements import Replacements
from ray_memprof.recorder.rows import Owner
from ray_memprof.recorder.spans import Attribute, span
from ray_memprof.recorder.stacks import hide_frames
from ray_memprof.wording import error_line
from ray_memprof.workload.module_names import ModuleNames

hide_frames(__file__)
BUCKETS = "comm.buckets"
"""The span in which DDP makes the buckets that it reduces gradients in."""
_FSDP2 = "torch.distributed.fsdp._fully_shard._fsdp_param_group"
_DDP = ("__init__", "_rebuild_buckets")


@contextmanager
def claiming_gathered(
    claim: Callable[[Tensor, Owner], None], problem: Callable[[str], None], names: ModuleNames
) -> Iterator[None]:
    """Claim the buffers of DDP and FSDP2 inside the block.

    Args:
        claim: is told of a tensor and the owner of its storage; from any thread.
        problem: called with a message if something could not be claimed; no error is raised into the program.
        names: of the program's modules.
    """
    if not dist.is_available():
        yield
        return
    gathered = _Gathered(claim, problem, names)
    gathered.watch_ddp()
    try:
        # FSDP takes a second to import: only a program that uses it shall.
        with after_import(_FSDP2, gathered.watch_fsdp2):
            yield
    finally:
        gathered.close()


class _Gathered:
    def __init__(
        self, claim: Callable[[Tensor, Owner], None], problem: Callable[[str], None], names: ModuleNames
    ) -> None:
        self._claim_one, self._problem, self._names = claim, problem, names
        self._thread = threading.get_ident()
        self._replaced = Replacements()
        self._owners: weakref.WeakKeyDictionary[Any, Owner] = weakref.WeakKeyDictionary()
        """By the first parameter of a group."""
        self._is_over = False
        self._wrapped = ""
        """Component of the module for which DDP is being built; "": none."""

    def close(self) -> None:
        self._is_over = True
        self._replaced.take_back()

    def _claim(self, tensors: Any, params: Any) -> None:
        owner = self._owner_of(params)
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._claim_one(tensor, owner)

    def _owner_of(self, params: Any) -> Owner:
        """The path that the modules of a group's parameters share: FSDP gathers a module's parameters together."""
        known = self._owners.get(params[0])
        if known is None:
            found = [self._names.named(param._module_info.module) for param in params]
            names = [name for name in found if name is not None]
            components = {name.component for name in names}
            component = components.pop() if len(components) == 1 else None
            known = Owner(_shared([name.title for name in names]) or "FSDP", component, "communication")
            self._owners[params[0]] = known
        return known

    def _noted(self, tensors: Callable[[], Any], params: Any) -> None:
        if self._is_over or torch.compiler.is_compiling():
            return
        try:
            self._claim(tensors(), params)
        except Exception as error:
            pass_on(error)
            self._problem(f"what FSDP has gathered is not known: {error_line(error)}")

    def watch_fsdp2(self) -> None:
        """The gathered shards of a group of parameters, the whole parameters, and what is reduced; once imported."""
        group: Any = sys.modules[_FSDP2]
        try:
            gather, copy_out, reduce = (
                group.foreach_all_gather, group.foreach_all_gather_copy_out, group.foreach_reduce
            )  # fmt: skip
        except AttributeError:
            return

        @functools.wraps(gather)
        def foreach_all_gather(fsdp_params: Any, *args: Any, **kwargs: Any) -> Any:
            result = gather(fsdp_params, *args, **kwargs)
            self._noted(lambda: () if result is None else (result.all_gather_output,), fsdp_params)
            return result

        @functools.wraps(copy_out)
        def foreach_all_gather_copy_out(result: Any, fsdp_params: Any, *args: Any, **kwargs: Any) -> Any:
            copied = copy_out(result, fsdp_params, *args, **kwargs)
            self._noted(
                lambda: [one for param in fsdp_params for one in param.all_gather_outputs], fsdp_params
            )
            return copied

        @functools.wraps(reduce)
        def foreach_reduce(fsdp_params: Any, *args: Any, **kwargs: Any) -> Any:
            result = reduce(fsdp_params, *args, **kwargs)
            self._noted(lambda: result[:1], fsdp_params)
            return result

        self._replaced.put(group, "foreach_all_gather", foreach_all_gather)
        self._replaced.put(group, "foreach_all_gather_copy_out", foreach_all_gather_copy_out)
        self._replaced.put(group, "foreach_reduce", foreach_reduce)

    def watch_ddp(self) -> None:
        """DDP makes its buckets when it is built, and once more after the first step; C++ allocates them."""
        reducer = getattr(dist, "Reducer", None)
        for name in _DDP:
            original = getattr(reducer, name, None)
            if original is not None:
                self._replaced.put(reducer, name, self._bucketing(original))
        wrapper = torch.nn.parallel.DistributedDataParallel
        self._replaced.put(wrapper, "__init__", self._building(wrapper.__init__))

    def _building(self, original: Any) -> Any:
        """DDP's constructor: the buckets that are made in it are of the component that it wraps."""

        @functools.wraps(original)
        def __init__(wrapper: Any, module: Any, *args: Any, **kwargs: Any) -> None:
            try:
                name = None if self._is_over else self._names.named(module)
                self._wrapped = "" if name is None else name.component
            except Exception as error:
                pass_on(error)
                self._problem(f"what DDP wraps is not known: {error_line(error)}")
            try:
                original(wrapper, module, *args, **kwargs)
            finally:
                self._wrapped = ""

        return __init__

    def _bucketing(self, original: Any) -> Any:
        def making_buckets(*args: Any, **kwargs: Any) -> Any:
            if self._is_over or torch.compiler.is_compiling() or threading.get_ident() != self._thread:
                return original(*args, **kwargs)
            attributes: dict[str, Attribute] = {"component": self._wrapped} if self._wrapped else {}
            with span(BUCKETS, **attributes):
                return original(*args, **kwargs)

        return functools.wraps(original)(making_buckets)


def _shared(paths: Sequence[str]) -> str:
    """The beginning that paths share, by whole parts."""
    shared = []
    for level in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)
