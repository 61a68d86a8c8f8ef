"""Kernels that fake tensors do not know: wan's Triton kernels, and torch's attention and RMSNorm on a GPU.

    with fake_kernels(device): ...

wan's own modules of kernels run as they are, on a Triton that compiles nothing: they allocate what they allocate on a
GPU, and a launch only takes its time. What torch does inside its kernels is written down here.
"""

import importlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_memprof.predictor.costs import Costs, touched_bytes
from ray_memprof.predictor.fake_device import FakeDevice
from ray_memprof.predictor.kernel_source import passes
from wan.levers import AttentionKernel
from wan.networks import attention_kernels, sdpa

MODULES = (
    "wan.networks.extremes",
    "wan.networks.kernels",
    "wan.networks.attention_fp8_kernels",
    "wan.networks.vae.kernels",
)
"""All modules of wan that import Triton, those that others import first."""
_CUDNN_ATTENTION_WORKSPACE_BYTES = 256
_WITH_CUDNN = ((9, 0), (10, 0))
"""Compute capabilities for which torch prefers cuDNN's attention."""
_attention, _rms_norm = F.scaled_dot_product_attention, F.rms_norm
_attention_lse = sdpa.attention_lse
_flash_attention_3 = attention_kernels._flash_attention_3
_flash_attention_4 = attention_kernels._flash_attention_4


@contextmanager
def fake_kernels(device: FakeDevice, packages: Collection[str] = ()) -> Iterator[None]:
    """Let wan's kernels launch nothing, and torch's attention be that of `device`.

    Args:
        device: what they would run on.
        packages: of attention kernels that are installed there: attention_kernel auto takes the fastest that fits.
    """
    with (
        _fake_triton(device),
        patch.object(F, "scaled_dot_product_attention", partial(attention, device)),
        patch.object(F, "rms_norm", rms_norm),
        patch.object(sdpa, "attention_lse", partial(attention_lse, device)),
        patch.object(attention_kernels, "_for_fakes", partial(_kernel_of, packages)),
        patch.object(attention_kernels, "_flash_attention_3", _timed(device, _flash_attention_3, "fa3")),
        patch.object(attention_kernels, "_flash_attention_4", _timed(device, _flash_attention_4, "fa4")),
    ):
        yield


# ---- Triton ------------------------------------------------------------------------------------------------------


@contextmanager
def _fake_triton(device: FakeDevice) -> Iterator[None]:
    """Import wan's modules of kernels with a Triton that compiles nothing; afterwards they are as they were."""
    triton = _triton(device)
    before = {name: sys.modules.pop(name, None) for name in (*triton, *MODULES)}
    try:
        sys.modules.update(triton)
        for name in MODULES:
            importlib.import_module(name)
        # Only while they are imported: torch looks for Triton, too.
        for name in triton:
            _put_back(name, before.pop(name))
        yield
    finally:
        for name, module in before.items():
            _put_back(name, module)


def _put_back(name: str, module: ModuleType | None) -> None:
    """Let a module, or its absence, be what an import finds."""
    package, _, last = name.rpartition(".")
    gone = sys.modules.pop(name, None)
    if module is not None:
        sys.modules[name] = module
        if package:
            setattr(sys.modules[package], last, module)
    elif gone is not None and package in sys.modules:
        vars(sys.modules[package]).pop(last, None)


def _triton(device: FakeDevice) -> dict[str, ModuleType]:
    """What wan's modules use of Triton outside of kernels."""
    triton, language = ModuleType("triton"), ModuleType("triton.language")
    vars(language).update(constexpr=lambda value: value, float32=object(), float64=object())
    vars(triton).update(
        jit=lambda function: _Kernel(device, function),
        cdiv=lambda number, step: -(-number // step),
        next_power_of_2=lambda number: 1 << (number - 1).bit_length(),
        language=language,
    )
    return {"triton": triton, "triton.language": language}


class _Kernel:
    """A kernel that only takes its time: that of the memory traffic which its source tells of."""

    def __init__(self, device: FakeDevice, function: Callable[..., None]) -> None:
        self._device, self._passes = device, passes(function)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *args: Any, **_: Any) -> None:
        # A tensor that stands in for one that is not there is given twice.
        done = {
            (id(one), way): one
            for one, ways in zip(args, self._passes, strict=False)
            if isinstance(one, Tensor)
            for way in ways or {"load"}
        }
        self._device.run(Costs(self._device.profile).traffic_ns(touched_bytes(done.values())))


# ---- torch -------------------------------------------------------------------------------------------------------


def attention(
    device: FakeDevice, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """As F.scaled_dot_product_attention on a GPU: the kernel that torch takes there, with what it allocates.

    In half precision that is cuDNN's on Hopper and data-centre Blackwell GPUs and FlashAttention-2 on others; in fp32,
    torch's memory-efficient one. query [B, N, Lq, D], key and value [B, N, Lk, D] -> [B, N, Lq, D].
    """
    if not query.is_cuda:
        return _attention(query, key, value, *args, **kwargs)
    device.run(Costs(device.profile).attention_ns(query, key))
    batch, num_heads, num_tokens, _ = query.shape
    if query.dtype == torch.float32:
        out = query.new_empty(batch, num_tokens, num_heads, value.shape[-1])
        return out.transpose(1, 2)
    # The state of the generator, although nothing is dropped.
    seed, offset = (torch.empty((), dtype=torch.int64, device=query.device) for _ in range(2))
    out = torch.empty_like(query)  # in the order of the query's dimensions
    if device.profile.capability in _WITH_CUDNN:
        besides = torch.empty(_CUDNN_ATTENTION_WORKSPACE_BYTES, dtype=torch.uint8, device=query.device)
    else:
        besides = query.new_empty(batch, num_heads, num_tokens, dtype=torch.float32)
    del besides, seed, offset
    return out


def attention_lse(device: FakeDevice, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """As wan.networks.sdpa.attention_lse, by which a ring attends to each part of its keys; it takes its time, too."""
    if query.is_cuda:
        device.run(Costs(device.profile).attention_ns(query.transpose(1, 2), key.transpose(1, 2)))
    return _attention_lse(query, key, value)


def _kernel_of(
    packages: Collection[str], name: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int
) -> attention_kernels.Kernel:
    """As attention_kernels.choose() where these packages are installed."""
    if name != "auto":
        return attention_kernels.KERNELS[name]
    return next(
        kernel
        for kernel in attention_kernels._exact()
        if (not kernel.package or kernel.package in packages) and not kernel.misfit(device, dtype, head_dim)
    )


def _timed(device: FakeDevice, kernel: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A kernel of another package: wan makes its results on fake tensors, and here it takes its time.

    Its arguments begin with q [B, Lq, N, D] and k [B, Lk, N, D].
    """

    def call(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        if q.is_cuda:
            device.run(Costs(device.profile).attention_ns(q.transpose(1, 2), k.transpose(1, 2), kernel=name))
        return kernel(q, k, v, **options)

    return call


def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """As F.rms_norm: on a GPU it is one kernel, which also keeps a number for each row."""
    if not x.is_cuda:
        return _rms_norm(x, normalized_shape, weight, eps)
    out = torch.empty_like(x)
    scale_of_rows = torch.empty(x.shape[: -len(normalized_shape)], dtype=torch.float32, device=x.device)
    del scale_of_rows
    return out
