"""The tokens of a video as stretches of nearly equal length, one per rank: nothing is padded, so nothing is masked.

tokens = SplitTokens(ranks)
mine = tokens.own(patches, dim=1)              # [B, L, C] -> [B, l, C]
patches = tokens.whole(mine)                   # and back, on every rank; with cfg 2, of both passes: [2 B, L, C]

Where each pass of guidance has ranks of its own, the gather that makes a velocity whole brings that of the other pass
too: no further exchange is needed, and no kind of exchange for which NCCL would keep further buffers.
"""

from torch import Tensor

from wan.errors import InputError
from wan.networks.dit import Tokens
from wan.parallel.ranks import Ranks


class SplitTokens(Tokens):
    """Rank r of the n of a pass works on tokens r L / n to (r + 1) L / n of the forward pass under way."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.num_passes = ranks.layout.cfg
        self.lengths: list[int] = []
        """Tokens of each rank of the forward pass under way."""

    def own(self, x: Tensor, dim: int) -> Tensor:
        """This rank's stretch of x along `dim`, in memory of its own."""
        num_tokens, size = x.shape[dim], self._ranks.layout.ranks_a_pass
        place = self._ranks.rank % size
        if num_tokens < size:
            raise InputError(
                f"{num_tokens} tokens cannot be split over {size} ranks",
                hint="use fewer ranks, or a larger size or frame_num",
            )
        bounds = [index * num_tokens // size for index in range(size + 1)]
        self.lengths = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
        if size == 1:
            return x
        # A copy, so that the whole is freed.
        return x.narrow(dim, bounds[place], self.lengths[place]).clone()

    def whole(self, x: Tensor) -> Tensor:
        """x [B, l, C] of all ranks as [B, L, C]; with cfg 2 as [2 B, L, C], the conditional pass first."""
        gathered = self._ranks.all_gather(x.transpose(0, 1), self.lengths * self.num_passes)
        by_pass: Tensor = gathered.unflatten(0, (self.num_passes, -1))
        return by_pass.transpose(1, 2).flatten(0, 1)
