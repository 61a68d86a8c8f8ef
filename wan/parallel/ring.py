"""Ring attention: keys and values pass from rank to rank, point to point, and are never gathered.

    ring = Ring(ranks=ranks, place=0, peers=[0, 1, 2, 3], lengths=[5, 5, 5, 4], slots=Slots())
    out = ring_attention([q, k, v], ring, kernel)          # of wan/networks/attention_kernels.py

A rank holds the keys and values that it works on and those on their way to it, 2 / ring of all. Each part of the keys
gives an output and the logarithm of its sum of exponentials (LSE), by which the outputs are weighted, in fp32.

B batch, L tokens, n heads, D head width; Lq of this rank, Lk of the part at hand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wan.networks.attention_kernels import Kernel
from wan.parallel.ranks import Ranks

MERGE_TOKENS = 4096
"""Tokens merged at a time: bounds the fp32 copy of a part's output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring:
    """The ranks that keys and values pass through, and the place of this rank among them."""

    ranks: Ranks
    place: int
    peers: Sequence[int]
    """Ranks in order; each sends to the next."""
    lengths: Sequence[int]
    """The number of keys of each rank."""
    slots: "Slots"
    """Memory for keys and values on their way; the same for every layer."""


class Slots:
    """Two places for keys and values: one is read and sent on while the other is filled. Made once a forward pass.

    Memory that NCCL sends point to point is marked as in use on NCCL's stream, and the allocator gives it out again
    only when the host finds that stream done. The host runs several layers ahead, so new buffers for each layer would
    pile up: 14B at 720P over a ring of four reserved 30 GiB for 10 GiB of tensors (H200, torch 2.11).
    """

    def __init__(self) -> None:
        self._places: list[list[Tensor]] = []

    def views(self, number: int, like: Sequence[Tensor], length: int, longest: int) -> list[Tensor]:
        """Place `number` as tensors [B, length, n, D] of the dtypes of `like` [B, Lk, n, D], Lk at most `longest`."""
        batch, _, *rest = like[0].shape
        size = batch * longest * math.prod(rest)
        if not self._places or self._places[0][0].numel() < size:
            self._places = [[part.new_empty(size) for part in like] for _ in range(2)]
        numel = batch * length * math.prod(rest)
        return [place[:numel].view(batch, length, *rest) for place in self._places[number % 2]]

    def drop(self) -> None:
        """Free them: the pass is over."""
        self._places = []


def ring_attention(parts: list[Tensor], ring: Ring, kernel: Kernel) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys of the whole ring.

    Args:
        parts: q [B, Lq, n, D], k and v [B, Lk, n, D] of this rank; emptied, so that k and v are freed at once.
        ring: the ring of this call; all of its ranks make the call at the same time.
        kernel: computes attention to each part of the keys; ranks may differ in it.

    Returns:
        [B, Lq, n, D] in the dtype of q.
    """
    q, *pair = parts
    parts.clear()
    dtype, attend = q.dtype, kernel.by_parts(q, pair[0])
    del q  # the kernel may have made a smaller copy of it
    size, longest = len(ring.peers), max(ring.lengths)
    held = ring.slots.views(0, pair, pair[0].shape[1], longest)
    for place, part in zip(held, pair, strict=True):
        place.copy_(part)
    pair.clear()
    merged: Merged | None = None
    for turn in range(size):
        arriving, under_way = held, None
        if turn + 1 < size:
            # After `turn` turns this rank holds the keys of the rank `turn` places before it; the next ones are those
            # of the rank before that one.
            arriving = ring.slots.views(turn + 1, held, ring.lengths[(ring.place - turn - 1) % size], longest)
            under_way = ring.ranks.rotate(
                held,
                arriving,
                to=ring.peers[(ring.place + 1) % size],
                source=ring.peers[(ring.place - 1) % size],
            )
        out, lse = attend(*held)
        if merged is None:
            merged = Merged(out, lse)
        else:
            merged.add(out, lse)
        del out, lse
        if under_way is not None:
            under_way.wait()
        held = arriving
    assert merged is not None
    return merged.out.to(dtype)


class Merged:
    """The output over the keys seen so far: out [B, L, n, D] and lse [B, L, n, 1], both fp32."""

    def __init__(self, out: Tensor, lse: Tensor) -> None:
        self.out, self.lse = out.float(), lse

    def add(self, out: Tensor, lse: Tensor) -> None:
        """Take in the output over further keys: out [B, L, n, D], lse [B, L, n, 1] fp32."""
        # The share of the new keys in the sum of all exponentials, computed from a difference so that nothing
        # overflows.
        share = torch.sigmoid(lse - self.lse)
        self.lse = torch.logaddexp(self.lse, lse)
        pieces = zip(*(tensor.split(MERGE_TOKENS, dim=1) for tensor in (self.out, out, share)), strict=True)
        for total, new, weight in pieces:
            total.lerp_(new.float(), weight.expand_as(total))
