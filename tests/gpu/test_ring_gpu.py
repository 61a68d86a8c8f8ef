"""Ring attention's kernels on the device: what each says of the sum of its exponentials, against fp64."""

import pytest
import torch
from torch import Tensor

from tests.references import exact_attention
from wan.networks.sdpa import attention_lse
from wan.parallel import ring
from wan.parallel.ring import Merged

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("inference")]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEADS, WIDTH = 3, 128


def parts(num_queries: int, num_keys: int, dtype: torch.dtype) -> list[Tensor]:
    """q [1, Lq, n, D], k and v [1, Lk, n, D]; scores of up to some 20, so that the LSE is no constant."""
    made = [
        torch.randn(1, length, HEADS, WIDTH, device="cuda") for length in (num_queries, num_keys, num_keys)
    ]
    return [(2 * made[0]).to(dtype), made[1].to(dtype), made[2].to(dtype)]


def check(q: Tensor, k: Tensor, v: Tensor) -> None:
    out, lse = attention_lse(q, k, v)
    expected_out, expected_lse = exact_attention(q, k, v)
    assert (out.dtype, lse.dtype) == (q.dtype, torch.float32)
    # fp32 products may run as TF32: ten bits.
    tolerance = {torch.float32: 5e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}[q.dtype]
    torch.testing.assert_close(out.double(), expected_out, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(64, 64), (300, 77), (1, 1000), (129, 1)])
def test_output_and_lse(dtype: torch.dtype, num_queries: int, num_keys: int) -> None:
    check(*parts(num_queries, num_keys, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_for_older_gpus(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    check(*parts(300, 77, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_for_ampere(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    check(*parts(300, 77, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_merge_to_the_whole(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "MERGE_TOKENS", 100)
    q, k, v = parts(300, 230, dtype)
    merged = Merged(*attention_lse(q, k[:, :100], v[:, :100]))
    for start, end in ((100, 101), (101, 230)):
        merged.add(*attention_lse(q, k[:, start:end], v[:, start:end]))
    expected, lse = exact_attention(q, k, v)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 5e-3
    torch.testing.assert_close(merged.out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(merged.lse.double(), lse, rtol=0, atol=2e-2)
