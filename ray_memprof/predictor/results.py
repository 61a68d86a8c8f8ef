"""The results of operations on fake tensors, remembered by the shapes of their arguments.

    results = Results(mode)
    made = results.of(func, args, kwargs)

The same few operations come thousands of times. FakeTensorMode works out every result anew or looks it up in a cache
whose keys cost more than our whole look-up, because it has to serve every program: here tensors are never traced,
never need gradients, and have no symbolic sizes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from ray_memprof.predictor.operation_kinds import IN_PLACE, VIEWS

_NEW, _CHANGED, _VIEW, _OTHER = "new", "changed", "view", "other"
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.layout, torch.device, torch.memory_format)


class _Made(NamedTuple):
    """A tensor to make."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Unkeyed(Exception):
    """An argument that no key can be made of."""


class Results:
    """Those of one FakeTensorMode."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[Any, tuple[_Made, ...]] = {}
        self._kinds: dict[Any, str] = {}

    def of(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation: made from what is known, or by FakeTensorMode."""
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        if kind == _NEW:
            return self._new(func, args, kwargs)
        if kind == _OTHER or not isinstance(args[0], FakeTensor):
            return func(*args, **kwargs)
        return args[0] if kind == _CHANGED else self._view(func, args, kwargs)

    def _new(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Tensors that share memory with no other, from what is known of such arguments."""
        try:
            # Where no dtype is given, it is the default one.
            key = (func, torch.get_default_dtype(), _key(args), _key(tuple(kwargs.items())))
            known = self._known.get(key)
        except (_Unkeyed, TypeError):
            return func(*args, **kwargs)
        if known is not None:
            made = [self._make(one) for one in known]
            return made[0] if len(made) == 1 else tuple(made)
        result = func(*args, **kwargs)
        results = result if isinstance(result, tuple) else (result,)
        if all(isinstance(one, FakeTensor) and _is_whole(one) for one in results):
            self._known[key] = tuple(
                _Made(one.shape, one.stride(), one.dtype, one.fake_device) for one in results
            )
        return result

    def _make(self, made: _Made) -> FakeTensor:
        with torch._C._DisableTorchDispatch():
            plain = torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")
            return FakeTensor(self._mode, plain, made.device)

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Other shapes on the memory of the first argument."""
        with in_kernel_invocation_manager(self._mode):
            plain = func(*args, **kwargs)
        device = args[0].fake_device
        if isinstance(plain, Tensor):
            return FakeTensor(self._mode, plain, device)
        return [FakeTensor(self._mode, one, device) for one in plain]


def _kind(func: Any) -> str:
    """What an operation returns."""
    if func in IN_PLACE:
        return _CHANGED
    if func in VIEWS:
        return _VIEW
    schema = func._schema
    if schema.is_mutable or func.namespace != "aten" or not schema.returns:
        return _OTHER
    types = {str(one.type) for one in schema.returns}
    aliases = [one.alias_info for one in schema.returns]
    if types == {"Tensor"} and not any(aliases):
        return _NEW
    return _OTHER


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor has all of its memory: no part of a larger one."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    num = last + 1 if tensor.numel() else 0
    return tensor.untyped_storage().nbytes() == num * tensor.element_size()


def _key(values: Any) -> tuple[Any, ...]:
    """Hashable, and different wherever the result may be."""
    parts: list[Any] = []
    for value in values:
        if isinstance(value, FakeTensor):
            parts += (value.shape, value.stride(), value.dtype, value.fake_device)
        elif isinstance(value, Tensor):
            raise _Unkeyed
        elif isinstance(value, (list, tuple)):
            parts += (len(value), _key(value))
        elif isinstance(value, _PLAIN):
            parts += (type(value), value)
        else:
            raise _Unkeyed
    return tuple(parts)
