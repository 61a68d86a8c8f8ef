"""Self-attention of tokens that lie on several ranks: Ulysses within groups, a ring across them, or either alone.

    kernel = SplitAttention(ranks, tokens, "auto")
    block.self_attn.kernel = kernel                # what wan/parallel/apply.py does for every block

Ulysses: the ranks of a group exchange heads for tokens. Each rank then holds all tokens of the group for its share of
the heads, computes attention, and exchanges tokens for heads again. A layer makes four all_to_all, for q, k, v and the
output; those of q and k run while the next tensor is computed.

Where the ring has more than one rank, a rank then holds one of `ring` parts of the tokens, and ring.py passes the keys
and values of the other parts to it in turn.

B batch, L tokens of the group, l of this rank, N heads, n = N / ulysses of this rank, D head width.
"""

from collections.abc import Sequence

from torch import Tensor

from wan.levers import AttentionKernel
from wan.networks.attention import Attention
from wan.parallel.ranks import Pending, Ranks
from wan.parallel.ring import Ring, Slots, ring_attention
from wan.parallel.tokens import SplitTokens


class SplitAttention(Attention):
    """Takes the place of wan.networks.attention.Attention in every self-attention of a DiT.

    Args:
        ranks: whose layout says how many ranks are in a Ulysses group and in a ring.
        tokens: how the tokens of the pass under way are split.
        kernel: a value of Levers.attention_kernel.
    """

    def __init__(self, ranks: Ranks, tokens: SplitTokens, kernel: AttentionKernel) -> None:
        super().__init__(kernel)
        layout = ranks.layout
        self.head_ranks = layout.ulysses
        self._ranks, self._tokens = ranks, tokens
        self._place, self._group, index = layout.coordinates(ranks.rank)
        self._first_rank = index * layout.ranks_a_pass
        """The first rank of the pass that this rank works on."""
        first = self._group * layout.ulysses
        self._members = range(first, first + layout.ulysses)
        """The ranks of the Ulysses group, counted from the first one of the pass."""
        self._under_way: Pending | None = None
        self._slots = Slots()

    def end_pass(self) -> None:
        """Keep nothing of the forward pass, whether it came to its end or an exception ended it."""
        # Do not wait for it: after a failure the other ranks may never send.
        self._under_way = None
        self._slots.drop()

    def to_heads(self, x: Tensor) -> Tensor:
        """x [B, l, N, D] -> [B, L, n, D], to be read only by attend(); waits for the exchange before this one."""
        if self.head_ranks == 1:
            return x
        self._wait()
        # Tokens are the first dimension, so that the parts of the ranks follow one another as they arrive.
        send = x.unflatten(2, (self.head_ranks, -1)).permute(2, 1, 0, 3, 4).contiguous()
        del x
        lengths = self._lengths()
        own = [lengths[self._place]] * self.head_ranks
        out, self._under_way = self._ranks.exchange(
            send.flatten(0, 1), self._peers(self._members), sent=own, received=lengths
        )
        return out.transpose(0, 1)

    def attend(self, parts: list[Tensor]) -> Tensor:
        """softmax(q k^T / sqrt(D)) v for q, k, v of to_heads(); empties `parts`; returns [B, L, n, D]."""
        self._wait()
        if self._ranks.layout.ring == 1:
            return super().attend(parts)
        return ring_attention(parts, self._ring(), self.kernel(parts))

    def to_tokens(self, x: Tensor) -> Tensor:
        """x [B, L, n, D] -> [B, l, N, D]."""
        if self.head_ranks == 1:
            return x
        lengths = self._lengths()
        own = [lengths[self._place]] * self.head_ranks
        send = x.transpose(0, 1).contiguous()
        del x
        out, pending = self._ranks.exchange(send, self._peers(self._members), sent=lengths, received=own)
        del send
        pending.wait()
        by_rank: Tensor = out.unflatten(0, (self.head_ranks, -1))
        return by_rank.permute(2, 1, 0, 3, 4).flatten(2, 3)

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None

    def _peers(self, places: Sequence[int]) -> list[int]:
        """Ranks of the pass by their numbers among all ranks."""
        return [self._first_rank + place for place in places]

    def _lengths(self) -> list[int]:
        """Tokens of each member of the group."""
        return self._tokens.lengths[self._members.start : self._members.stop]

    def _ring(self) -> Ring:
        ulysses, size = self._ranks.layout.ulysses, self._ranks.layout.ring
        lengths = self._tokens.lengths
        return Ring(
            ranks=self._ranks,
            place=self._group,
            peers=self._peers(range(self._place, size * ulysses, ulysses)),
            lengths=[sum(lengths[index * ulysses : (index + 1) * ulysses]) for index in range(size)],
            slots=self._slots,
        )
