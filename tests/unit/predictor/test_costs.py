"""How long kernels take: by rates of dtype and shape, by what each goes through, by how many SMs have work."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from devices import device_of, on_device
from torch import Tensor

from ray_memprof.predictor.costs import touched_bytes

SMS = 4
RATES = {
    "num_sms": SMS,
    "launch_ns": 0,
    "memory_bytes_per_s": 1e12,
    "mixed_bytes_per_s": 5e11,
    "product_flops": {"bfloat16": 1e9, "bfloat16_64x512": 2e9, "float16": 3e9, "float32": 1e8},
    "convolution_flops": {"float32": 1e9, "float32_8": 2e9},
    "attention_flops": {"bfloat16": 1e9, "bfloat16_32": 4e9, "float32": 1e8},
}


def took_ns(work: Callable[[], object], **changed: Any) -> int:
    """On the device, of what `work` does with tensors of its own making, which takes no time here."""
    device = device_of(**{**RATES, **changed})
    with on_device(device):
        before = device.stream.free_ns
        made = work()
        assert made is not None
    return device.stream.free_ns - before


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def product(rows: int, inner: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> int:
    return took_ns(lambda: F.linear(empty(rows, inner, dtype=dtype), empty(columns, inner, dtype=dtype)))


def test_a_product_takes_the_rate_of_its_shape_where_it_was_measured() -> None:
    # 128 x 4 rows and 256 columns: four tiles, one for each SM.
    flops = 2 * 512 * 256 * 64
    assert product(512, 64, 256) == flops
    assert product(512, 64, 512) == flops * 2 // 2
    assert product(512, 64, 512, torch.float16) == flops * 2 // 2
    assert product(512, 64, 256, torch.float16) == pytest.approx(flops / 3, abs=1)
    assert product(512, 64, 256, torch.float64) == flops * 10


@pytest.mark.parametrize(("rows", "rounds"), [(128, 1), (512, 1), (513, 2), (1024, 2), (1025, 3)])
def test_the_last_round_of_tiles_takes_as_long_as_a_full_one(rows: int, rounds: int) -> None:
    full = 2 * SMS * 128 * 256 * 64
    tiles = -(-rows // 128)
    assert product(rows, 64, 256) == pytest.approx(
        rounds * full * (2 * rows * 256 * 64) / (tiles * full / SMS)
    )


def test_a_batch_of_products_shares_the_sms() -> None:
    left, right = (lambda: empty(8, 128, 64)), (lambda: empty(8, 64, 256))
    assert took_ns(lambda: torch.bmm(left(), right())) == 2 * 8 * 128 * 64 * 256
    assert took_ns(lambda: torch.baddbmm(empty(8, 128, 256), left(), right())) == 2 * 8 * 128 * 64 * 256


@pytest.mark.parametrize(("width", "rate"), [(16, 1), (32, 4)])
def test_attention_takes_the_rate_of_its_head_width(width: int, rate: int) -> None:
    flops = 4 * 2 * 256 * 128 * width  # two heads of two times 128 queries: four SMs
    query, key = (lambda: empty(1, 2, 256, width)), (lambda: empty(1, 2, 128, width))
    assert took_ns(lambda: F.scaled_dot_product_attention(query(), key(), key())) == flops // rate


def test_a_bias_is_added_to_a_convolution_by_a_kernel_of_its_own() -> None:
    def convolution(channels: int, has_bias: bool) -> int:
        x = lambda: empty(1, 4, 10, 10, dtype=torch.float32)  # noqa: E731 - made inside
        weight = lambda: empty(channels, 4, 3, 3, dtype=torch.float32)  # noqa: E731
        bias = lambda: empty(channels, dtype=torch.float32) if has_bias else None  # noqa: E731
        return took_ns(lambda: F.conv2d(x(), weight(), bias(), padding=1), mixed_bytes_per_s=1e9)

    flops = 2 * 9 * 4 * 16 * 100
    assert convolution(16, False) == flops
    assert convolution(8, False) == flops // 4  # half as many, twice as fast
    assert convolution(16, True) == flops + 2 * 16 * 100 * 4 + 16 * 4


def test_halves_of_either_kind_take_the_rate_of_the_other_before_that_of_fp32() -> None:
    def convolution(dtype: torch.dtype) -> int:
        return took_ns(
            lambda: F.conv2d(empty(1, 4, 10, 10, dtype=dtype), empty(16, 4, 3, 3, dtype=dtype), padding=1),
            convolution_flops={"float32": 1e9, "float16": 2e9},
        )

    assert convolution(torch.bfloat16) == convolution(torch.float16) == convolution(torch.float32) // 2


def test_torch_s_own_kernels_are_slower_where_tensors_differ() -> None:
    wide = torch.float32
    even = took_ns(lambda: empty(1000, 8).add_(empty(1000, 8)), memory_bytes_per_s=1e9, mixed_bytes_per_s=5e8)
    assert even == 3 * 8000 * 2
    for work, num_bytes in (
        (lambda: empty(1000, 8, dtype=wide).add_(empty(1000, 8)), 8000 * (4 + 2 + 4)),
        (lambda: empty(1000, 8).mul_(empty(8)), 8000 * 4 + 16),
        (lambda: empty(8, 1000).t().add_(empty(1000, 8)), 3 * 16000),
        (lambda: empty(1000, 8).to(wide), 8000 * 6),
    ):
        assert took_ns(work, memory_bytes_per_s=1e9, mixed_bytes_per_s=5e8) == 2 * num_bytes
        assert took_ns(work, memory_bytes_per_s=1e9, mixed_bytes_per_s=0.0) == num_bytes


def test_only_what_is_read_and_written_counts() -> None:
    rates = {"memory_bytes_per_s": 1e9, "mixed_bytes_per_s": 1e9}
    assert took_ns(lambda: empty(1000).zero_(), **rates) == 2000
    table = lambda: empty(100_000, 8)  # noqa: E731
    numbers = lambda: torch.empty(5, dtype=torch.int64, device="cuda")  # noqa: E731
    assert took_ns(lambda: F.embedding(numbers(), table()), **rates) == 2 * 5 * 8 * 2
    assert took_ns(lambda: torch.cat([empty(30), empty(70)]), **rates) == 2 * 200
    assert took_ns(lambda: empty(10, dtype=torch.complex64).view(torch.float32), **rates) == 0


def test_an_expanded_dimension_has_the_memory_of_one() -> None:
    assert touched_bytes([torch.empty(3, 1, 5).expand(3, 7, 5)]) == 15 * 4
    assert touched_bytes([torch.empty(())]) == 4
    assert touched_bytes([]) == 0
