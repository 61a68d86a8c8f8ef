"""Numbers in fp8 (e4m3) with one fp32 scale per row, and weights that are quantised while they are read.

    rows = quantise(weight)                        # Fp8Rows: values [N, K] e4m3, scale [N, 1] fp32
    dequantise(*rows, torch.bfloat16)              # near weight: each number within 1/16 of itself
    source = Fp8Source(open_dit(task, folder))     # reads into e4m3 what asks for it, a few rows at a time

The scale of a row is its largest magnitude / 448, the largest number of e4m3. A row with an infinity or a NaN does not
come out finite.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from wan.weights.fill import Source

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of e4m3."""
SMALLEST = 1e-30
"""Rows of smaller numbers, such as zeros, are scaled as if this were their largest one."""
SCALE_SUFFIX = "_scale"
"""A parameter in fp8 has its scales beside it, under its name with this suffix (weight, weight_scale)."""

_CHUNK_NUMBERS = 2**22
"""So many numbers are held in fp32 at a time: 16 MiB."""


class Fp8Rows(NamedTuple):
    """A tensor in e4m3 with one scale per row."""

    values: Tensor
    """[..., K] e4m3."""
    scale: Tensor
    """[..., 1] fp32: the tensor is values * scale."""


def quantise(x: Tensor) -> Fp8Rows:
    """x [..., K] of any float dtype, row by row."""
    values = torch.empty(x.shape, dtype=FP8, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    # A fused kernel writes the result and allocates nothing else: so fake tensors, which stand for it, do the same.
    if not isinstance(x, FakeTensor):
        flat = x.reshape(-1, x.shape[-1])
        quantise_into(flat, values.view(flat.shape), scale.view(-1, 1))
    return Fp8Rows(values, scale)


def quantise_into(x: Tensor, values: Tensor, scale: Tensor) -> None:
    """As quantise(), of x [N, K], into `values` [N, K] e4m3 and `scale` [N, 1] fp32."""
    for part in _chunks(*x.shape):
        wide = x[part].float()
        largest = wide.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST)
        scale[part] = largest / LARGEST
        values[part] = (wide * (LARGEST / largest)).to(FP8)


def dequantise(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """values [..., K] e4m3 * scale [..., 1] fp32, rounded once, in `dtype`; nothing else of this size is allocated."""
    return values.to(dtype).mul_(scale)


def _chunks(num_rows: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK_NUMBERS // max(1, width))
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


class Fp8Source:
    """Another source, for a module of which some parameters are e4m3 and have their scales beside them.

    Such a parameter is read before its scales, of the same rows; the values of `source` are read once, in fp32.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._scales: dict[str, Tensor] = {}

    def check(self, expected: Mapping[str, torch.Size]) -> None:
        """As Source.check; scales are in no file."""
        self._source.check(
            {name: shape for name, shape in expected.items() if not name.endswith(SCALE_SUFFIX)}
        )

    def read_into(self, name: str, target: Tensor) -> None:
        """Fill `target` with parameter `name`, quantised where it is e4m3, or with its scales."""
        self.read_rows(name, target, start=0, shape=target.shape)

    def read_rows(self, name: str, target: Tensor, *, start: int, shape: torch.Size) -> None:
        """As read_into, with rows from `start` on of what has `shape` as a whole."""
        if name.endswith(SCALE_SUFFIX):
            target.copy_(self._scales.pop(name))
        elif target.dtype == FP8:
            self._scales[name + SCALE_SUFFIX] = self._quantised(name, target, start, shape)
        else:
            self._source.read_rows(name, target, start=start, shape=shape)

    def _quantised(self, name: str, target: Tensor, start: int, shape: torch.Size) -> Tensor:
        """Fill `target`, and return its scales."""
        num_rows, width = target.shape
        scale = torch.empty((num_rows, 1), dtype=torch.float32, device=target.device)
        for part in _chunks(num_rows, width):
            wide = torch.empty((part.stop - part.start, width), dtype=torch.float32, device=target.device)
            self._source.read_rows(name, wide, start=start + part.start, shape=shape)
            quantise_into(wide, target[part], scale[part])
        return scale

    def release(self) -> None:
        """As Source.release."""
        self._source.release()
