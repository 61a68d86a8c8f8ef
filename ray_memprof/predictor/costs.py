"""How long the kernel of an operation runs: the longer of what its products and what its memory traffic take.

    costs = Costs(profile)
    costs.duration_ns(func, args, made)

Products, convolutions and attention at the rates that the GPU reaches with them, everything else at the speed of its
memory. Formulae of products: torch.utils.flop_counter.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from ray_memprof.predictor.gpu_profile import GpuProfile
from ray_memprof.predictor.operation_kinds import CONVOLUTION, FP8_PRODUCTS, PRODUCTS, WITHOUT_KERNEL

_COUNTED = {**PRODUCTS, **FP8_PRODUCTS, CONVOLUTION: torch.ops.aten.convolution}


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
        if func in WITHOUT_KERNEL:
            return 0
        given = [arg for arg in args if isinstance(arg, Tensor) and arg.is_cuda]
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))
        seconds = num_bytes / self._profile.memory_bytes_per_s
        if func in _COUNTED and given:
            seconds = max(seconds, self._flops(func, args, made) / self._rate(func, given))
        return int(seconds * 1e9)

    def attention_ns(self, query: Tensor, key: Tensor, kernel: str = "") -> int:
        """Of attention: query [B, N, Lq, D], key [B, N, Lk, D].

        The profile may have a rate of a kernel's own (fa3, fa3_float8_e4m3fn); else it is that of torch's attention,
        in bf16 where torch has none for the dtype.
        """
        batch, num_heads, num_queries, width = query.shape
        flops = 4 * batch * num_heads * num_queries * key.shape[2] * width
        rates, dtype = self._profile.attention_flops, query.dtype
        name = kernel if dtype.itemsize > 1 else f"{kernel}_{str(dtype).removeprefix('torch.')}"
        usual = self._of_dtype(rates, dtype if dtype.itemsize > 1 else torch.bfloat16)
        return int(flops / rates.get(name, usual) * 1e9)

    def _flops(self, func: Any, args: tuple[Any, ...], made: list[Tensor]) -> int:
        counted = flop_registry[_COUNTED[func]](*args, out_val=made[0])
        return int(counted)

    def _rate(self, func: Any, given: list[Tensor]) -> float:
        profile = self._profile
        rates = profile.convolution_flops if func is CONVOLUTION else profile.product_flops
        return self._of_dtype(rates, given[-1].dtype)

    @staticmethod
    def _of_dtype(rates: Mapping[str, float], dtype: torch.dtype) -> float:
        name = str(dtype).removeprefix("torch.")
        return rates.get(name, rates["float32"])
