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
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ray_memprof.predictor.operation_kinds import BY_ELEMENT, CONVOLUTION, COPIES_INTO, IN_PLACE, VIEWS
from ray_memprof.predictor.workspaces import conv_order

_NEW, _CHANGED, _VIEW, _COPIES_INTO, _OTHER = "new", "changed", "view", "copies into", "other"
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
        self._attributes: dict[torch.device, dict[str, Any]] = {}
        """What a fake tensor that has just been made has, by device."""

    def of(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation: made from what is known, or by FakeTensorMode."""
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        if kind == _NEW:
            made = self._like(func, args, kwargs) if func in BY_ELEMENT else None
            return self._new(func, args, kwargs) if made is None else made
        if kind == _COPIES_INTO:
            return None
        if kind == _OTHER or not isinstance(args[0], FakeTensor):
            return func(*args, **kwargs)
        return args[0] if kind == _CHANGED else self._view(func, args, kwargs)

    def _like(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> FakeTensor | None:
        """Of a row of floats, by element: a row as long as it. None: it is not as simple as that."""
        first = args[0]
        if type(first) is not FakeTensor or first.stride() != (1,) or not first.dtype.is_floating_point:
            return None
        if any(type(one) is not float for one in args[1:]) or kwargs.keys() - {"dtype"}:
            return None
        made = _Made(first.shape, first.stride(), kwargs.get("dtype") or first.dtype, first.fake_device)
        return self._make(made)

    def _new(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Tensors that share memory with no other, from what is known of such arguments."""
        try:
            # Where no dtype is given, it is the default one.
            key = (func, torch.get_default_dtype(), _key(args), _key(tuple(kwargs.items())))
            known = self._known.get(key)
        except (_Unkeyed, TypeError):
            return _computed(func, args, kwargs)
        if known is not None:
            made = [self._make(one) for one in known]
            return made[0] if len(made) == 1 else tuple(made)
        result = _computed(func, args, kwargs)
        results = result if isinstance(result, tuple) else (result,)
        if all(isinstance(one, FakeTensor) and _is_whole(one) for one in results):
            self._known[key] = tuple(
                _Made(one.shape, one.stride(), one.dtype, one.fake_device) for one in results
            )
        return result

    def _make(self, made: _Made) -> FakeTensor:
        with torch._C._DisableTorchDispatch():
            plain = torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")
            return self._fake(plain, made.device)

    def _fake(self, plain: Tensor, device: torch.device) -> FakeTensor:
        """As FakeTensor(), which looks through arguments that are never given here, for a `device` with its index."""
        attributes = self._attributes.get(device)
        if attributes is None:
            first = FakeTensor(self._mode, plain, device)
            self._attributes[device] = dict(vars(first))
            return first
        made: FakeTensor = Tensor._make_subclass(
            FakeTensor, plain, plain.requires_grad, dispatch_device=True, device_for_backend_keys=device
        )
        if self._mode._allow_unsafe_data_ptr_access:  # wan asks where a tensor begins, to lock its pages
            torch._C._set_warn_deprecated_on_mutable_data_ptr(made)
        else:
            torch._C._set_throw_on_mutable_data_ptr(made)
        vars(made).update(attributes)
        return made

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Other shapes on the memory of the first argument."""
        mode = self._mode
        # As in_kernel_invocation_manager(), for operations that are not within others.
        with torch._C._DisableTorchDispatch(), torch._C._PreserveDispatchKeyGuard():
            mode.in_kernel_invocation = True
            torch._C._set_meta_in_tls_dispatch_include(True)
            try:
                plain = func(*args, **kwargs)
            finally:
                mode.in_kernel_invocation = False
        device = args[0].fake_device
        if isinstance(plain, Tensor):
            return self._fake(plain, device)
        return [self._fake(one, device) for one in plain]


def _computed(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result by FakeTensorMode, as the device would lay it out."""
    result = func(*args, **kwargs)
    if func is CONVOLUTION and args[0].is_cuda:
        # A build without cuDNN makes the result of another kernel, in another memory format.
        return result.to(memory_format=conv_order(*args[:2]))
    return result


def _kind(func: Any) -> str:
    """What an operation returns."""
    if func in IN_PLACE:
        return _CHANGED
    if func in VIEWS:
        return _VIEW
    if str(func) in COPIES_INTO:
        return _COPIES_INTO
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
