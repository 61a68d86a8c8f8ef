"""The tokens of a video as stretches of nearly equal length, one per rank: nothing is padded, so nothing is masked.

tokens = SplitTokens(ranks)
mine = tokens.own(patches, dim=1)              # [B, L, C] -> [B, l, C]
patches = tokens.whole(mine)                   # and back, on every rank
"""

from torch import Tensor

from wan.errors import InputError
from wan.networks.dit import Tokens
from wan.parallel.ranks import Ranks


class SplitTokens(Tokens):
    """Rank r of n works on tokens r L / n to (r + 1) L / n of the forward pass under way."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.lengths: list[int] = []
        """Tokens of each rank in this forward pass."""

    def own(self, x: Tensor, dim: int) -> Tensor:
        """This rank's stretch of x along `dim`, in memory of its own."""
        num_tokens, size, rank = x.shape[dim], self._ranks.size, self._ranks.rank
        if num_tokens < size:
            raise InputError(
                f"{num_tokens} tokens cannot be split over {size} ranks",
                hint="use fewer ranks, or a larger size or frame_num",
            )
        bounds = [index * num_tokens // size for index in range(size + 1)]
        self.lengths = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
        # A copy, so that the whole is freed.
        return x.narrow(dim, bounds[rank], self.lengths[rank]).clone()

    def whole(self, x: Tensor) -> Tensor:
        """x [B, l, C] of all ranks as [B, L, C]."""
        return self._ranks.all_gather(x.transpose(0, 1), self.lengths).transpose(0, 1)
