"""How fast a device is: products, attention, convolutions, its memory, and copies from the host, each timed.

    stopwatch = Stopwatch(torch.cuda.synchronize)
    rates(stopwatch, device="cuda")        # {"memory_bytes_per_s": 4.1e12, "product_flops": {"bfloat16": ...}, ...}

Sizes are those of the networks of wan, so that a kernel reaches what it reaches there; tests make them small.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ray_memprof.predictor.operation_kinds import WITHOUT_KERNEL

FP8 = torch.float8_e4m3fn
_NUM_VIEWS = 1000
BUDGET_S = 1.0
"""Each piece of work is repeated for so long, and three times at least."""
_LEAST_TIMES = 3


class Stopwatch:
    """Times work on a device.

    Args:
        synchronize: lets the host wait for the device.
        now_s: the time.
        budget_s: how long one piece of work is repeated.
    """

    def __init__(
        self,
        synchronize: Callable[[], object],
        *,
        now_s: Callable[[], float] = time.perf_counter,
        budget_s: float = BUDGET_S,
    ) -> None:
        self.synchronize, self.now_s, self._budget_s = synchronize, now_s, budget_s

    def seconds(self, work: Callable[[], object]) -> float:
        """The median of the times that `work` takes; the first time, in which kernels are loaded, does not count."""
        work()
        self.synchronize()
        times: list[float] = []
        while sum(times) < self._budget_s or len(times) < _LEAST_TIMES:
            began = self.now_s()
            work()
            self.synchronize()
            times.append(self.now_s() - began)
        return median(times)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much work is timed."""

    rows: int = 32768
    """Of each product."""
    inner: int = 5120
    columns: int = 13824
    """Products are [rows, inner] x [inner, columns], and those of `weights`."""
    weights: tuple[tuple[int, int], ...] = ()
    """Further shapes of weights, inputs and outputs: each has a rate of its own."""
    heads: int = 40
    tokens: int = 32768
    width: int = 128
    """Attention has so many heads, tokens, and numbers in a head."""
    wide_heads: tuple[int, ...] = ()
    """Further widths, of one head in fp32 over a quarter of the tokens: each has a rate of its own."""
    channels: tuple[int, ...] = (192,)
    """Of convolutions, each with a rate of its own; the first is that of all others, too."""
    side: int = 512
    """Convolutions are of one frame, side x side, with kernels of 3 x 3."""
    copied_bytes: int = 2**30
    calls: int = 20
    """Of a block, for what the host takes."""


def sizes_of_wan() -> Sizes:
    """Those of the networks of wan: the layers of the large and the small DiT, the frames of the VAE."""
    from wan.config import TASKS

    networks = [TASKS[name].dit for name in ("t2v-14B", "t2v-1.3B")]
    vae = TASKS["t2v-14B"].vae
    channels = sorted({vae.base_dim * factor for factor in vae.dim_mult})
    return Sizes(
        weights=tuple(
            shape
            for one in networks
            for shape in ((one.dim, one.dim), (one.dim, one.ffn_dim), (one.ffn_dim, one.dim))
        ),
        wide_heads=(channels[-1],),
        channels=tuple(channels),
    )


def rates(
    stopwatch: Stopwatch, *, device: str, sizes: Sizes | None = None, has_fp8: bool = False
) -> dict[str, Any]:
    """Rates by the names of the profile's keys: FLOP/s by dtype and shape, bytes/s, and ns an operation of the host.

    Args:
        stopwatch: of the device.
        device: as torch names it.
        sizes: how much work; None: as in the networks of wan.
        has_fp8: whether its products in fp8 are timed, too.
    """
    sizes = sizes or sizes_of_wan()
    return {
        "memory_bytes_per_s": memory(stopwatch, sizes, device),
        "mixed_bytes_per_s": mixed(stopwatch, sizes, device),
        "product_flops": products(stopwatch, sizes, device, has_fp8=has_fp8),
        "convolution_flops": convolutions(stopwatch, sizes, device),
        "attention_flops": attentions(stopwatch, sizes, device),
        "page_locked_bytes_per_s": from_host(stopwatch, sizes, device, is_locked=device != "cpu"),
        "pageable_bytes_per_s": from_host(stopwatch, sizes, device, is_locked=False),
        **host_ns(stopwatch, device, sizes.calls),
    }


_HALVES = (torch.bfloat16, torch.float16)


def products(stopwatch: Stopwatch, sizes: Sizes, device: str, *, has_fp8: bool) -> dict[str, float]:
    """FLOP/s of products, by dtype, and by dtype and shape."""
    usual = (sizes.inner, sizes.columns)
    found = {
        _name(dtype): product(stopwatch, sizes, device, dtype, usual) for dtype in (*_HALVES, torch.float32)
    }
    if has_fp8:
        found[_name(FP8)] = fp8_product(stopwatch, sizes, device, usual)
    for shape in sizes.weights:
        named = f"{shape[0]}x{shape[1]}"
        found[f"bfloat16_{named}"] = product(stopwatch, sizes, device, torch.bfloat16, shape)
        if has_fp8:
            found[f"{_name(FP8)}_{named}"] = fp8_product(stopwatch, sizes, device, shape)
    return found


def convolutions(stopwatch: Stopwatch, sizes: Sizes, device: str) -> dict[str, float]:
    """FLOP/s of convolutions, by dtype, and by dtype and channels."""
    first = sizes.channels[0]
    found = {
        _name(dtype): convolution(stopwatch, sizes, device, dtype, first)
        for dtype in (torch.float32, torch.float16)
    }
    for channels in sizes.channels:
        found[f"float32_{channels}"] = convolution(stopwatch, sizes, device, torch.float32, channels)
    return found


def attentions(stopwatch: Stopwatch, sizes: Sizes, device: str) -> dict[str, float]:
    """FLOP/s of attention, by dtype, by dtype and width, and by kernels of other packages that are installed."""
    found = {_name(dtype): attention(stopwatch, sizes, device, dtype) for dtype in (*_HALVES, torch.float32)}
    for width in sizes.wide_heads:
        one_head = replace(sizes, heads=1, width=width, tokens=sizes.tokens // 4)
        found[f"float32_{width}"] = attention(stopwatch, one_head, device, torch.float32)
    return found | other_attentions(stopwatch, sizes, device)


def other_attentions(stopwatch: Stopwatch, sizes: Sizes, device: str) -> dict[str, float]:
    """FLOP/s of the attention kernels of other packages that are installed and fit the device."""
    from wan.networks import attention_fp8, attention_kernels

    found: dict[str, float] = {}
    shape = (1, sizes.tokens, sizes.heads, sizes.width)
    for name, kernel in attention_kernels.KERNELS.items():
        if not kernel.package or kernel.misfit(torch.device(device), torch.bfloat16, sizes.width):
            continue
        if kernel.missing():
            continue
        parts = [_filled(device, torch.bfloat16, *shape) for _ in range(3)]
        work: Callable[[], object] = partial(_attend, kernel, parts)
        if name == "fa3_fp8":
            # Without the copies in fp8, which are kernels of wan.
            name = f"fa3_{_name(FP8)}"
            work = partial(attention_kernels._flash_attention_3_fp8, *map(attention_fp8.quantise, parts))
        found[name] = _attention_flops(sizes) / stopwatch.seconds(work)
    return found


def _attend(kernel: Any, parts: list[Tensor]) -> object:
    return kernel.attend([*parts])


def product(
    stopwatch: Stopwatch, sizes: Sizes, device: str, dtype: torch.dtype, shape: tuple[int, int]
) -> float:
    """FLOP/s of a product with a weight of this shape."""
    inner, columns = shape
    left, right = _filled(device, dtype, sizes.rows, inner), _filled(device, dtype, inner, columns)
    return 2 * sizes.rows * inner * columns / stopwatch.seconds(lambda: left @ right)


def fp8_product(stopwatch: Stopwatch, sizes: Sizes, device: str, shape: tuple[int, int]) -> float:
    """FLOP/s of the same product on the fp8 units, with a scale for each row, as wan has them."""
    inner, columns = shape
    left, right = (_filled(device, torch.bfloat16, rows, inner).to(FP8) for rows in (sizes.rows, columns))
    scales = torch.ones(sizes.rows, 1, device=device), torch.ones(1, columns, device=device)

    def work() -> Tensor:
        result: Tensor = torch._scaled_mm(
            left,
            right.t(),
            scale_a=scales[0],
            scale_b=scales[1],
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return result

    return 2 * sizes.rows * inner * columns / stopwatch.seconds(work)


def attention(stopwatch: Stopwatch, sizes: Sizes, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of attention, by the kernel that torch chooses."""
    query, key, value = (_filled(device, dtype, 1, sizes.heads, sizes.tokens, sizes.width) for _ in range(3))
    return _attention_flops(sizes) / stopwatch.seconds(
        lambda: F.scaled_dot_product_attention(query, key, value)
    )


def _attention_flops(sizes: Sizes) -> int:
    return 4 * sizes.heads * sizes.tokens**2 * sizes.width


def convolution(stopwatch: Stopwatch, sizes: Sizes, device: str, dtype: torch.dtype, channels: int) -> float:
    """FLOP/s of a convolution of a frame, in channels-last memory, as the VAE has them."""
    order = torch.channels_last
    frame = _filled(device, dtype, 1, channels, sizes.side, sizes.side).to(memory_format=order)
    kernel = _filled(device, dtype, channels, channels, 3, 3).to(memory_format=order)
    flops = 2 * channels**2 * 9 * sizes.side**2
    return flops / stopwatch.seconds(lambda: F.conv2d(frame, kernel, padding=1))


def memory(stopwatch: Stopwatch, sizes: Sizes, device: str) -> float:
    """Bytes/s of a copy on the device, which reads and writes each of them."""
    source = torch.zeros(sizes.copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * sizes.copied_bytes / stopwatch.seconds(lambda: target.copy_(source))


def mixed(stopwatch: Stopwatch, sizes: Sizes, device: str) -> float:
    """Bytes/s of torch's own kernels on tensors of two dtypes and on tensors of two shapes, one after the other."""
    width = 512
    wide = torch.zeros(sizes.copied_bytes // 4 // width, width, device=device)
    narrow = torch.zeros_like(wide, dtype=torch.bfloat16)
    gate = torch.ones(width, device=device)

    def work() -> None:
        narrow.copy_(wide)
        wide.mul_(gate)

    num_bytes = 3 * wide.nbytes + narrow.nbytes + gate.nbytes
    return num_bytes / stopwatch.seconds(work)


def from_host(stopwatch: Stopwatch, sizes: Sizes, device: str, *, is_locked: bool) -> float:
    """Bytes/s of a copy from host memory, page-locked or not."""
    source = torch.zeros(sizes.copied_bytes, dtype=torch.uint8, pin_memory=is_locked)
    target = torch.empty(sizes.copied_bytes, dtype=torch.uint8, device=device)
    return sizes.copied_bytes / stopwatch.seconds(lambda: target.copy_(source, non_blocking=is_locked))


def host_ns(stopwatch: Stopwatch, device: str, times: int) -> dict[str, int]:
    """What the host takes for an operation of a network, with a kernel and without one (a view), in ns.

    The network is a block of a DiT, so small that the host waits for nothing.
    """
    from wan.config import TASKS
    from wan.levers import Levers
    from wan.networks.dit import Block

    config = TASKS["t2v-tiny"].dit
    tokens, half = 16, config.dim // config.num_heads // 2
    with torch.device(device), torch.no_grad():
        block = Block(config, Levers(fused_kernels=False))
        given = (
            torch.zeros(1, tokens, config.dim),
            torch.zeros(1, 6, config.dim),
            torch.zeros(1, tokens, config.dim),
            torch.ones(tokens, half, dtype=torch.complex128),
        )

    def work() -> None:
        with torch.no_grad():
            for _ in range(times):
                block(*given)

    with _Counted() as counted:  # type: ignore[no-untyped-call]
        work()
    small = torch.zeros(16, device=device)
    view_s = stopwatch.seconds(lambda: [small.view(4, 4) for _ in range(_NUM_VIEWS)]) / _NUM_VIEWS
    launch_s = (stopwatch.seconds(work) - counted.num_views * view_s) / counted.num_kernels
    return {"launch_ns": max(1, int(launch_s * 1e9)), "view_ns": int(view_s * 1e9)}


class _Counted(TorchDispatchMode):
    """Counts the operations of torch that run a kernel, and the others."""

    num_kernels = num_views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_kernels += func not in WITHOUT_KERNEL
        self.num_views += func in WITHOUT_KERNEL
        return func(*args, **(kwargs or {}))


def _filled(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    # Zeros would be faster: the device then takes less power, and slows down less.
    return torch.randn(shape, device=device, dtype=torch.float32).mul_(0.1).to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rounded(value: Any) -> Any:
    """Rates with three digits, as a profile has them."""
    if isinstance(value, Mapping):
        return {name: rounded(one) for name, one in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value
