"""Rotary position embedding over the three axes of a video.

A head of width D holds D/2 complex numbers, interleaved (real, imaginary). The first part of them is rotated by the
number of the frame, the second by the row, the third by the column: 22 + 21 + 21 for D = 128.
"""

import torch
from torch import Tensor

THETA = 10000.0


def rope_table(
    grid: tuple[int, int, int],
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype = torch.complex128,
) -> Tensor:
    """Unit complex numbers [T*H*W, head_dim/2] for a grid of T frames, H rows and W columns; computed in fp64.

    Nothing else of its size is made: numbers are turned and rounded for each axis alone.
    """
    pairs = head_dim // 2
    spatial = pairs // 3
    widths = (pairs - 2 * spatial, spatial, spatial)
    turns = []
    for axis, (size, width) in enumerate(zip(grid, widths, strict=True)):
        speed = THETA ** -(torch.arange(width, device=device, dtype=torch.float64) / width)
        angle = torch.outer(torch.arange(size, device=device, dtype=torch.float64), speed)
        shape = [1, 1, 1, width]
        shape[axis] = size
        turn = torch.polar(torch.ones_like(angle), angle).to(dtype)
        turns.append(turn.view(shape).expand(*grid, width))
    return torch.cat(turns, dim=-1).flatten(0, 2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn x [B, L, N, D] by table [L, D/2] in fp64; the result is fp64 [B, L, N, D]."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table.unsqueeze(1)).flatten(-2)
