"""q, k and v in fp8 (e4m3: four significant binary digits, at most 448), with one fp32 scale for each video and head.

    q, k, v = quantise(q), quantise_centred(k), quantise(v)       # values * scale is about x; for k, x - its mean
    out = flash_attn_func(q.values, k.values, v.values, q_descale=q.scale, k_descale=k.scale, v_descale=v.scale)

The mean over the tokens is taken out of k first: q . mean is the same number for all keys of a query, so the softmax
stays what it was (its LSE is lower by that number / sqrt(D)), and what the keys have in common, which is often larger
than what tells them apart, takes none of the few digits.

Two passes over x, on CUDA one fused kernel each (attention_fp8_kernels.py): the range of every channel, then the
values. On the CPU they are plain torch, which tests compare with; fake tensors allocate what the kernels do.

B batch, L tokens, N heads, D head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from wan.weights.fp8 import FP8, LARGEST, SMALLEST

CHUNK_TOKENS = 512
"""Tokens whose range one program of the kernel finds."""


class Quantised(NamedTuple):
    """x [B, L, N, D] as values * scale."""

    values: Tensor
    """[B, L, N, D] e4m3, contiguous."""
    scale: Tensor
    """[B, N] fp32."""


class Channels(NamedTuple):
    """What the tokens of x [B, L, N, D] have, channel by channel: each [B, N, D] fp32."""

    mean: Tensor
    low: Tensor
    high: Tensor


def quantise(x: Tensor, centre: Tensor | None = None) -> Quantised:
    """x [B, L, N, D] of any float dtype, less `centre` [B, N, D] fp32 where it is given."""
    return _quantise(x, channels(x), centre)


def quantise_centred(x: Tensor) -> Quantised:
    """x [B, L, N, D], less its mean over the tokens."""
    found = channels(x)
    return _quantise(x, found, found.mean)


def centre_of(x: Tensor) -> Tensor:
    """The mean over the tokens of x [B, L, N, D]: [B, N, D] fp32."""
    return channels(x).mean


def channels(x: Tensor) -> Channels:
    """Mean, lowest and highest value of each channel of x [B, L, N, D]."""
    batch, num_tokens, num_heads, width = x.shape
    if not _is_fused(x):
        wide = x.float()
        return Channels(wide.mean(1), wide.amin(1), wide.amax(1))
    chunks = -(-num_tokens // CHUNK_TOKENS)
    parts = torch.empty(chunks, 3, batch, num_heads, width, dtype=torch.float32, device=x.device)
    if x.is_cuda:
        from wan.networks import attention_fp8_kernels as kernels

        kernels.channels(x, parts, CHUNK_TOKENS)
    total, low, high = parts.unbind(1)
    return Channels(total.sum(0) / num_tokens, low.amin(0), high.amax(0))


def _quantise(x: Tensor, found: Channels, centre: Tensor | None) -> Quantised:
    if centre is None:
        largest = torch.maximum(found.high, -found.low).amax(-1)
    else:
        largest = torch.maximum(found.high - centre, centre - found.low).amax(-1)
    scale = largest.clamp_min(SMALLEST) / LARGEST
    factor = scale.reciprocal()
    if not _is_fused(x):
        shifted = x.float() if centre is None else x.float() - centre.unsqueeze(1)
        scaled = (shifted * factor[:, None, :, None]).clamp(-LARGEST, LARGEST)
        return Quantised(scaled.to(FP8), scale)
    values = torch.empty(x.shape, dtype=FP8, device=x.device)
    if x.is_cuda:
        from wan.networks import attention_fp8_kernels as kernels

        kernels.scale(x, centre, factor, values)
    return Quantised(values, scale)


def _is_fused(x: Tensor) -> bool:
    return x.is_cuda or isinstance(x, FakeTensor)
