"""The two passes of attention_fp8.py as CUDA kernels (Triton), each reading its input once; only for CUDA tensors.

A program works on one head of one video and a stretch of its tokens. Heads are numbered fastest, so programs that run
at the same time read neighbouring memory. Offsets are 64-bit: 75,600 tokens x 40 heads x 128 of a few videos pass 2^31.
"""

# Triton decorators are untyped and its kernels are not Python functions: mypy checks the wrappers below them.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan.networks.extremes import larger, largest_of, smaller, smallest_of
from wan.weights.fp8 import LARGEST

_LARGEST = tl.constexpr(LARGEST)

_TILE = 32  # tokens read at a time: three fp32 accumulators of 32 x 128 fit into the registers of four warps
_SCALED_TOKENS = 64  # tokens that one program of the second pass scales


@triton.jit
def _channels_kernel(
    x, out, num_tokens, num_heads, num_rows, video_stride, token_stride, head_stride,
    chunk: tl.constexpr, tile: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) % num_rows  # of num_rows: one for each video and head
    part = tl.program_id(0) // num_rows
    column = tl.arange(0, block)[None, :]
    start = x + (row // num_heads).to(tl.int64) * video_stride + (row % num_heads).to(tl.int64) * head_stride
    total = tl.zeros((tile, block), tl.float32)
    low = tl.full((tile, block), float("inf"), tl.float32)
    high = tl.full((tile, block), float("-inf"), tl.float32)
    for first in range(0, chunk, tile):
        token = part * chunk + first + tl.arange(0, tile)[:, None]
        inside = (token < num_tokens) & (column < width)
        at = start + token.to(tl.int64) * token_stride + column
        value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        total += value
        low = smaller(low, tl.where(inside, value, float("inf")))
        high = larger(high, tl.where(inside, value, float("-inf")))
    channel = tl.arange(0, block)
    to = out + (part.to(tl.int64) * 3 * num_rows + row) * width + channel
    tl.store(to, tl.sum(total, 0), mask=channel < width)
    tl.store(to + num_rows * width, smallest_of(low, 0), mask=channel < width)
    tl.store(to + 2 * num_rows * width, largest_of(high, 0), mask=channel < width)


@triton.jit
def _scale_kernel(
    x, centre, factor, out, num_tokens, num_heads, num_rows, video_stride, token_stride, head_stride,
    centred: tl.constexpr, chunk: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) % num_rows
    part = tl.program_id(0) // num_rows
    video = (row // num_heads).to(tl.int64)
    head = (row % num_heads).to(tl.int64)
    column = tl.arange(0, block)[None, :]
    token = (part * chunk + tl.arange(0, chunk)[:, None]).to(tl.int64)
    inside = (token < num_tokens) & (column < width)
    at = x + video * video_stride + token * token_stride + head * head_stride + column
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if centred:
        value -= tl.load(centre + row * width + column, mask=column < width, other=0.0)
    value *= tl.load(factor + row)
    value = smaller(larger(value, -_LARGEST), _LARGEST)
    to = out + ((video * num_tokens + token) * num_heads + head) * width + column
    tl.store(to, value.to(tl.float8e4nv), mask=inside)


def channels(x: Tensor, out: Tensor, chunk: int) -> None:
    """Sum, lowest and highest value of each channel over every `chunk` tokens.

    Args:
        x: [B, L, N, D], bf16, fp16 or fp32, its last stride 1.
        out: [ceil(L / chunk), 3, B, N, D] fp32, contiguous; written.
        chunk: tokens, a multiple of 32.
    """
    batch, num_tokens, num_heads, width = x.shape
    assert x.stride(3) == 1 and out.is_contiguous() and chunk % _TILE == 0
    num_rows = batch * num_heads
    with torch.cuda.device_of(x):
        _channels_kernel[(out.shape[0] * num_rows,)](
            x, out, num_tokens, num_heads, num_rows, x.stride(0), x.stride(1), x.stride(2),
            chunk=chunk, tile=_TILE, width=width, block=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip


def scale(x: Tensor, centre: Tensor | None, factor: Tensor, out: Tensor) -> None:
    """(x - centre) * factor, rounded to e4m3 and held within its range.

    Args:
        x: [B, L, N, D], bf16, fp16 or fp32, its last stride 1.
        centre: [B, N, D] fp32, contiguous; None: 0.
        factor: [B, N] fp32, contiguous.
        out: [B, L, N, D] e4m3, contiguous; written.
    """
    batch, num_tokens, num_heads, width = x.shape
    assert x.stride(3) == 1 and out.is_contiguous() and factor.is_contiguous()
    assert centre is None or centre.is_contiguous()
    num_rows = batch * num_heads
    with torch.cuda.device_of(x):
        _scale_kernel[(triton.cdiv(num_tokens, _SCALED_TOKENS) * num_rows,)](
            x, factor if centre is None else centre, factor, out, num_tokens, num_heads, num_rows,
            x.stride(0), x.stride(1), x.stride(2),
            centred=centre is not None, chunk=_SCALED_TOKENS,
            width=width, block=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip
