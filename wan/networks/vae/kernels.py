"""Fused CUDA kernels (Triton) of the VAE: the outputs of a convolution's taps are added, and normed, in one pass.

A causal convolution is the sum of up to three 2-D convolutions (layers.py). In plain torch the bias, the two sums and
the shortcut around a block read and write the frame eleven times; here five times, in the same order. This
module is imported only for CUDA tensors.

C channels, h x w pixels. Frames are [1, C, h, w] in channels-last memory; a frame that was cropped out of a larger one
has gaps between its rows.
"""

# Triton decorators are untyped and its kernels are not Python functions: mypy checks the wrappers below them.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan.networks.extremes import larger

BLOCK = 4096
"""Numbers of a program: rows of pixels are long, so that few programs have a part of one."""


@triton.jit
def _norm_silu_kernel(
    first, second, third, bias, gamma, out, num_rows,
    parts: tl.constexpr, has_bias: tl.constexpr, width: tl.constexpr, block: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)[:, None]
    column = tl.arange(0, block)[None, :]
    inside = (row < num_rows) & (column < width)
    at = row * width + column
    value = tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
    if has_bias:
        value += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    if parts > 1:
        value += tl.load(second + at, mask=inside, other=0.0).to(tl.float32)
    if parts > 2:
        value += tl.load(third + at, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(value * value, 1))[:, None]
    scale = tl.sqrt(width * 1.0) / larger(length, 1e-12)
    normed = value * scale * tl.load(gamma + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(out + at, normed * tl.sigmoid(normed), mask=inside)


@triton.jit
def _total_kernel(
    first, second, third, bias, shortcut, out, length, stride, shortcut_stride,
    parts: tl.constexpr, has_shortcut: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < length
    at = row * stride + column
    value = tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + column % width, mask=inside, other=0.0).to(tl.float32)
    if parts > 1:
        value += tl.load(second + at, mask=inside, other=0.0).to(tl.float32)
    if parts > 2:
        value += tl.load(third + at, mask=inside, other=0.0).to(tl.float32)
    if has_shortcut:
        value += tl.load(shortcut + row * shortcut_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * length + column, value, mask=inside)


def norm_silu(parts: Sequence[Tensor], bias: Tensor | None, gamma: Tensor) -> Tensor:
    """silu(s / |s| * sqrt(C) * gamma) over the channels of s = the sum of `parts` and `bias`; C gammas.

    Args:
        parts: one to three frames or stacks of frames [T, C, h, w]; the first of several is overwritten.
        bias: [C], or None for zeros.
        gamma: C numbers, of any shape.

    Returns:
        [T, C, h, w], dense in channels-last memory: a new tensor where there is one part, else the first part.
    """
    dense = [part.contiguous(memory_format=torch.channels_last) for part in parts]
    first, second, third = (dense * 3)[:3]
    out = torch.empty_like(first) if len(dense) == 1 else first
    width = first.shape[1]
    num_rows = first.numel() // width
    block = triton.next_power_of_2(width)
    rows = max(1, 4096 // block)
    _norm_silu_kernel[(triton.cdiv(num_rows, rows),)](
        first, second, third, first if bias is None else bias, gamma.contiguous(), out, num_rows,
        parts=len(dense), has_bias=bias is not None, width=width, block=block, rows=rows, num_warps=8,
    )  # fmt: skip
    return out


def total(
    parts: Sequence[Tensor], bias: Tensor, crop: Callable[[Tensor], Tensor], shortcut: Tensor | None = None
) -> Tensor:
    """crop(the sum of `parts` and `bias`) + shortcut: one to three frames [1, C, H, W] -> [1, C, h, w], dense.

    Args:
        parts: outputs of the taps, all alike; the first is overwritten where nothing is cropped.
        bias: [C].
        crop: takes rows or columns out of a frame.
        shortcut: [1, C, h, w], or None for zeros.
    """
    cropped = [crop(part.contiguous(memory_format=torch.channels_last)) for part in parts]
    first, second, third = (cropped * 3)[:3]
    _, width, height, columns = first.shape
    is_whole = first.is_contiguous(memory_format=torch.channels_last)
    out = first if is_whole else torch.empty_like(first, memory_format=torch.channels_last)
    if shortcut is not None and shortcut.stride(1) != 1:
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
    beside = first if shortcut is None else shortcut
    length = width * columns
    _total_kernel[(height, triton.cdiv(length, BLOCK))](
        first, second, third, bias, beside, out, length, first.stride(2), beside.stride(2),
        parts=len(cropped), has_shortcut=shortcut is not None, width=width, block=BLOCK, num_warps=8,
    )  # fmt: skip
    return out
