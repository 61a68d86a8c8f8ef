"""Linear layers whose weights are stored in fp8, and how a network comes to have them.

    in_fp8(dit.execution_order(), levers)     # on the meta device, before the weights are read
    layer(x)                                  # x [..., K] -> [..., N] in the dtype of the bias

The product runs in fp8 (Levers.matmul), on rows that are quantised before it; or the weight is dequantised right before
the product, for this one layer. Where autograd records, it is always dequantised.
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from wan.errors import InputError
from wan.levers import Levers, Matmul
from wan.weights.fp8 import FP8, Fp8Rows, dequantise, quantise

Rows: TypeAlias = Tensor | Fp8Rows
"""What goes into a linear layer: rows in the dtype of its bias or, where the layer takes_fp8(), quantised ones."""

FP8_CAPABILITY = (8, 9)
"""CUDA devices from this compute capability on multiply in fp8."""


def check_matmul(matmul: Matmul, device: torch.device, names: Mapping[str, str] | None = None) -> None:
    """Refuse products in fp8 on a GPU that has no units for them; a CPU computes the same, without speed.

    Under FakeTensorMode no GPU is asked. What can be said without a device: wan.levers.check_dtypes.

    Args:
        matmul: a value of Levers.matmul.
        device: where the network runs.
        names: how the user spells matmul and weights_dtype; those that are left out are spelled so.

    Raises:
        InputError: see above.
    """
    if matmul != "fp8" or device.type != "cuda" or isinstance(torch.empty(0), FakeTensor):
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        called = {name: name for name in ("matmul", "weights_dtype")} | dict(names or {})
        raise InputError(
            f"{called['matmul']} fp8: {torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]}, units for fp8 begin with {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]}",
            hint=f"leave {called['matmul']} out: {called['weights_dtype']} fp8 saves memory on this GPU too",
        )


class Fp8Linear(nn.Module):
    """As the nn.Linear `layer`, with the weight in e4m3 and a scale for each of its rows; made without values."""

    def __init__(self, layer: nn.Linear, levers: Levers) -> None:
        super().__init__()
        shape, device = layer.weight.shape, layer.weight.device
        weight = torch.empty(shape, dtype=FP8, device=device)
        scale = torch.empty((shape[0], 1), dtype=torch.float32, device=device)
        # In this order: a source knows the scales once it has read the weight.
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias
        self.levers = levers

    def forward(self, x: Rows, rows: slice = slice(None)) -> Tensor:
        """The outputs `rows` of x [..., K]: [..., len(rows)]."""
        if isinstance(x, Tensor) and takes_fp8(self):
            x = _quantised(x, fused=self.levers.fused_kernels)
        bias = self.bias[rows]
        if isinstance(x, Tensor):
            return F.linear(x, self.dequantised(rows), bias)
        return _fp8_product(x, Fp8Rows(self.weight[rows], self.weight_scale[rows]), bias)

    def dequantised(self, rows: slice = slice(None)) -> Tensor:
        """The rows of the weight in the dtype of the bias: a copy."""
        return dequantise(self.weight[rows], self.weight_scale[rows], self.bias.dtype)


Layer: TypeAlias = nn.Linear | Fp8Linear


def takes_fp8(layer: nn.Module) -> bool:
    """Whether `layer` multiplies in fp8, so that what makes its input may quantise it."""
    return isinstance(layer, Fp8Linear) and layer.levers.matmul == "fp8" and not torch.is_grad_enabled()


def in_fp8(blocks: Iterable[nn.Module], levers: Levers) -> None:
    """Replace every nn.Linear below `blocks` by a Fp8Linear; all weights are still to be read."""
    for block in blocks:
        layers = [(name, part) for name, part in block.named_modules() if isinstance(part, nn.Linear)]
        for name, layer in layers:
            block.set_submodule(name, Fp8Linear(layer, levers))


def _quantised(x: Tensor, *, fused: bool) -> Fp8Rows:
    """x [..., K] in e4m3 with a scale per row: one fused pass on CUDA, plain torch elsewhere."""
    if fused and x.is_cuda:
        from wan.networks import kernels

        return kernels.quantise(x)
    return quantise(x)


def _fp8_product(x: Fp8Rows, weight: Fp8Rows, bias: Tensor) -> Tensor:
    """x @ weight^T + bias, accumulated in fp32 and rounded to the dtype of the bias."""
    out = torch._scaled_mm(
        x.values.flatten(0, -2), weight.values.t(),
        scale_a=x.scale.view(-1, 1), scale_b=weight.scale.t(), bias=bias, out_dtype=bias.dtype, use_fast_accum=True,
    )  # fmt: skip
    return out.view(*x.values.shape[:-1], -1)
