"""Stand-ins for kernels that fake tensors do not know: wan's Triton kernels, and torch's attention on a GPU.

Each takes what the real one takes and returns what it returns, with the memory that the real one allocates.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_memprof.predictor.costs import Costs
from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.predictor.tensors import tensors_of
from wan.weights.fp8 import FP8, Fp8Rows

_CUDNN_ATTENTION_WORKSPACE_BYTES = 256
_WITH_CUDNN = ((9, 0), (10, 0))
"""Compute capabilities for which torch prefers cuDNN's attention."""

# ---- wan/networks/kernels.py -----------------------------------------------------------------------------------


def quantise(x: Tensor, *, gelu: bool = False) -> Fp8Rows:
    """See wan.networks.kernels."""
    flat = x.reshape(-1, x.shape[-1])
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    out, scales = _empty_rows(x.shape, FP8, x.device)
    assert scales is not None
    return Fp8Rows(out, scales)


def _empty_rows(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
    out = torch.empty(shape, dtype=dtype, device=device)
    if dtype != FP8:
        return out, None
    return out, torch.empty((*shape[:-1], 1), dtype=torch.float32, device=device)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor | Fp8Rows:
    """See wan.networks.kernels."""
    x = x.contiguous()
    out, scales = _empty_rows(x.shape, dtype, x.device)
    gain.contiguous(), bias.contiguous()
    return out if scales is None else Fp8Rows(out, scales)


def add_layer_norm_(
    x: Tensor, y: Tensor, gate: Tensor | None, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor | Fp8Rows:
    """See wan.networks.kernels."""
    if not x.is_contiguous():
        gated_add_(x, y, gate)
        return layer_norm(x, gain, bias, eps, dtype)
    out, scales = _empty_rows(x.shape, dtype, x.device)
    kept = [part.contiguous() for part in (y, gate, gain, bias) if part is not None]
    kept.clear()
    return out if scales is None else Fp8Rows(out, scales)


def rms_norm_rope_(x: Tensor, gain: Tensor, table: Tensor | None, num_heads: int, eps: float) -> Tensor:
    """See wan.networks.kernels."""
    return x


def gated_add_(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """See wan.networks.kernels."""
    if x.is_contiguous():
        kept = [part.contiguous() for part in (y, gate) if part is not None]
        kept.clear()
    return x


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See wan.networks.kernels."""
    out = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return out.view(*x.shape[:-1], -1)


# ---- wan/networks/vae/kernels.py -------------------------------------------------------------------------------


def norm_silu(parts: Sequence[Tensor], bias: Tensor | None, gamma: Tensor) -> Tensor:
    """See wan.networks.vae.kernels."""
    dense = [part.contiguous(memory_format=torch.channels_last) for part in parts]
    return torch.empty_like(dense[0]) if len(dense) == 1 else dense[0]


def total(
    parts: Sequence[Tensor], bias: Tensor, crop: Callable[[Tensor], Tensor], shortcut: Tensor | None = None
) -> Tensor:
    """See wan.networks.vae.kernels."""
    cropped = [crop(part.contiguous(memory_format=torch.channels_last)) for part in parts]
    first = cropped[0]
    is_whole = first.is_contiguous(memory_format=torch.channels_last)
    out = first if is_whole else torch.empty_like(first, memory_format=torch.channels_last)
    if shortcut is not None and shortcut.stride(1) != 1:
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
    return out


# ---- wan/networks/attention_fp8_kernels.py ---------------------------------------------------------------------


def channels(x: Tensor, out: Tensor, chunk: int) -> None:
    """See wan.networks.attention_fp8_kernels."""


def scale(x: Tensor, centre: Tensor | None, factor: Tensor, out: Tensor) -> None:
    """See wan.networks.attention_fp8_kernels."""


# ---- torch's attention -----------------------------------------------------------------------------------------


def attention(
    device: FakeDevice, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """As F.scaled_dot_product_attention on a GPU: the kernel that torch takes there, with what it allocates.

    In half precision that is cuDNN's on Hopper and data-centre Blackwell GPUs and FlashAttention-2 on others; in fp32,
    torch's memory-efficient one. query [B, N, Lq, D], key and value [B, N, Lk, D] -> [B, N, Lq, D].
    """
    if not query.is_cuda:
        return _attention(query, key, value, *args, **kwargs)
    device.run(Costs(device.profile).attention_ns(query, key))
    batch, num_heads, num_tokens, _ = query.shape
    if query.dtype == torch.float32:
        out = query.new_empty(batch, num_tokens, num_heads, value.shape[-1])
        return out.transpose(1, 2)
    # The state of the generator, although nothing is dropped.
    seed, offset = (torch.empty((), dtype=torch.int64, device=query.device) for _ in range(2))
    out = torch.empty_like(query)  # in the order of the query's dimensions
    if device.profile.capability in _WITH_CUDNN:
        besides = torch.empty(_CUDNN_ATTENTION_WORKSPACE_BYTES, dtype=torch.uint8, device=query.device)
    else:
        besides = query.new_empty(batch, num_heads, num_tokens, dtype=torch.float32)
    del besides, seed, offset
    return out


def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """As F.rms_norm: on a GPU it is one kernel, which also keeps a number for each row."""
    if not x.is_cuda:
        return _rms_norm(x, normalized_shape, weight, eps)
    out = torch.empty_like(x)
    scale_of_rows = torch.empty(x.shape[: -len(normalized_shape)], dtype=torch.float32, device=x.device)
    del scale_of_rows
    return out


_attention, _rms_norm = F.scaled_dot_product_attention, F.rms_norm

_MODULES: dict[str, tuple[Any, ...]] = {
    "wan.networks.kernels": (
        quantise, layer_norm, add_layer_norm_, rms_norm_rope_, gated_add_, linear_gelu,
    ),
    "wan.networks.vae.kernels": (norm_silu, total),
    "wan.networks.attention_fp8_kernels": (channels, scale),
}  # fmt: skip


@contextmanager
def fake_kernels(device: FakeDevice) -> Iterator[None]:
    """Let wan find the stand-ins instead of its Triton kernels, and torch's attention be that of `device`."""
    modules = {}
    for name, functions in _MODULES.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update({one.__name__: _timed(one, device) for one in functions})
    with (
        patch.dict(sys.modules, modules),
        patch.object(F, "scaled_dot_product_attention", partial(attention, device)),
        patch.object(F, "rms_norm", rms_norm),
    ):
        yield


def _timed(function: Callable[..., Any], device: FakeDevice) -> Callable[..., Any]:
    """A stand-in that also takes the time of its kernel, which reads its arguments and writes its results once."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        if function is not linear_gelu:  # that one is an operation of torch
            tensors = {id(one): one for one in tensors_of((*args, *kwargs.values(), made))}.values()
            num_bytes = sum(one.numel() * one.element_size() for one in tensors)
            device.run(int(num_bytes / device.profile.memory_bytes_per_s * 1e9))
        return made

    return call
