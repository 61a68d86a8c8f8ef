"""Attention, rotary embedding and the element-wise steps, each against its formula written out."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from wan.networks import ops
from wan.networks.attention import head_groups
from wan.networks.rope import rope_table, rotate
from wan.networks.sdpa import attention


def test_head_groups_divide_the_heads() -> None:
    # 40 and 12 of the public models, whole or split over ranks, and numbers that no divisor from 4 on fits.
    assert {heads: head_groups(heads) for heads in (40, 20, 12, 10, 8, 6, 5, 4, 3, 1)} == {
        40: 4, 20: 4, 12: 4, 10: 5, 8: 4, 6: 6, 5: 5, 4: 4, 3: 3, 1: 1,
    }  # fmt: skip


def test_attention_is_softmax_of_scaled_products() -> None:
    q, k, v = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    scores = torch.einsum("blnd,bsnd->bnls", q, k) / math.sqrt(8)
    expected = torch.einsum("bnls,bsnd->blnd", scores.softmax(-1), v)
    torch.testing.assert_close(attention(q, k, v), expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_fused_kernels_take_cuda_memory_where_nothing_is_recorded(
    device: str, wanted: bool, grad: bool
) -> None:
    with FakeTensorMode(), torch.set_grad_enabled(grad):
        x = torch.empty(2, device=device)
        assert ops.runs_fused(x, wanted) is (device == "cuda" and wanted and not grad)


def angle(position: int, pair: int, dim: int) -> float:
    return float(position * 10000.0 ** (-2 * pair / dim))


@pytest.mark.parametrize(("head_dim", "dims"), [(128, (44, 42, 42)), (16, (8, 4, 4))])
def test_rope_table_turns_pairs_by_frame_row_and_column(head_dim: int, dims: tuple[int, int, int]) -> None:
    grid = (3, 4, 5)
    table = rope_table(grid, head_dim, torch.device("cpu")).view(*grid, head_dim // 2)
    assert table.dtype == torch.complex128
    place = (2, 3, 4)
    angles = [
        angle(position, pair, dim)
        for position, dim in zip(place, dims, strict=True)
        for pair in range(dim // 2)
    ]
    expected = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles], dtype=torch.complex128)
    torch.testing.assert_close(table[place], expected, rtol=0, atol=1e-13)
    assert torch.equal(table[0, 0, 0], torch.ones(head_dim // 2, dtype=torch.complex128))


def test_rotate_turns_interleaved_pairs() -> None:
    quarter = torch.full((1, 2), 1j, dtype=torch.complex128)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    assert rotate(x, quarter).flatten().tolist() == [-2.0, 1.0, -4.0, 3.0]


def by_formula(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-6).sqrt() * gain.unsqueeze(-2) + bias.unsqueeze(-2)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("shape", [(16,), (2, 16)])
def test_layer_norm_takes_one_gain_or_one_a_video(shape: tuple[int, ...], grad: bool) -> None:
    x, gain, bias = torch.randn(2, 9, 16) * 3 + 1, torch.randn(shape), torch.randn(shape)
    with torch.set_grad_enabled(grad):
        normed = ops.layer_norm(x, gain, bias, eps=1e-6, dtype=torch.float32)
    torch.testing.assert_close(normed, by_formula(x, gain, bias))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_add_layer_norm_adds_first_and_in_place_only_without_autograd(gated: bool, grad: bool) -> None:
    x, y = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    gate, gain, bias = torch.randn(2, 16) if gated else None, torch.randn(2, 16), torch.randn(2, 16)
    summed = x + (y if gate is None else y * gate[:, None])
    before = x.clone()
    with torch.set_grad_enabled(grad):
        result, normed = ops.add_layer_norm(x, y, gate, gain, bias, eps=1e-6, dtype=torch.float32)
    torch.testing.assert_close(result, summed)
    torch.testing.assert_close(normed, by_formula(summed, gain, bias))
    assert torch.equal(x, before) == grad


@pytest.mark.parametrize("chunks", [1, 4, 100])
def test_rms_norm_runs_over_all_heads_and_rotation_over_each(chunks: int) -> None:
    x, gain = torch.randn(2, 9, 32), torch.randn(32)
    table = rope_table((1, 3, 3), 16, torch.device("cpu"))
    normed = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain
    expected = rotate(normed.unflatten(-1, (2, 16)), table).flatten(-2).float()
    with torch.no_grad():
        made = ops.rms_norm_rope(x, gain, table, num_heads=2, eps=1e-6, chunks=chunks)
    assert made is x
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize(
    ("rotated", "fused", "expected"),
    [
        (torch.bfloat16, True, torch.complex64),
        (torch.float16, True, torch.complex64),
        (torch.float32, True, torch.complex128),
        (torch.bfloat16, False, torch.complex128),
    ],
)
def test_only_what_is_turned_in_fp32_has_a_table_in_half_the_bytes(
    rotated: torch.dtype, fused: bool, expected: torch.dtype
) -> None:
    assert ops.rope_dtype(rotated, fused=fused) == expected
