"""The element-wise steps between matrix products: norms, modulation, rotary embedding, gated adds.

Each step has one meaning and two ways to run: plain torch (any device, autograd, fake tensors) and, on CUDA without
autograd, one fused pass of kernels.py. The residual stream is fp32; what goes into a matrix product is `dtype`.

B batch, L tokens, D model width, N heads, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wan.networks.linear import Fp8Linear, Layer, Rows, takes_fp8
from wan.networks.rope import rotate
from wan.weights.fp8 import FP8, Fp8Rows, quantise

WIDE_ROWS = 4096
"""Tokens whose fp32 copy the plain layer norm holds at a time."""


def runs_fused(x: Tensor, wanted: bool) -> bool:
    """Whether a fused kernel takes this tensor: real CUDA memory and nothing recorded for backward."""
    return wanted and x.is_cuda and not torch.is_grad_enabled()


def rope_dtype(rotated: torch.dtype, *, fused: bool) -> torch.dtype:
    """Of the table of rms_norm_rope() that turns numbers of the dtype `rotated`.

    The fused kernel turns bf16 and fp16 in fp32, and so would round fp64 anew for every head.
    """
    return torch.complex64 if fused and rotated != torch.float32 else torch.complex128


def layer_norm(
    x: Tensor, gain: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype, fused: bool = False
) -> Rows:
    """LayerNorm over D with statistics in fp32, then * gain + bias.

    x [B, L, D] fp32; gain and bias [D] or [B, D] (one row per video); returns [B, L, D] in `dtype`: for e4m3, Fp8Rows.
    """
    if runs_fused(x, fused):
        from wan.networks import kernels

        return kernels.layer_norm(x, gain, bias, eps, dtype)
    gain, bias = (value.to(x.dtype).expand(x.shape[0], -1) for value in (gain, bias))
    if torch.is_grad_enabled():
        return torch.stack(
            [F.layer_norm(v, v.shape[-1:], g, b, eps) for v, g, b in zip(x, gain, bias, strict=True)]
        ).to(dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device) if dtype == FP8 else None
    for video in range(x.shape[0]):
        for start in range(0, x.shape[1], WIDE_ROWS):
            part = slice(start, start + WIDE_ROWS)
            normed = F.layer_norm(x[video, part], x.shape[-1:], gain[video], bias[video], eps)
            if scale is None:
                out[video, part] = normed
            else:
                out[video, part], scale[video, part] = quantise(normed)
    return out if scale is None else Fp8Rows(out, scale)


def rms_norm_rope(
    x: Tensor,
    gain: Tensor,
    table: Tensor | None,
    *,
    num_heads: int,
    eps: float,
    chunks: int = 1,
    fused: bool = False,
) -> Tensor:
    """RMSNorm over all heads at once, then rotary embedding per head; in place unless autograd records.

    x [B, L, N*D]; gain [N*D]; table [L, D/2] of rope_dtype(), or None for no rotation. Statistics are computed in fp32
    and the rotation in fp64 (in fp32, if the kernel is fused and x is not fp32); there is one rounding, at the end.
    `chunks` bounds the wide copies of the plain path to 1/chunks of the tokens.
    """
    if runs_fused(x, fused):
        from wan.networks import kernels

        return kernels.rms_norm_rope_(x, gain, table, num_heads, eps)
    if torch.is_grad_enabled():
        return _rms_norm_rope(x, gain, table, num_heads, eps)
    count = min(chunks, x.shape[1])
    tables = [None] * count if table is None else table.chunk(count)
    for part, part_table in zip(x.chunk(count, dim=1), tables, strict=False):
        part.copy_(_rms_norm_rope(part, gain, part_table, num_heads, eps))
    return x


def _rms_norm_rope(x: Tensor, gain: Tensor, table: Tensor | None, num_heads: int, eps: float) -> Tensor:
    normed = F.rms_norm(x.float(), gain.shape, gain.float(), eps)
    if table is None:
        return normed.to(x.dtype)
    return rotate(normed.unflatten(-1, (num_heads, -1)), table).flatten(-2).to(x.dtype)


def gated_add(x: Tensor, y: Tensor, gate: Tensor | None, *, fused: bool = False) -> Tensor:
    """x + y * gate; in place unless autograd records. x [B, L, D] fp32, y [B, L, D], gate [B, D] fp32 or None."""
    if torch.is_grad_enabled():
        return x + (y if gate is None else y * gate.unsqueeze(1))
    if runs_fused(x, fused):
        from wan.networks import kernels

        return kernels.gated_add_(x, y, gate)
    return x.add_(y) if gate is None else x.addcmul_(y.to(x.dtype), gate.unsqueeze(1))


def add_layer_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    gain: Tensor,
    bias: Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
    fused: bool = False,
) -> tuple[Tensor, Rows]:
    """gated_add(), then layer_norm() of its result: returns both."""
    if runs_fused(x, fused):
        from wan.networks import kernels

        return x, kernels.add_layer_norm_(x, y, gate, gain, bias, eps, dtype)
    x = gated_add(x, y, gate)
    return x, layer_norm(x, gain, bias, eps=eps, dtype=dtype)


def linear(x: Rows, layer: Layer, rows: slice) -> Tensor:
    """The outputs `rows` of `layer`: x [..., K] -> [..., len(rows)]."""
    if isinstance(layer, Fp8Linear):
        out: Tensor = layer(x, rows)
        return out
    assert isinstance(x, Tensor)
    return F.linear(x, layer.weight[rows], layer.bias[rows])


def linear_gelu(x: Rows, layer: Layer, *, fused: bool = False) -> Rows:
    """gelu_tanh(layer(x)) with one tensor of the hidden width, not two; quantised where `layer` takes fp8.

    x [B, L, D] -> [B, L, F].
    """
    if runs_fused(layer.bias, fused):
        from wan.networks import kernels

        if takes_fp8(layer):
            return kernels.quantise(layer(x), gelu=True)
        assert isinstance(x, Tensor)
        weight = layer.dequantised() if isinstance(layer, Fp8Linear) else layer.weight
        return kernels.linear_gelu(x, weight, layer.bias)
    hidden: Tensor = layer(x)
    if torch.is_grad_enabled():
        return F.gelu(hidden, approximate="tanh")
    torch.ops.aten.gelu_(hidden, approximate="tanh")
    return quantise(hidden) if takes_fp8(layer) else hidden
