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

from wan.networks.extremes import larger, largest_of
from wan.weights.fp8 import FP8, LARGEST, SMALLEST, Fp8Rows

_LARGEST, _SMALLEST = tl.constexpr(LARGEST), tl.constexpr(SMALLEST)


@triton.jit
def _scaled_for_fp8(value, scales, row):
    """The numbers of a row over its scale, which is stored: as wan/weights/fp8.py does it."""
    largest = larger(largest_of(tl.abs(value), 0), _SMALLEST)
    tl.store(scales + row, largest / _LARGEST)
    return value * (_LARGEST / largest)


@triton.jit
def _quantise_kernel(
    x, out, scales, row_stride, gelu: tl.constexpr, width: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    value = tl.load(x + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    if gelu:
        # 0.5 * (1 + tanh(u)) is sigmoid(2 u); u = sqrt(2 / pi) * (value + 0.044715 * value^3).
        value = value * tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    value = _scaled_for_fp8(value, scales, row)
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _layer_norm_kernel(
    x, gain, bias, out, scales, num_tokens, gain_stride,
    quantised: tl.constexpr, width: tl.constexpr, block: tl.constexpr, eps: tl.constexpr,
):  # fmt: skip
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
    normed = centred * scale * multiply + add
    if quantised:
        normed = _scaled_for_fp8(normed, scales, row)
    tl.store(out + row * width + column, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_layer_norm_kernel(
    x, y, gate, gain, bias, out, scales, num_tokens, gate_stride, gain_stride,
    gated: tl.constexpr, quantised: tl.constexpr, width: tl.constexpr, block: tl.constexpr, eps: tl.constexpr,
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
    normed = centred * scale * multiply + add
    if quantised:
        normed = _scaled_for_fp8(normed, scales, row)
    tl.store(out + row * width + column, normed.to(out.dtype.element_ty), mask=inside)


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


def quantise(x: Tensor, *, gelu: bool = False) -> Fp8Rows:
    """x [..., K] in e4m3 with a scale per row; with `gelu`, gelu_tanh(x)."""
    width = x.shape[-1]
    flat = x.reshape(-1, width)  # a view, if only the stride of the rows is another
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    out, scales = _empty_rows(x.shape, FP8, x.device)
    assert scales is not None
    _launch(
        _quantise_kernel, flat.shape[0], flat, out, scales, flat.stride(0), gelu=gelu, width=width
    )  # fmt: skip
    return Fp8Rows(out, scales)


def _empty_rows(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Memory for rows in `dtype` and, where that is e4m3, for their scales."""
    out = torch.empty(shape, dtype=dtype, device=device)
    if dtype != FP8:
        return out, None
    return out, torch.empty((*shape[:-1], 1), dtype=torch.float32, device=device)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor | Fp8Rows:
    """LayerNorm(x) * gain + bias: x [B, L, D] fp32, gain and bias [D] or [B, D]; returns [B, L, D] in `dtype`.

    For e4m3 the result is Fp8Rows.
    """
    x = x.contiguous()
    batch, num_tokens, width = x.shape
    out, scales = _empty_rows(x.shape, dtype, x.device)
    gain_stride = width if gain.dim() == 2 else 0
    _launch(
        _layer_norm_kernel, batch * num_tokens, x, gain.contiguous(), bias.contiguous(), out,
        x if scales is None else scales, num_tokens, gain_stride,
        quantised=scales is not None, width=width, eps=eps,
    )  # fmt: skip
    return out if scales is None else Fp8Rows(out, scales)


def add_layer_norm_(
    x: Tensor, y: Tensor, gate: Tensor | None, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor | Fp8Rows:
    """x += y * gate in place, then LayerNorm(x) * gain + bias in `dtype`; as gated_add_ and layer_norm in one pass."""
    batch, num_tokens, width = x.shape
    if not x.is_contiguous():
        gated_add_(x, y, gate)
        return layer_norm(x, gain, bias, eps, dtype)
    out, scales = _empty_rows(x.shape, dtype, x.device)
    _launch(
        _add_layer_norm_kernel, batch * num_tokens, x, y.contiguous(), x if gate is None else gate.contiguous(),
        gain.contiguous(), bias.contiguous(), out, x if scales is None else scales, num_tokens, width,
        width if gain.dim() == 2 else 0, gated=gate is not None, quantised=scales is not None, width=width, eps=eps,
    )  # fmt: skip
    return out if scales is None else Fp8Rows(out, scales)


def rms_norm_rope_(x: Tensor, gain: Tensor, table: Tensor | None, num_heads: int, eps: float) -> Tensor:
    """RMSNorm over the last dim of x [B, L, N*D], then rotation by table [L, D/2], complex64 or 128; in place.

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
