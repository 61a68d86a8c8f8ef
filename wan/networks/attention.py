"""Attention as the DiT uses it, over [B, L, N, D] (batch, tokens, heads, head width): which kernel computes which.

Self-attention takes the kernel that the lever attention_kernel names (attention_kernels.py). Cross-attention, with its
512 and 257 keys, stays with torch (CrossAttention of dit.py, sdpa.py).
"""

from torch import Tensor

from wan.levers import AttentionKernel
from wan.networks.attention_kernels import Kernel, kernel_for


class Attention:
    """Self-attention in three steps, so that wan/parallel can do its work between them.

    A caller makes q, k and v one after the other, passes each through to_heads() as soon as it is made, gives the
    three to attend() and the result to to_tokens().

    Args:
        kernel: a value of Levers.attention_kernel.
    """

    head_ranks = 1
    """Ranks that heads are split over; the number of heads that are handed over at a time is a multiple of it."""

    def __init__(self, kernel: AttentionKernel = "auto") -> None:
        self.kernel_name = kernel

    def to_heads(self, x: Tensor) -> Tensor:
        """What attend() reads of x [B, L, N, D]."""
        return x

    def attend(self, parts: list[Tensor]) -> Tensor:
        """softmax(q k^T / sqrt(D)) v of the three `parts` q, k, v, which it empties; InputError: see choose()."""
        return self.kernel(parts).attend(parts)

    def kernel(self, parts: list[Tensor]) -> Kernel:
        """Who computes attention of these q, k and v."""
        return kernel_for(self.kernel_name, parts)

    def to_tokens(self, x: Tensor) -> Tensor:
        """The result for the tokens that to_heads() was given: [B, L, N, D]."""
        return x


def head_groups(num_heads: int) -> int:
    """Groups for sliced attention: the smallest divisor of `num_heads` that is at least 4, else one group per head."""
    return next((count for count in range(4, num_heads) if num_heads % count == 0), num_heads)
