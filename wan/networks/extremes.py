"""The larger and the smaller of numbers, for Triton kernels: NaN if one of them is, as in torch.

largest_of(tl.abs(value), 0)      # where tl.max, tl.maximum and their like would take the other numbers

Without them a row with a NaN would get a scale, a limit or a length from its other numbers, and could come out as
numbers.
"""

# Triton decorators are untyped and its kernels are not Python functions.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

import triton
import triton.language as tl


@triton.jit
def larger(a, b):
    """Of each pair of numbers."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smaller(a, b):
    """Of each pair of numbers."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest_of(value, axis: tl.constexpr):
    """Along an axis, which is dropped."""
    return tl.reduce(value, axis, larger)


@triton.jit
def smallest_of(value, axis: tl.constexpr):
    """Along an axis, which is dropped."""
    return tl.reduce(value, axis, smaller)
