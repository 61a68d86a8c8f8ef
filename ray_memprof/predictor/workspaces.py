"""Memory that kernels take besides their results: workspaces of cuBLAS and cuDNN, and copies that torch makes inside.

cuBLAS keeps its workspace for ever, one for each handle and stream; all others are free once the kernel is queued.

Sources: recorded runs on one H200 (torch 2.11, cuDNN 9.19), in which every allocation of four runs is as it is here;
aten/src/ATen/native/Convolution.cpp and cudnn/ConvShared.cpp for what is copied.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ray_memprof.allocator.caching import Block
from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.predictor.operation_kinds import CONVOLUTION, PRODUCTS, WITH_BIAS, WITHOUT_KERNEL
from ray_memprof.predictor.outside import Modules

aten = torch.ops.aten

_SCALAR_BYTES = 8
_CUDNN_ALIGNMENT_BYTES = 16


class Workspaces:
    """Those of one device."""

    def __init__(self, device: FakeDevice) -> None:
        self._device, self._modules = device, Modules(device)
        self._cublas: Block | None = None
        self._cublas_lt: Block | None = None

    @contextmanager
    def before(self, func: Any, args: tuple[Any, ...]) -> Iterator[None]:
        """Hold, while an operation runs, what it copies of its arguments before it makes its results."""
        if func is not CONVOLUTION or not args[0].is_cuda:
            yield
            return
        with self._device.holding(_copy_bytes(args[0], conv_order(*args[:2]))):
            yield

    def take(self, func: Any, args: tuple[Any, ...], made: list[Tensor]) -> None:
        """Take what the kernel of an operation needs once its results have their memory.

        Args:
            func: the operation.
            args: its arguments.
            made: the tensors of its results.
        """
        if func is aten.copy_.default:
            self._copy(args[0], args[1])
        if not any(tensor.is_cuda for tensor in made):
            return
        if func not in WITHOUT_KERNEL:
            is_product = func in PRODUCTS or func is CONVOLUTION
            self._modules.ran(is_product=is_product, is_softmax=func is aten._softmax.default)
        if func in PRODUCTS and self._cublas is None:
            self._cublas = self._device.alloc(self._device.profile.cublas_workspace_bytes)
        if func in WITH_BIAS and self._cublas_lt is None:
            self._cublas_lt = self._device.alloc(self._device.profile.cublas_lt_workspace_bytes)
        if func is CONVOLUTION:
            x, weight = args[:2]
            # The weight is copied where it is not dense in the order in which the kernel works.
            self._pass(_copy_bytes(weight, conv_order(x, weight)), self._cudnn_bytes(x, weight))
        if func is aten.pow.Scalar:  # the base becomes a tensor
            self._pass(_SCALAR_BYTES)

    def _pass(self, *sizes: int) -> None:
        """Take memory, and give it back at once."""
        with self._device.holding(*sizes):
            pass

    def _cudnn_bytes(self, x: Tensor, weight: Tensor) -> int:
        """The workspace of the plan that cuDNN takes, for a convolution of images without groups."""
        num_out, num_in, *kernel = weight.shape
        if x.dim() != 4:
            return 0
        num_taps, num_pixels = math.prod(kernel), math.prod(x.shape[2:])
        if x.dtype != torch.float32:
            if conv_order(x, weight) == torch.channels_last and not (num_in % 8 or num_out % 8):
                return 0  # what its kernels read as it lies; not measured
            # Copies of all three in channels-last memory; channels of input and weight are padded to eight.
            padded = _up_to_multiple(num_in, 8)
            num_outputs = num_out * math.prod(
                one // side for one, side in zip(x.shape[2:], kernel, strict=True)
            )
            numbers = padded * (num_pixels + num_out * num_taps) + num_outputs
        elif num_in % 4:
            numbers = num_in * (num_pixels + num_out * num_taps)
        elif num_out % 4:
            # Every tap is a product of its own, added up afterwards; outputs and weights are padded to four channels.
            numbers = num_taps * _up_to_multiple(num_out, 4) * (num_pixels + num_in)
        else:
            key = (num_in, num_out, kernel[-1], *x.shape[-2:])
            return self._device.profile.cudnn_workspaces.get(key, 0)
        return numbers * x.element_size() + _CUDNN_ALIGNMENT_BYTES

    def _copy(self, target: Tensor, source: Tensor) -> None:
        """Between host and device, a copy goes by way of dense tensors of one dtype on both sides."""
        if target.is_cuda == source.is_cuda:
            return
        on_device = target if target.is_cuda else source
        is_cast_there = source.is_cuda and source.dtype != target.dtype
        if is_cast_there or not _is_dense_alike(target, source):
            self._pass(on_device.numel() * target.element_size())


def conv_order(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The memory format in which cuDNN convolves and writes: channels last where one of the two is in it alone.

    As cudnn_conv_suggest_memory_format().
    """
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    for one in (x, weight):
        if one.is_contiguous(memory_format=last) and not one.is_contiguous():
            return last
    return torch.contiguous_format


def _up_to_multiple(number: int, step: int) -> int:
    return -(-number // step) * step


def _copy_bytes(tensor: Tensor, order: torch.memory_format) -> int:
    """Of a copy in that memory format; 0 where the tensor has it."""
    return 0 if tensor.is_contiguous(memory_format=order) else tensor.numel() * tensor.element_size()


def _is_dense_alike(target: Tensor, source: Tensor) -> bool:
    """Whether the bytes of one can be copied to the other as they lie."""
    if target.is_contiguous() and source.is_contiguous():
        return True
    return target.stride() == source.stride() and _is_dense(target)


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
