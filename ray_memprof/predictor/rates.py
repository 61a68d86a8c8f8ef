"""How fast a device is: products, attention, convolutions, its memory, and copies from the host, each timed.

    stopwatch = Stopwatch(torch.cuda.synchronize)
    rates(stopwatch, device="cuda")        # {"memory_bytes_per_s": 4.1e12, "product_flops": {"bfloat16": ...}, ...}

Sizes are those of a large video model, so that a kernel reaches what it reaches there; tests make them small.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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

    rows: int = 16384
    inner: int = 5120
    columns: int = 13824
    """Products are [rows, inner] x [inner, columns]."""
    heads: int = 40
    tokens: int = 16384
    width: int = 128
    """Attention has so many heads, tokens, and numbers in a head."""
    channels: int = 192
    side: int = 256
    """Convolutions are of 4 frames, side x side, with kernels of 3 x 3 x 3."""
    copied_bytes: int = 2**30


def rates(
    stopwatch: Stopwatch, *, device: str, sizes: Sizes | None = None, has_fp8: bool = False
) -> dict[str, Any]:
    """Rates by the names of the profile's keys: FLOP/s by dtype, bytes/s, and ns that the host takes to launch.

    Args:
        stopwatch: of the device.
        device: as torch names it.
        sizes: how much work; None: as in a large model.
        has_fp8: whether its products in fp8 are timed, too.
    """
    sizes = sizes or Sizes()
    halves = (torch.bfloat16, torch.float16)
    products = {_name(dtype): product(stopwatch, sizes, device, dtype) for dtype in (*halves, torch.float32)}
    if has_fp8:
        products["float8_e4m3fn"] = fp8_product(stopwatch, sizes, device)
    return {
        "memory_bytes_per_s": memory(stopwatch, sizes, device),
        "product_flops": products,
        "convolution_flops": {
            _name(dtype): convolution(stopwatch, sizes, device, dtype)
            for dtype in (torch.float32, torch.float16)
        },
        "attention_flops": {
            _name(dtype): attention(stopwatch, sizes, device, dtype) for dtype in (*halves, torch.float32)
        },
        "page_locked_bytes_per_s": from_host(stopwatch, sizes, device, is_locked=device != "cpu"),
        "pageable_bytes_per_s": from_host(stopwatch, sizes, device, is_locked=False),
        "launch_ns": launch_ns(stopwatch, device),
    }


def product(stopwatch: Stopwatch, sizes: Sizes, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a product of matrices."""
    left, right = (
        _filled(device, dtype, sizes.rows, sizes.inner),
        _filled(device, dtype, sizes.inner, sizes.columns),
    )
    return _product_flops(sizes) / stopwatch.seconds(lambda: left @ right)


def fp8_product(stopwatch: Stopwatch, sizes: Sizes, device: str) -> float:
    """FLOP/s of the same product on the fp8 units."""
    left, right = (
        _filled(device, torch.bfloat16, rows, sizes.inner).to(torch.float8_e4m3fn)
        for rows in (sizes.rows, sizes.columns)
    )
    scale = torch.ones((), device=device)

    def work() -> Tensor:
        result: Tensor = torch._scaled_mm(
            left, right.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16
        )
        return result

    return _product_flops(sizes) / stopwatch.seconds(work)


def attention(stopwatch: Stopwatch, sizes: Sizes, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of attention, by the kernel that torch chooses."""
    query, key, value = (_filled(device, dtype, 1, sizes.heads, sizes.tokens, sizes.width) for _ in range(3))
    flops = 4 * sizes.heads * sizes.tokens**2 * sizes.width
    return flops / stopwatch.seconds(lambda: F.scaled_dot_product_attention(query, key, value))


def convolution(stopwatch: Stopwatch, sizes: Sizes, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a convolution over frames, in channels-last memory."""
    order = torch.channels_last_3d
    video = _filled(device, dtype, 1, sizes.channels, 4, sizes.side, sizes.side).to(memory_format=order)
    kernel = _filled(device, dtype, sizes.channels, sizes.channels, 3, 3, 3).to(memory_format=order)
    flops = 2 * sizes.channels**2 * 27 * 4 * sizes.side**2
    return flops / stopwatch.seconds(lambda: F.conv3d(video, kernel, padding=1))


def memory(stopwatch: Stopwatch, sizes: Sizes, device: str) -> float:
    """Bytes/s of a copy on the device, which reads and writes each of them."""
    source = torch.zeros(sizes.copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * sizes.copied_bytes / stopwatch.seconds(lambda: target.copy_(source))


def from_host(stopwatch: Stopwatch, sizes: Sizes, device: str, *, is_locked: bool) -> float:
    """Bytes/s of a copy from host memory, page-locked or not."""
    source = torch.zeros(sizes.copied_bytes, dtype=torch.uint8, pin_memory=is_locked)
    target = torch.empty(sizes.copied_bytes, dtype=torch.uint8, device=device)
    return sizes.copied_bytes / stopwatch.seconds(lambda: target.copy_(source, non_blocking=is_locked))


def launch_ns(stopwatch: Stopwatch, device: str, times: int = 1000) -> int:
    """What the host takes for an operation, in ns: the device has next to nothing to do."""
    small = torch.zeros(16, device=device)

    def work() -> None:
        for _ in range(times):
            small.add_(1)

    return int(stopwatch.seconds(work) / times * 1e9)


def _product_flops(sizes: Sizes) -> int:
    return 2 * sizes.rows * sizes.inner * sizes.columns


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
