"""Hears every operation on fake tensors, and gives the device the memory that its real kernel would take.

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Operations(device, mode):
        ...

A storage of a result that no argument had is new: it takes memory until it is gone. What a kernel holds besides, while
it is queued, is in workspaces.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from ray_memprof.predictor.costs import Costs
from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.predictor.results import Results
from ray_memprof.predictor.workspaces import Workspaces
from ray_memprof.recorder.meters.tensors import tensors_of

aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default


class Operations(TorchDispatchMode):
    """Enter it after the FakeTensorMode, so that it hears an operation before that mode does."""

    def __init__(self, device: FakeDevice, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device, self._results = device, Results(mode)
        self._workspaces, self._costs = Workspaces(device), Costs(device.profile)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would put a guard against torch.compile around each operation, which nobody compiles here."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make the fake result, and give its new storages memory."""
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)  # fake tensors cannot be page-locked
        given = list(tensors_of((*args, *kwargs.values())))
        if any(is_traceable_wrapper_subclass(tensor) for tensor in given):
            # For a DTensor its own handler runs first, then the plain tensors inside come here.
            return NotImplemented
        known = {tensor.untyped_storage()._cdata for tensor in given}
        with self._workspaces.before(func, args):
            result = self._results.of(func, args, kwargs)
            made = list(tensors_of((result,)))
            for tensor in made:
                self._make(tensor, known)
            self._workspaces.take(func, args, made)
            if func is aten.copy_.default or func is aten._to_copy.default:
                self._copy(made[0], args, kwargs)
            elif any(tensor.is_cuda for tensor in made):
                self._device.run(self._costs.duration_ns(func, args, made))
        return result

    def _copy(self, made: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Let a copy take its time: between host and device, the host waits unless it need not."""
        source = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else args[0]
        if not (made.is_cuda or source.is_cuda):
            return
        num_bytes, profile = made.numel() * made.element_size(), self._device.profile
        if made.is_cuda and source.is_cuda:
            self._device.run(self._costs.elementwise_ns(made, source))
            return
        is_free = kwargs.get("non_blocking", len(args) > 2 and args[2])
        rate = profile.page_locked_bytes_per_s if is_free else profile.pageable_bytes_per_s
        self._device.run(int(num_bytes / rate * 1e9))
        if not is_free:
            self._device.synchronize()

    def _make(self, tensor: Tensor, known: set[int]) -> None:
        """Give a result's storage memory, if it is none of those `known` from the arguments."""
        storage = tensor.untyped_storage()
        if storage._cdata in known or not isinstance(tensor, FakeTensor):
            return
        if tensor.fake_device.type == "cuda":
            self._device.make(storage)
        elif tensor.fake_device.type == "cpu":
            self._device.make_host(storage)
