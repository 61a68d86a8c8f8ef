"""Puts the ranks into a built DiT, from outside: its tokens are split and its self-attention goes across ranks.

    dit = on_meta(lambda: WanDit(config), torch.bfloat16)
    split_over(dit, ranks)                         # dit(...) now gives the same result on every rank, each doing a part

Nothing else in the network knows of ranks: every other step is per token, and cross-attention reads a context that
every rank has whole. With cfg 2, each half of the ranks is given the context of its own pass, and every rank gets both
velocities: dit(...) is [2 B, 16, T, H, W] then, the conditional one first.
"""

from typing import cast

from wan.levers import Levers
from wan.networks.attention import Attention
from wan.networks.dit import Block, WanDit
from wan.parallel.ranks import Ranks
from wan.parallel.tokens import SplitTokens
from wan.parallel.ulysses import SplitAttention


def split_over(dit: WanDit, ranks: Ranks) -> WanDit:
    """`dit` with its tokens split, and its passes, as the layout of `ranks` says; unchanged where it splits neither."""
    if not ranks.layout.splits_tokens and ranks.layout.cfg == 1:
        return dit
    dit.tokens = tokens = SplitTokens(ranks)
    if not ranks.layout.splits_tokens:
        return dit
    kernel = _kernel(ranks, tokens, dit.levers)
    for block in dit.execution_order():
        cast(Block, block).self_attn.kernel = kernel
    if isinstance(kernel, SplitAttention):
        # Also after an exception: what the kernel holds would stay on the device until the next pass.
        dit.register_forward_hook(lambda *_: kernel.end_pass(), always_call=True)
    return dit


def _kernel(ranks: Ranks, tokens: SplitTokens, levers: Levers) -> Attention:
    if ranks.layout.backend == "native":
        return SplitAttention(ranks, tokens, levers.attention_kernel)
    from wan.parallel.xfuser_backend import XfuserAttention

    return XfuserAttention(ranks, tokens)
