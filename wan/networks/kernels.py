"""Fused CUDA kernels (Triton) for ops.py: each reads its input once and writes its output once.

Why these kernels exist: on one H200 the plain torch forms of these steps cost 22 ms of a 290 ms block (14B, 720P) and
hold fp32 and fp64 copies of whole activations; the fused kernels run at the speed of the memory, take 6 ms, and hold no
copies. This module is imported only for CUDA tensors.
"""

# Triton decorators are untyped and its kernels are not Python functions: mypy checks the wrappers below them.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _layer_norm_kernel(
    x, gain, bias, out, num_tokens, gain_stride, width: tl.constexpr, block: tl.constexpr, eps: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    video = row // num_tokens
    column = tl.arange(0, block)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / width
    centred = tl.where(inside, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    multiply = tl.load(gain + video * gain_stride + column, mask=inside, other=0.0).to(tl.float32)
    add = tl.load(bias + video * gain_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, centred * scale * multiply + add, mask=inside)


@triton.jit
def _add_layer_norm_kernel(
    x, y, gate, gain, bias, out, num_tokens, gate_stride, gain_stride,
    gated: tl.constexpr, width: tl.constexpr, block: tl.constexpr, eps: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    video = row // num_tokens
    column = tl.arange(0, block)
    inside = column < width
    at = x + row * width + column
    added = tl.load(y + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if gated:
        added *= tl.load(gate + video * gate_stride + column, mask=inside, other=0.0)
    value = tl.load(at, mask=inside, other=0.0) + added
    tl.store(at, value, mask=inside)
    mean = tl.sum(value, 0) / width
    centred = tl.where(inside, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    multiply = tl.load(gain + video * gain_stride + column, mask=inside, other=0.0).to(tl.float32)
    add = tl.load(bias + video * gain_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, centred * scale * multiply + add, mask=inside)


@triton.jit
def _rms_norm_rope_kernel(
    x, gain, table, num_tokens, row_stride,
    width: tl.constexpr, head_pairs: tl.constexpr, block: tl.constexpr, rotate: tl.constexpr, angle: tl.constexpr,
    eps: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    value = tl.load(x + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    normed = value * scale * tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    if rotate:
        pair = tl.arange(0, block // 2)
        at = table + (row % num_tokens) * head_pairs * 2 + (pair % head_pairs) * 2
        cosine = tl.load(at).to(angle)
        sine = tl.load(at + 1).to(angle)
        even, odd = tl.split(tl.reshape(normed, (block // 2, 2)))
        even = even.to(angle)
        odd = odd.to(angle)
        normed = tl.interleave(even * cosine - odd * sine, even * sine + odd * cosine).to(tl.float32)
    tl.store(x + row * row_stride + column, normed, mask=inside)


@triton.jit
def _gated_add_kernel(x, y, gate, num_tokens, gated: tl.constexpr, width: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    video = row // num_tokens
    column = tl.arange(0, block)
    inside = column < width
    at = x + row * width + column
    added = tl.load(y + row * width + column, mask=inside).to(tl.float32)
    if gated:
        added *= tl.load(gate + video * width + column, mask=inside)
    tl.store(at, tl.load(at, mask=inside) + added, mask=inside)


def _launch(kernel: Any, programs: int, *args: object, width: int, **constants: object) -> None:
    # Four warps per row saturate the memory up to 2,048 columns, eight above (measured on one H200).
    warps = 4 if width <= 2048 else 8
    constants = {"num_warps": warps, "block": triton.next_power_of_2(width), **constants}
    kernel[(programs,)](*args, width=width, **constants)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm(x) * gain + bias: x [B, L, D] fp32, gain and bias [D] or [B, D]; returns [B, L, D] in `dtype`."""
    x = x.contiguous()
    batch, num_tokens, width = x.shape
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    gain_stride = width if gain.dim() == 2 else 0
    _launch(
        _layer_norm_kernel, batch * num_tokens, x, gain.contiguous(), bias.contiguous(), out, num_tokens, gain_stride,
        width=width, eps=eps,
    )  # fmt: skip
    return out


def add_layer_norm_(
    x: Tensor, y: Tensor, gate: Tensor | None, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """x += y * gate in place, then LayerNorm(x) * gain + bias in `dtype`; as gated_add_ and layer_norm in one pass."""
    batch, num_tokens, width = x.shape
    if not x.is_contiguous():
        gated_add_(x, y, gate)
        return layer_norm(x, gain, bias, eps, dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    _launch(
        _add_layer_norm_kernel, batch * num_tokens, x, y.contiguous(), x if gate is None else gate.contiguous(),
        gain.contiguous(), bias.contiguous(), out, num_tokens, width, width if gain.dim() == 2 else 0,
        gated=gate is not None, width=width, eps=eps,
    )  # fmt: skip
    return out


def rms_norm_rope_(x: Tensor, gain: Tensor, table: Tensor | None, num_heads: int, eps: float) -> Tensor:
    """RMSNorm over the last dim of x [B, L, N*D], then rotation by table [L, D/2] complex128; in place.

    fp32 is rotated in fp64, as published; bf16 and fp16 are rotated in fp32, whose error is four digits smaller than
    the rounding of these types.
    """
    batch, num_tokens, width = x.shape
    if batch > 1 and x.stride(0) != num_tokens * x.stride(1):
        for video in range(batch):
            rms_norm_rope_(x[video : video + 1], gain, table, num_heads, eps)
        return x
    _launch(
        _rms_norm_rope_kernel, batch * num_tokens, x, gain, x if table is None else torch.view_as_real(table),
        num_tokens, x.stride(1), width=width, head_pairs=width // num_heads // 2,
        rotate=table is not None, angle=tl.float64 if x.dtype == torch.float32 else tl.float32, eps=eps, num_warps=4,
    )  # fmt: skip
    return x


def gated_add_(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """x += y * gate in place: x [B, L, D] fp32, y [B, L, D] any float, gate [B, D] fp32 or None for 1."""
    batch, num_tokens, width = x.shape
    if not x.is_contiguous():
        for video in range(batch):
            own = slice(video, video + 1)
            gated_add_(x[own], y[own], None if gate is None else gate[own])
        return x
    _launch(
        _gated_add_kernel, batch * num_tokens, x, y.contiguous(), x if gate is None else gate.contiguous(), num_tokens,
        gated=gate is not None, width=width,
    )  # fmt: skip
    return x


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu_tanh(x @ weight^T + bias) with the activation in the epilogue of the product: x [..., K] -> [..., N]."""
    out: Tensor = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return out.view(*x.shape[:-1], -1)
