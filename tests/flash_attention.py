"""FlashAttention on the CPU: the entry of fa3-fwd and that of flash-attn-4, by their interfaces, computing in fp64.

with installed("fa3", "fa4"):
    out = attention_kernels.KERNELS["fa3"].attend([q, k, v])
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.references import exact_attention
from wan.networks import attention_fp8, attention_kernels
from wan.weights.fp8 import FP8

MODULES = {"fa3": "fa3_fwd_interface", "fa4": "flash_attn.cute"}


def flash_attn_func_3(
    q: Tensor, k: Tensor, v: Tensor,
    q_descale: Tensor | None = None, k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    return_attn_probs: bool = False,
) -> Any:  # fmt: skip
    """As fa3_fwd_interface.flash_attn_func, and also for fp32."""
    assert all(part.stride(-1) == 1 and part.dtype == q.dtype for part in (q, k, v))
    wide = []
    for part, scale in ((q, q_descale), (k, k_descale), (v, v_descale)):
        if scale is not None:
            assert tuple(scale.shape) == (part.shape[0], part.shape[2]) and scale.dtype == torch.float32
        wide.append(part.double() * (1 if scale is None else scale.double()[:, None, :, None]))
    out, lse = _attention(*wide)
    out = out.to(torch.bfloat16 if q.dtype == FP8 else q.dtype)
    return (out, lse.float()) if return_attn_probs else out


def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output [B, Lq, N, D] and, as both packages return it, LSE [B, N, Lq]."""
    out, lse = exact_attention(q, k, v)
    return out, lse.squeeze(-1).transpose(1, 2)


def flash_attn_func_4(q: Tensor, k: Tensor, v: Tensor, return_lse: bool = False) -> Any:
    """As flash_attn.cute.flash_attn_func, which returns a pair in any case."""
    assert q.dtype == k.dtype == v.dtype
    out, lse = _attention(q, k, v)
    return out.to(q.dtype), lse.float() if return_lse else None


@contextmanager
def installed(*names: str, capability: tuple[int, int] | None = None) -> Iterator[None]:
    """Only these of fa3 and fa4 are installed; with `capability`, torch sees a GPU of it."""
    functions = {"fa3": flash_attn_func_3, "fa4": flash_attn_func_4}
    modules: dict[str, Any] = {"flash_attn": ModuleType("flash_attn")}
    for name, path in MODULES.items():
        module = ModuleType(path)
        module.flash_attn_func = functions[name]  # type: ignore[attr-defined]
        modules[path] = module if name in names else None  # None: import says that there is none
    with ExitStack() as stack:
        # Not mock.patch.dict: it would also take away what torch imports meanwhile.
        for path, module in modules.items():
            stack.callback(_put_back, path, sys.modules.get(path))
            sys.modules[path] = module
        if capability is not None:
            stack.enter_context(mock.patch("torch.cuda.is_available", lambda: True))
            stack.enter_context(
                mock.patch("torch.cuda.get_device_capability", lambda device=None: capability)
            )
        attention_kernels._imported.cache_clear()
        stack.callback(attention_kernels._imported.cache_clear)
        yield


def _put_back(path: str, module: ModuleType | None) -> None:
    if module is None:
        sys.modules.pop(path, None)
    else:
        sys.modules[path] = module


@contextmanager
def without_rounding() -> Iterator[None]:
    """The quantiser keeps every digit: what is left of fa3_fp8 is exact in fp32."""

    def keep(x: Tensor, found: object, centre: Tensor | None) -> attention_fp8.Quantised:
        scale = torch.linspace(0.5, 2, x.shape[0] * x.shape[2]).view(x.shape[0], x.shape[2])
        shifted = x if centre is None else x - centre.unsqueeze(1)
        return attention_fp8.Quantised(shifted / scale[:, None, :, None], scale)

    with mock.patch("wan.networks.attention_fp8._quantise", keep):
        yield
