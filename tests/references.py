"""What results are held against: attention by its formula in fp64, and how far a tensor is from another."""

import math

import torch
from torch import Tensor


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output [B, Lq, N, D] and LSE [B, Lq, N, 1] of q [B, Lq, N, D], k and v [B, Lk, N, D], in fp64."""
    scores = torch.einsum("blnd,bsnd->blns", q.double(), k.double()) / math.sqrt(q.shape[-1])
    return torch.einsum("blns,bsnd->blnd", scores.softmax(-1), v.double()), scores.logsumexp(-1, keepdim=True)


def relative_error(given: Tensor, reference: Tensor) -> float:
    """|given - reference| / |reference|."""
    return float((given.double() - reference.double()).norm() / reference.double().norm())
