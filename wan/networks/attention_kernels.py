"""The kernels that can compute self-attention, which of them fit here, and which one a run takes.

    kernel = choose("auto", torch.device("cuda"), torch.bfloat16, head_dim=128)
    out = kernel.attend([q, k, v])                  # softmax(q k^T / sqrt(D)) v
    part = kernel.by_parts(q, k)                    # for keys that come in parts (ring attention)
    out, lse = part(k, v)

    sdpa       torch's own, see sdpa.py; on every device and in every dtype
    fa3        FlashAttention-3, package fa3-fwd: Hopper
    fa4        FlashAttention-4, package flash-attn-4: Hopper and Blackwell
    fa3_fp8    FlashAttention-3 over q, k and v in fp8, see attention_fp8.py: inexact, and never chosen by auto

The packages have forward passes for inference; where autograd records, torch's own kernel computes.

B batch, L tokens, N heads, D head width; Lq queries, Lk keys. LSE: see sdpa.py.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from wan.errors import InputError
from wan.levers import INEXACT_KERNELS, KERNEL_PRECISIONS, AttentionKernel
from wan.networks import attention_fp8, sdpa
from wan.networks.dtypes import PRECISIONS
from wan.weights.fp8 import FP8

PartAttention = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""k and v [B, Lk, N, D] of a part of the keys -> the output over them [B, Lq, N, D] and its LSE [B, Lq, N, 1] fp32."""

_HOPPER, _BLACKWELL = 9, 10  # the major numbers of their compute capabilities
_MAX_HEAD_DIM = 256


class Kernel:
    """A way to compute attention; this one is torch's own, and fits everywhere."""

    name: AttentionKernel = "sdpa"
    package, version = "", ""
    """What pip installs, an extra of pyproject.toml; empty: nothing."""
    width_step = 8
    """The width of a head must be a multiple of it; torch's own kernel takes any width."""

    def misfit(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        """Why it cannot compute these heads on this device, whatever is installed; empty where it can."""
        return ""

    def missing(self) -> str:
        """Why its package cannot be used; empty where it can."""
        return ""

    def _head_misfit(self, dtype: torch.dtype, head_dim: int, *, most: int = _MAX_HEAD_DIM) -> str:
        precision, taken = PRECISIONS.get(dtype), KERNEL_PRECISIONS[self.name]
        if precision not in taken:
            return f"it computes in {' or '.join(taken)}, not in {precision or dtype}"
        if head_dim % self.width_step or head_dim > most:
            return f"heads are {head_dim} wide, it takes multiples of {self.width_step} up to {most}"
        return ""

    def attend(self, parts: list[Tensor]) -> Tensor:
        """softmax(q k^T / sqrt(D)) v of q [B, Lq, N, D], k and v [B, Lk, N, D] in `parts`, which it empties."""
        q, k, v = parts
        parts.clear()
        return sdpa.attention(q, k, v)

    def by_parts(self, q: Tensor, k: Tensor) -> PartAttention:
        """Attention of q [B, Lq, N, D] to keys that come in parts, `k` [B, Lk, N, D] first.

        The LSEs of the parts may all be shifted by one number for each query and head, which changes no weight among
        the parts.
        """
        return lambda key, value: sdpa.attention_lse(q, key, value)


class FlashAttention3(Kernel):
    """FlashAttention-3, forward only; it writes its output and an LSE [B, N, L] fp32, and allocates no more."""

    name: AttentionKernel = "fa3"
    package, version = "fa3-fwd", "0.0.3"

    def misfit(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        """See Kernel: the wheel's kernels for GPUs before Hopper are not used."""
        wanted = _device_misfit(device, (_HOPPER,), "a Hopper GPU")
        return wanted or self._head_misfit(dtype, head_dim)

    def missing(self) -> str:
        """See Kernel."""
        return _trouble_with("fa3_fwd_interface")

    def attend(self, parts: list[Tensor]) -> Tensor:
        """See Kernel."""
        q, k, v = parts
        parts.clear()
        return _flash_attention_3(q, k, v)[0]

    def by_parts(self, q: Tensor, k: Tensor) -> PartAttention:
        """See Kernel; nothing is shifted."""
        return lambda key, value: _with_lse(*_flash_attention_3(q, key, value))


class FlashAttention3Fp8(FlashAttention3):
    """FlashAttention-3 over fp8 copies of q, k and v, made here; the output is bf16. Inexact."""

    name: AttentionKernel = "fa3_fp8"
    width_step = 16  # bytes of a head that are read at a time

    def attend(self, parts: list[Tensor]) -> Tensor:
        """See Kernel. Each of q, k and v is freed as soon as its copy is made, unless the caller holds it."""
        q = attention_fp8.quantise(parts.pop(0))
        k = attention_fp8.quantise_centred(parts.pop(0))
        v = attention_fp8.quantise(parts.pop())
        return _flash_attention_3_fp8(q, k, v)[0]

    def by_parts(self, q: Tensor, k: Tensor) -> PartAttention:
        """See Kernel. The mean of `k` is taken out of every part, so all parts' LSEs are shifted by the same."""
        queries, centre = attention_fp8.quantise(q), attention_fp8.centre_of(k)

        def attend(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            keys = attention_fp8.quantise(key, centre)
            return _with_lse(*_flash_attention_3_fp8(queries, keys, attention_fp8.quantise(value)))

        return attend


class FlashAttention4(Kernel):
    """FlashAttention-4 (CuTe DSL): compiled when it is first called; allocates its output, and the LSE if asked."""

    name: AttentionKernel = "fa4"
    package, version = "flash-attn-4", "4.0.0b36"

    def misfit(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        """See Kernel: on Blackwell the head width is at most 128."""
        wanted = _device_misfit(device, (_HOPPER, _BLACKWELL), "a Hopper or data-centre Blackwell GPU")
        most = 128 if not wanted and _major(device) == _BLACKWELL else _MAX_HEAD_DIM
        return wanted or self._head_misfit(dtype, head_dim, most=most)

    def missing(self) -> str:
        """See Kernel."""
        return _trouble_with("flash_attn.cute")

    def attend(self, parts: list[Tensor]) -> Tensor:
        """See Kernel."""
        q, k, v = parts
        parts.clear()
        return _flash_attention_4(q, k, v, return_lse=False)[0]

    def by_parts(self, q: Tensor, k: Tensor) -> PartAttention:
        """See Kernel; nothing is shifted."""
        return lambda key, value: _with_lse(*_flash_attention_4(q, key, value, return_lse=True))


SDPA = Kernel()
KERNELS: dict[str, Kernel] = {
    kernel.name: kernel for kernel in (FlashAttention3(), FlashAttention4(), FlashAttention3Fp8(), SDPA)
}
"""By their names; the exact ones in the order in which auto takes them."""


# ---- which kernel --------------------------------------------------------------------------------------------


def choose(
    name: AttentionKernel,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    *,
    spelled: str = "attention_kernel",
) -> Kernel:
    """The kernel that `name`, a value of Levers.attention_kernel, stands for here.

    Under FakeTensorMode it is the kernel of that name, whatever is installed; auto is sdpa there.

    Args:
        name: auto: the fastest exact kernel that is installed and fits.
        device: where q, k and v are.
        dtype: of q, k and v.
        head_dim: the width of a head.
        spelled: how the user spells attention_kernel, for messages.

    Raises:
        InputError: the kernel named does not fit, or is not installed.
    """
    if isinstance(torch.empty(0), FakeTensor):
        return _for_fakes(name, device, dtype, head_dim)
    if name == "auto":
        fitting = (kernel for kernel in _exact() if not kernel.misfit(device, dtype, head_dim))
        return next(kernel for kernel in fitting if not kernel.missing())
    kernel = KERNELS[name]
    if misfit := kernel.misfit(device, dtype, head_dim):
        raise InputError(f"{spelled} {name}: {misfit}", hint=f"{spelled} auto takes what fits")
    if missing := kernel.missing():
        raise InputError(
            f"{spelled} {name}: {kernel.package} {missing}",
            hint=f"pip install {kernel.package}=={kernel.version}; {spelled} auto takes what is there",
        )
    return kernel


def kernel_for(name: AttentionKernel, parts: list[Tensor]) -> Kernel:
    """As choose(), for these q, k and v [B, L, N, D]; torch's own where autograd records what is done with them."""
    q = parts[0]
    if isinstance(q, FakeTensor):
        return _for_fakes(name, q.device, q.dtype, q.shape[-1])
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return SDPA
    return choose(name, q.device, q.dtype, q.shape[-1])


def explain(name: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The kernel of choose() in a few words, and which faster ones fit here but cannot be used, and why."""
    kernel = choose(name, device, dtype, head_dim)
    if name != "auto":
        return kernel.name
    faster = _exact()[: _exact().index(kernel)]
    reasons = [
        f"{other.name} would fit: {other.package} {other.missing()}"
        for other in faster
        if not other.misfit(device, dtype, head_dim)
    ]
    return "; ".join([kernel.name, *reasons])


def _exact() -> list[Kernel]:
    return [kernel for name, kernel in KERNELS.items() if name not in INEXACT_KERNELS]


def _for_fakes(name: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    return SDPA if name == "auto" else KERNELS[name]


# ---- what fits and what is installed ---------------------------------------------------------------------------


def _major(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def _device_misfit(device: torch.device, majors: tuple[int, ...], wanted: str) -> str:
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"it needs {wanted}, the device is {device.type if device.type != 'cuda' else 'not there'}"
    if _major(device) in majors:
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f"it needs {wanted}, this one has compute capability {major}.{minor}"


@cache
def _imported(module: str) -> ModuleType | str:
    """The module, or in words why there is none."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # The package may be there and what it needs not be.
        own = error.name is not None and (module == error.name or module.startswith(f"{error.name}."))
        return "is not installed" if own else f"cannot be imported: {error}"
    except (ImportError, OSError) as error:
        return f"cannot be imported: {str(error).partition(chr(10))[0]}"


def _trouble_with(module: str) -> str:
    found = _imported(module)
    return found if isinstance(found, str) else ""


def _function_of(module: str) -> Any:
    """flash_attn_func, the entry that both packages have under this name."""
    found = _imported(module)
    assert isinstance(found, ModuleType), f"choose() refuses {module} where it {found}"
    return found.flash_attn_func


# ---- calls -------------------------------------------------------------------------------------------------------


def _flash_attention_3(q: Tensor, k: Tensor, v: Tensor, **scales: Tensor) -> tuple[Tensor, Tensor]:
    """Output [B, Lq, N, D], bf16 for fp8 inputs, and LSE [B, N, Lq] fp32."""
    if isinstance(q, FakeTensor):
        wide = torch.bfloat16 if q.dtype == FP8 else q.dtype
        return torch.empty(q.shape, dtype=wide, device=q.device), _fake_lse(q)
    made: tuple[Tensor, Tensor] = _function_of("fa3_fwd_interface")(q, k, v, return_attn_probs=True, **scales)
    return made


def _flash_attention_3_fp8(
    q: attention_fp8.Quantised, k: attention_fp8.Quantised, v: attention_fp8.Quantised
) -> tuple[Tensor, Tensor]:
    return _flash_attention_3(
        q.values, k.values, v.values, q_descale=q.scale, k_descale=k.scale, v_descale=v.scale
    )


def _flash_attention_4(q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool) -> tuple[Tensor, Any]:
    """Output [B, Lq, N, D] and, with `return_lse`, LSE [B, N, Lq] fp32, else None."""
    if isinstance(q, FakeTensor):
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        return out, _fake_lse(q) if return_lse else None
    made: tuple[Tensor, Any] = _function_of("flash_attn.cute")(q, k, v, return_lse=return_lse)
    return made


def _fake_lse(q: Tensor) -> Tensor:
    batch, num_tokens, num_heads, _ = q.shape
    return torch.empty(batch, num_heads, num_tokens, dtype=torch.float32, device=q.device)


def _with_lse(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The LSE [B, N, L] as [B, L, N, 1]."""
    return out, lse.transpose(1, 2).unsqueeze(-1)
