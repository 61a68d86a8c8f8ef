"""xfuser's attention across ranks (USP), for comparison: `parallel.backend: xfuser`, `--sp_backend xfuser`.

    kernel = XfuserAttention(ranks, tokens)        # needs CUDA, xfuser 0.7.0 and yunchang 0.6.4

CUDA only: importing xfuser needs a device, so nothing of it is imported before it is asked for. It makes about ten
process groups, which cost several GiB of device memory in all (NCCL, H200), and wants equal numbers of tokens on all
ranks. Its xFuserLongContextAttention cannot be built in xfuser 0.5.0 - 0.7.0 with any released yunchang (0.6.0 -
0.6.4); USP, which is used here, does not need it.
"""

from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from wan.errors import InputError
from wan.networks.attention import Attention
from wan.parallel.ranks import Ranks
from wan.parallel.tokens import SplitTokens

_HINT = (
    "pip install xfuser==0.7.0 yunchang==0.6.4, the pair that is known to work, on a machine with CUDA, "
    "or use the native backend"
)


class XfuserAttention(Attention):
    """Hands q, k and v to xfuser as they are: xfuser exchanges heads and passes keys and values itself."""

    def __init__(self, ranks: Ranks, tokens: SplitTokens) -> None:
        super().__init__()
        # Heads are handed over in groups that xfuser can split.
        self.head_ranks = ranks.layout.ulysses
        self._tokens = tokens
        self._attend = _usp(ranks)

    def attend(self, parts: list[Tensor]) -> Tensor:
        """As Attention.attend, over the tokens of all ranks: q, k, v [B, l, N, D] -> [B, l, N, D]."""
        lengths = self._tokens.lengths
        if len(set(lengths)) > 1:
            raise InputError(
                f"xfuser needs equal numbers of tokens per rank, {sum(lengths)} do not divide by {len(lengths)} ranks",
                hint="use the native backend, which takes any number",
            )
        q, k, v = (part.transpose(1, 2) for part in parts)
        parts.clear()
        return self._attend(q, k, v).transpose(1, 2)


def _usp(ranks: Ranks) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """xfuser's USP, its groups made and its kernel chosen."""
    found = _installed()
    if not torch.cuda.is_available():
        raise InputError("the xfuser backend needs CUDA, torch sees none", hint=_HINT)
    layout = ranks.layout
    return _set_up(found, ranks.rank, ranks.size, ranks.device.index or 0, layout.ulysses, layout.ring)


# Once per process, whatever the number of networks: xfuser refuses to make its groups again.
@cache
def _set_up(
    found: str, rank: int, size: int, local_rank: int, ulysses: int, ring: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    try:
        # The first import is private, and torch moves it now and then; the others need packages that fit together. Both
        # kinds fail with an ImportError. Without a device xfuser would fail with other errors, but _usp() has already
        # refused that case.
        from torch.distributed.tensor.experimental._attention import set_rotate_method
        from xfuser.config import xFuserArgs
        from xfuser.core.distributed import (
            init_distributed_environment,
            initialize_model_parallel,
            runtime_state,
        )
        from xfuser.model_executor.layers.usp import USP
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"the xfuser backend cannot be imported ({found}): {reason}", hint=_HINT) from error
    init_distributed_environment(rank=rank, world_size=size, local_rank=local_rank)
    initialize_model_parallel(sequence_parallel_degree=size, ulysses_degree=ulysses, ring_degree=ring)
    # xfuser's state for use outside xDiT assumes one rank, and refuses to be made where there are more: give it the
    # degrees.
    config, _ = xFuserArgs(ulysses_degree=ulysses, ring_degree=ring).create_config()
    state = object.__new__(runtime_state.ExternalRuntimeState)
    runtime_state.RuntimeState.__init__(state, config)
    state.set_attention_backend("CUDNN")
    runtime_state._RUNTIME = state
    # torch's default gathers all keys and values on every rank.
    set_rotate_method("alltoall")
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = USP
    return attend


def _installed() -> str:
    """Versions, for messages. Raises InputError where a package is missing."""
    versions = []
    for name in ("xfuser", "yunchang"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError as error:
            raise InputError(
                f"the xfuser backend needs {name}, which is not installed", hint=_HINT
            ) from error
    return ", ".join([*versions, f"torch {torch.__version__}"])
