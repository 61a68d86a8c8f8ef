"""Operations of torch by what they do, for those who work out their results, their memory and their time."""

from collections.abc import Mapping
from typing import Any

import torch

aten = torch.ops.aten

VIEWS = {
    aten.view.default, aten.slice.Tensor, aten.select.int, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.detach.default, aten.split.Tensor,
    aten.unbind.int, aten.alias.default, aten.as_strided.default, aten._unsafe_view.default,
}  # fmt: skip
"""They return another shape of their first argument's memory; by its schema _unsafe_view() would not."""
WITHOUT_KERNEL = VIEWS | {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.view_as_real.default, aten.view_as_complex.default, aten.view.dtype,
}  # fmt: skip
IN_PLACE = {
    aten.add_.Tensor, aten.add_.Scalar, aten.sub_.Tensor, aten.mul_.Tensor, aten.mul_.Scalar, aten.div_.Tensor,
    aten.addcmul_.default, aten.copy_.default, aten.clamp_.default, aten.reciprocal_.default, aten.silu_.default,
    aten.gelu_.default, aten.fill_.Scalar, aten.zero_.default, aten.uniform_.default, aten.normal_.default,
}  # fmt: skip
"""They return their first argument, whose metadata stay as they are."""
BY_ELEMENT = {aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten._to_copy.default}
"""Of a tensor of floats and numbers they make one of the same shape: how long it is, need not be remembered."""
COPIES_INTO = {"fsdp.split_with_sizes_copy.default"}
"""They write to tensors that they are given, and return nothing; FSDP's own are there once it is imported."""
FILLS = {
    aten.fill_.Scalar, aten.zero_.default, aten.zeros.default, aten.ones.default, aten.full.default,
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default, aten.normal_.default, aten.uniform_.default,
}  # fmt: skip
"""They write, and read nothing."""
LOOKUPS = {
    aten.embedding.default, aten.index.Tensor, aten.index_select.default, aten.gather.default,
}  # fmt: skip
"""They read as much of their first argument as they write."""
WITH_BIAS = {aten.addmm.default, aten._addmm_activation.default}
"""Products that torch hands to cuBLASLt, with the bias in the epilogue."""
PRODUCTS: Mapping[Any, Any] = {
    aten.mm.default: aten.mm, aten.addmm.default: aten.addmm, aten._addmm_activation.default: aten.addmm,
    aten.bmm.default: aten.bmm, aten.baddbmm.default: aten.baddbmm,
}  # fmt: skip
"""Products of cuBLAS, each with the operation by which torch.utils.flop_counter knows it."""
FP8_PRODUCTS: Mapping[Any, Any] = {aten._scaled_mm.default: aten._scaled_mm}
CONVOLUTION = aten.convolution.default
