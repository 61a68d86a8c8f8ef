"""Finds what FullyShardedDataParallel (FSDP1) makes of a module's parameters, what it gathers and what it sends.

    with claiming_flat(recorder.claim, problem, names, walk):
        model = FullyShardedDataParallel(model, device_id=0)    # span("load.dit"); the shard of a block is a weight,
        model(x)                            # owner "dit.blocks.7._flat_param"; gathered, it is communication

FSDP1 flattens the parameters of a module into one, whose storages are made smaller and larger again at every use: each
time is an allocation of its own, so each is claimed anew, right after it was made. That takes 15 us for a block in a
forward pass, 60 us in a step of training. Modules are walked only when they are wrapped.

Functions of torch that are not public are replaced inside the block by ones that call them and look at the result.
Where a release of torch has none of that name, nothing is replaced: then what it allocates has no owner.
"""

import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ray_memprof.recorder.after_import import after_import
from ray_memprof.recorder.handler_errors import pass_on
from ray_memprof.recorder.replacements import Replacements
from ray_memprof.recorder.rows import Owner
from ray_memprof.recorder.spans import Attribute, Span, span
from ray_memprof.recorder.stacks import hide_frames
from ray_memprof.wording import error_line
from ray_memprof.workload.module_names import ModuleNames, Name

hide_frames(__file__)
SHARD = "residency.shard"
"""The span of a module that is on its device already when it is wrapped; one that comes there has load.COMPONENT."""
BUFFERS, SYNC = "comm.flat_parameters", "comm.sync_states"
"""Spans: buffers for whole parameters are made once, and emptied at once; weights are sent by the first rank."""
_PACKAGE = "torch.distributed.fsdp"
_WRAPPER = f"{_PACKAGE}.fully_sharded_data_parallel"
"""Is imported after all other modules that are looked at here."""

Work = Callable[[Any, tuple[Any, ...]], None]
"""Looks at the result of a call and at its arguments."""


@contextmanager
def claiming_flat(
    claim: Callable[[Tensor, Owner], None],
    problem: Callable[[str], None],
    names: ModuleNames,
    walk: Callable[[Module], None],
) -> Iterator[None]:
    """Claim what FSDP1 allocates inside the block, and open spans where it wraps modules.

    Args:
        claim: is told of a tensor and the owner of its storage; from any thread.
        problem: called with a message if something could not be claimed; no error is raised into the program.
        names: of the program's modules.
        walk: claims what a module and the modules inside it hold; it never raises.
    """
    flat = _FlatParameters(claim, problem, names, walk)
    try:
        # FSDP takes a second to import: only a program that uses it shall.
        with after_import(_WRAPPER, flat.watch):
            yield
    finally:
        flat.close()


class _FlatParameters:
    def __init__(
        self,
        claim: Callable[[Tensor, Owner], None],
        problem: Callable[[str], None],
        names: ModuleNames,
        walk: Callable[[Module], None],
    ) -> None:
        self._claim_one, self._problem, self._names, self._walk = claim, problem, names, walk
        self._thread = threading.get_ident()
        self._replaced = Replacements()
        self._owners: weakref.WeakKeyDictionary[Any, _Owners] = weakref.WeakKeyDictionary()
        """By the handle of a flat parameter."""
        self._is_over = self._is_wrapping = False

    def close(self) -> None:
        self._is_over = True
        self._replaced.take_back()

    def watch(self) -> None:
        """Put ours in place of what FSDP1 calls; once it is imported."""
        flat, runtime = (
            sys.modules.get(f"{_PACKAGE}._flat_param"),
            sys.modules.get(f"{_PACKAGE}._runtime_utils"),
        )
        handle: Any = getattr(flat, "FlatParamHandle", None)
        self._put(
            getattr(sys.modules[_WRAPPER], "FullyShardedDataParallel", None), "__init__", self._wrapping
        )
        self._put(handle, "_init_flat_param_and_metadata", self._looking(self._flattened, self._flattens))
        self._put(handle, "shard", self._looking(self._sharded))
        self._put(handle, "pre_unshard", self._looking(self._copied))
        self._put(handle, "_alloc_padded_unsharded_flat_param", self._looking(self._gathers))
        self._put(handle, "_use_unsharded_views", self._looking(self._shown))
        self._put(handle, "init_flat_param_attributes", self._spanned(BUFFERS, lambda handle, *_: handle))
        self._put(runtime, "_post_backward_hook", self._looking(None, self._has_gradient))
        self._put(runtime, "_get_reduce_scatter_tensors", self._looking(self._reduces))
        self._put(runtime, "_accumulate_sharded_grad", self._looking(self._reduced))
        init = sys.modules.get(f"{_PACKAGE}._init_utils")
        self._put(init, "_sync_module_params_and_buffers", self._spanned(SYNC, lambda module, *_: module))

    def _put(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = getattr(owner, name, None)
        if original is not None:
            self._replaced.put(owner, name, functools.wraps(original)(make(original)))

    # ---- what takes the place of the originals

    def _hears(self) -> bool:
        return not (self._is_over or torch.compiler.is_compiling())

    def _noted(self, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return work(*args)
        except Exception as error:
            pass_on(error)
            self._problem(f"what FSDP has flattened is not known: {error_line(error)}")
            return None

    def _looking(self, after: Work | None, before: Work | None = None) -> Callable[[Any], Any]:
        """Look at the arguments before a call, and at its result after it; on any thread."""

        def make(original: Any) -> Any:
            def looking(*args: Any, **kwargs: Any) -> Any:
                hears, given = self._hears(), (*args, *kwargs.values())
                if hears and before is not None:
                    self._noted(before, None, given)
                result = original(*args, **kwargs)
                if hears and after is not None:
                    self._noted(after, result, given)
                return result

            return looking

        return make

    def _spanned(self, title: str, subject: Callable[..., Any]) -> Callable[[Any], Any]:
        """A span for a call; `subject` finds the handle or the module that it is for, in its arguments."""

        def make(original: Any) -> Any:
            def spanned(*args: Any, **kwargs: Any) -> Any:
                if not self._hears() or threading.get_ident() != self._thread:
                    return original(*args, **kwargs)
                name = self._noted(lambda: self._name_of(subject(*args)))
                with _span(title, name):
                    return original(*args, **kwargs)

            return spanned

        return make

    def _wrapping(self, original: Any) -> Any:
        """The constructor of the wrapper: with a policy it calls itself for the modules inside."""
        place = list(inspect.signature(original).parameters).index("device_id") - 2

        def __init__(wrapper: Any, module: Any, *args: Any, **kwargs: Any) -> None:
            if not self._hears() or self._is_wrapping or threading.get_ident() != self._thread:
                original(wrapper, module, *args, **kwargs)
                return
            # As they are before: all names are those that the program gave, and the whole weights are there.
            name = self._noted(self._looked_through, module)
            device = kwargs.get("device_id", args[place] if len(args) > place else None)
            comes = name is not None and self._noted(_comes, module, device)
            title = f"load.{name.component}" if name is not None and comes else SHARD
            try:
                self._is_wrapping = True
                with _span(title, name):
                    original(wrapper, module, *args, **kwargs)
            finally:
                self._is_wrapping = False

        return __init__

    def _looked_through(self, module: Any) -> Name | None:
        if not isinstance(module, Module):
            return None  # torch itself refuses it
        self._walk(module)
        return self._names.named(module)

    # ---- weights

    def _flattens(self, _: Any, args: tuple[Any, ...]) -> None:
        """The parameters of a module have come to the device, and will be copied into the flat one."""
        self._walk(args[0]._fully_sharded_module)

    def _flattened(self, _: Any, args: tuple[Any, ...]) -> None:
        self._claim(args[0], "weight", args[0].flat_param)

    def _sharded(self, _: Any, args: tuple[Any, ...]) -> None:
        self._claim(args[0], "weight", args[0].flat_param)

    def _copied(self, _: Any, args: tuple[Any, ...]) -> None:
        """What will be sent may be the shard itself, or a copy of it: in low precision, or brought from the host."""
        handle = args[0]
        shard = getattr(handle.flat_param, "_local_shard", None)
        if shard is not None and not _is_same(shard, handle.flat_param):
            self._claim(handle, "communication", handle.flat_param)

    def _gathers(self, whole: Any, args: tuple[Any, ...]) -> None:
        self._claim(args[0], "communication", whole)

    def _shown(self, _: Any, args: tuple[Any, ...]) -> None:
        """With summon_full_params, parts of the whole parameter are put into the modules as their parameters."""
        handle, are_parameters = args[:2]
        if are_parameters and handle.uses_sharded_strategy:
            self._claim(handle, "communication", handle.flat_param)

    # ---- gradients

    def _has_gradient(self, _: Any, args: tuple[Any, ...]) -> None:
        """The gradient of the whole parameter is there; what of it is sent is told later."""
        self._claim(args[1], "gradient", args[1].flat_param.grad)

    def _reduces(self, result: Any, args: tuple[Any, ...]) -> None:
        """What is sent may be the whole gradient itself, or a padded copy of it."""
        (state, whole), (sent, shard) = args[:2], result
        if not _is_same(whole, sent):
            self._claim(state._handle, "gradient", whole)
        self._claim(state._handle, "communication", sent)
        self._claim(state._handle, "gradient", shard)

    def _reduced(self, shard: Any, args: tuple[Any, ...]) -> None:
        self._claim(args[1], "gradient", shard)

    # ---- owners

    def _claim(self, handle: Any, category: str, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            return
        name = self._name_of(handle)
        known = self._owners.get(handle)
        if known is None or known.name is not name:
            known = self._owners[handle] = _Owners(name)
        self._claim_one(tensor, known.of(category, tensor.dtype))

    def _name_of(self, subject: Any) -> Name | None:
        """The name of a module, or of the module whose parameters a handle has."""
        module: Module = subject if isinstance(subject, Module) else subject._fully_sharded_module
        return self._names.find(module) or self._names.named(module)


class _Owners:
    """The owners that the storages of a flat parameter have; kept, for they are needed at every use of it."""

    def __init__(self, name: Name | None) -> None:
        self.name = name
        self._known: dict[tuple[str, torch.dtype], Owner] = {}

    def of(self, category: str, dtype: torch.dtype) -> Owner:
        owner = self._known.get((category, dtype))
        if owner is None:
            title, component = ("FSDP", None) if self.name is None else (self.name.title, self.name.component)
            path = title if category == "communication" else f"{title}._flat_param"
            owner = Owner(path, component, category, str(dtype).removeprefix("torch."))
            self._known[category, dtype] = owner
        return owner


def _span(title: str, name: Name | None) -> Span:
    attributes: dict[str, Attribute] = {}
    if name is not None:
        attributes = {"component": name.component, "module": name.path}
    return span(title, **attributes)


def _comes(module: Module, device: Any) -> bool:
    """Whether wrapping brings a module to another kind of device."""
    first = next(module.parameters(), None)
    if first is None or device is None:
        return False
    if isinstance(device, int):  # a number of the accelerator's
        return first.device.type in ("cpu", "meta")
    return first.device.type != torch.device(device).type


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share their storage."""
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)
