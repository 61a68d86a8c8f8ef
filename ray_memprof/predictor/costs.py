"""How long the kernel of an operation runs: the longer of what its products and what its memory traffic take.

    costs = Costs(profile)
    costs.duration_ns(func, args, made)

Products, convolutions and attention at the rates that the GPU reaches with them, everything else at the speed of its
memory. Formulae of products: torch.utils.flop_counter.

A rate of the profile is looked up by dtype and shape first ("bfloat16_5120x13824"), then by dtype: the shapes are those
that were measured, of products the numbers of inputs and outputs of a layer, of convolutions that of output channels,
of attention the width of a head.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, flop_registry

from ray_memprof.predictor.gpu_profile import GpuProfile
from ray_memprof.predictor.operation_kinds import (
    CONVOLUTION,
    FILLS,
    FP8_PRODUCTS,
    LOOKUPS,
    PRODUCTS,
    WITHOUT_KERNEL,
)
from ray_memprof.recorder.meters.tensors import tensors_of

_PRODUCTS = {**PRODUCTS, **FP8_PRODUCTS}
_TILE = (128, 256)
"""Rows and columns of a result that one SM makes at a time: of cuBLAS's kernels for large products, by their names."""
_HALVES = ("float16", "bfloat16")
_QUERIES = 128
"""Queries of a head that one SM attends with at a time: cuDNN's kernels and FlashAttention-3."""


class Costs:
    """Those of one GPU model."""

    def __init__(self, profile: GpuProfile) -> None:
        self._profile = profile

    def duration_ns(self, func: Any, args: tuple[Any, ...], made: list[Tensor]) -> int:
        """Of the kernel of an operation on the device; 0: it runs none.

        Args:
            func: the operation.
            args: its arguments.
            made: the tensors of its results.
        """
        return 0 if func in WITHOUT_KERNEL else max(1, self._kernel_ns(func, args, made))

    def _kernel_ns(self, func: Any, args: tuple[Any, ...], made: list[Tensor]) -> int:
        given = [tensor for tensor in tensors_of(args) if tensor.is_cuda]
        if given and func in _PRODUCTS:
            return max(self._product_ns(func, args, made[0]), self.traffic_ns(touched_bytes((*given, *made))))
        if given and func is CONVOLUTION:
            return self._convolution_ns(args, made[0])
        if func in FILLS:
            return self.traffic_ns(touched_bytes(made))
        if func in LOOKUPS:
            # Only those rows are read that are written.
            return self.traffic_ns(2 * touched_bytes(made))
        return self.elementwise_ns(*given, *made)

    def elementwise_ns(self, *tensors: Tensor) -> int:
        """Of one of torch's own kernels that goes through each of `tensors` once.

        Where they differ in dtype, shape or order in memory, it reads one number at a time and converts each, and
        reaches less of the memory's speed.
        """
        profile, num_bytes = self._profile, touched_bytes(tensors)
        if len({(tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors}) > 1:
            rate = profile.mixed_bytes_per_s or profile.memory_bytes_per_s
            return int(num_bytes / rate * 1e9)
        return self.traffic_ns(num_bytes)

    def traffic_ns(self, num_bytes: int) -> int:
        """Of a kernel that reads and writes many bytes at a time, such as a copy."""
        return int(num_bytes / self._profile.memory_bytes_per_s * 1e9)

    def attention_ns(self, query: Tensor, key: Tensor, kernel: str = "") -> int:
        """Of attention: query [B, N, Lq, D], key [B, N, Lk, D].

        The profile may have a rate of a kernel's own (fa3, fa3_float8_e4m3fn); else it is that of torch's attention,
        in bf16 where torch has none for the dtype.
        """
        batch, num_heads, num_queries, width = query.shape
        flops = 4 * batch * num_heads * num_queries * key.shape[2] * width
        rates, dtype = self._profile.attention_flops, query.dtype
        usual = _rate(rates, dtype if dtype.itemsize > 1 else torch.bfloat16, width)
        name = kernel if dtype.itemsize > 1 else f"{kernel}_{_name(dtype)}"
        share = self._share(batch * num_heads * math.ceil(num_queries / _QUERIES))
        # Keys and values are alike, and so are queries and results.
        return max(
            int(flops / rates.get(name, usual) / share * 1e9),
            self.traffic_ns(2 * touched_bytes((query, key))),
        )

    def _product_ns(self, func: Any, args: tuple[Any, ...], made: Tensor) -> int:
        flops = flop_registry[_PRODUCTS[func]](*args, out_val=made)
        *batch, num_rows, num_columns = made.shape
        left = args[1] if func in PRODUCTS and len(args) > 2 else args[0]
        num_inner = left.shape[-1]
        rate = _rate(self._profile.product_flops, left.dtype, f"{num_inner}x{num_columns}")
        num_tiles = math.ceil(num_rows / _TILE[0]) * math.ceil(num_columns / _TILE[1])
        return int(flops / rate / self._share(math.prod(batch) * num_tiles) * 1e9)

    def _convolution_ns(self, args: tuple[Any, ...], made: Tensor) -> int:
        x, weight, bias = args[:3]
        # Not by the registry: it looks through all arguments for their shapes, which takes longer than the result.
        flops = conv_flop_count([*x.shape], [*weight.shape], [*made.shape], transposed=args[6])
        rate = _rate(self._profile.convolution_flops, weight.dtype, weight.shape[0])
        ns = max(int(flops / rate * 1e9), self.traffic_ns(touched_bytes((x, weight, made))))
        # torch adds the bias afterwards, in a kernel of its own (aten/src/ATen/native/Convolution.cpp).
        return ns if bias is None else ns + self.elementwise_ns(made, made, bias)

    def _share(self, num_parts: int) -> float:
        """Of the SMs that work, on the average, where each takes one part at a time: the last round may be short."""
        num_sms = self._profile.num_sms
        return num_parts / (math.ceil(num_parts / num_sms) * num_sms)


def touched_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory that a kernel reads or writes which goes through each of `tensors` once."""
    return sum(_distinct(tensor) * tensor.element_size() for tensor in tensors)


def _distinct(tensor: Tensor) -> int:
    """Elements of a tensor that have memory of their own: an expanded dimension has one."""
    sizes: Iterator[int] = (
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride
    )
    return math.prod(sizes)


def _rate(rates: Mapping[str, float], dtype: torch.dtype, shape: object) -> float:
    """The rate of a dtype for a shape, if there is one; else of the dtype; else of fp32.

    fp16 and bf16 take each other's rates: the units of a GPU are equally fast with both.
    """
    name = _name(dtype)
    alike = [name, *(one for one in _HALVES if name in _HALVES and one != name)]
    named = [*(f"{one}_{shape}" for one in alike), *alike, "float32"]
    return next(rates[one] for one in named if one in rates)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
