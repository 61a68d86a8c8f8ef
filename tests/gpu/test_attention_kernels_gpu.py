"""Each attention kernel that is installed against fp64 on the device; those that are not are named as skipped."""

import math

import pytest
import torch
from torch import Tensor

from tests.live_bytes import LiveBytes
from tests.references import exact_attention, relative_error
from wan.levers import AttentionKernel
from wan.networks import attention_fp8
from wan.networks.attention import Attention
from wan.networks.attention_kernels import KERNELS, SDPA, Kernel, choose
from wan.parallel.ring import Merged

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("inference")]

BF16 = torch.bfloat16
# bf16 keeps 8 bits; fp8 keeps 4, of q, k, v and of the weights of the softmax.
TOLERANCE = {"sdpa": 1e-2, "fa3": 1e-2, "fa4": 1e-2, "fa3_fp8": 0.1}


@pytest.fixture(params=list(KERNELS))
def kernel(request: pytest.FixtureRequest) -> Kernel:
    made = KERNELS[request.param]
    reason = made.misfit(torch.device("cuda"), BF16, 128) or made.missing()
    if reason:
        pytest.skip(f"{made.name}: {made.package} {reason}")
    return made


def parts(queries: int, keys: int, heads: int = 3, batch: int = 2, dtype: torch.dtype = BF16) -> list[Tensor]:
    """q, k, v [B, L, N, 128] as slices of wider tensors, as sliced attention passes them; keys have much in common."""
    made = [
        torch.randn(batch, length, heads + 2, 128, device="cuda")[:, :, 1:-1]
        for length in (queries, keys, keys)
    ]
    made[1] += 3 * torch.randn(1, 1, heads, 128, device="cuda")
    return [part.to(dtype) for part in made]


@pytest.mark.parametrize(
    ("queries", "keys"), [(64, 64), (300, 77), (1, 1000), (129, 1), (2000, 2000), (500, 257)]
)
def test_output(kernel: Kernel, queries: int, keys: int) -> None:
    q, k, v = given = parts(queries, keys)
    given = list(given)
    out = kernel.attend(given)
    assert (given, out.dtype, tuple(out.shape)) == ([], BF16, tuple(q.shape))
    assert relative_error(out, exact_attention(q, k, v)[0]) < TOLERANCE[kernel.name]


def test_views_of_wider_tensors(kernel: Kernel) -> None:
    wide = [torch.randn(1, 400, 6 * 128, device="cuda", dtype=BF16).unflatten(-1, (6, -1)) for _ in range(3)]
    q, k, v = (part[:, :, 2:4] for part in wide)
    assert not q.is_contiguous()
    assert relative_error(kernel.attend([q, k, v]), exact_attention(q, k, v)[0]) < TOLERANCE[kernel.name]


def test_tokens_first(kernel: Kernel) -> None:
    """As tokens lie after the exchange of Ulysses: [L, B, N, D] in memory."""
    q, k, v = (torch.randn(300, 2, 3, 128, device="cuda", dtype=BF16).transpose(0, 1) for _ in range(3))
    assert relative_error(kernel.attend([q, k, v]), exact_attention(q, k, v)[0]) < TOLERANCE[kernel.name]


def test_parts_of_the_keys_merge_to_the_whole(kernel: Kernel) -> None:
    q, k, v = parts(300, 700)
    attend = kernel.by_parts(q, k[:, :300])
    merged = Merged(*attend(k[:, :300], v[:, :300]))
    for start, end in ((300, 301), (301, 700)):
        out, lse = attend(k[:, start:end], v[:, start:end])
        assert (lse.dtype, tuple(lse.shape)) == (torch.float32, (*q.shape[:3], 1))
        merged.add(out, lse)
    expected, expected_lse = exact_attention(q, k, v)
    assert relative_error(merged.out, expected) < TOLERANCE[kernel.name]
    shift = merged.lse.double() - expected_lse
    if kernel.name == "fa3_fp8":  # shifted by q . mean, see Kernel.by_parts
        mean = attention_fp8.centre_of(k[:, :300]).double()
        shift += torch.einsum("blnd,bnd->bln", q.double(), mean).unsqueeze(-1) / math.sqrt(128)
    bound = 0.3 if kernel.name == "fa3_fp8" else 2e-2
    assert shift.abs().max() < bound


def test_the_lever_reaches_the_kernel(kernel: Kernel) -> None:
    q, k, v = parts(500, 500)
    assert choose(kernel.name, q.device, BF16, 128) is kernel
    expected = kernel.attend([q, k, v])
    assert torch.equal(Attention(kernel.name).attend([q, k, v]), expected)
    auto = choose("auto", q.device, BF16, 128)
    assert auto.name != "fa3_fp8"
    assert torch.equal(Attention().attend([q, k, v]), auto.attend([q, k, v]))


def test_where_autograd_records_torch_computes(kernel: Kernel) -> None:
    q, k, v = parts(50, 50)
    with torch.enable_grad():
        q.requires_grad_()
        out = Attention(kernel.name).attend([q, k, v])
        out.float().square().mean().backward()
    assert q.grad is not None and q.grad.abs().sum() > 0
    torch.testing.assert_close(out.detach(), SDPA.attend([q.detach(), k, v]), rtol=1e-2, atol=1e-2)


def test_fake_tensors_allocate_as_much(kernel: Kernel) -> None:
    """The peak on the device, its sizes rounded up to 512 bytes, against what fake tensors count."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def peak(name: AttentionKernel) -> int:
        given = [torch.randn(1, 9000, 8, 128, device="cuda", dtype=BF16) for _ in range(3)]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() - sum(part.nbytes for part in given)
        Attention(name).attend(given)
        return torch.cuda.max_memory_allocated() - before

    peak(kernel.name)  # compiles, and makes what stays
    measured = peak(kernel.name)
    with FakeTensorMode(), LiveBytes() as live:
        Attention(kernel.name).attend([torch.empty(1, 9000, 8, 128, dtype=BF16) for _ in range(3)])
    assert abs(measured - live.peak) < 0.01 * live.peak + 32 * 512


# ---- quantising ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 77, 3, 128), (1, 1100, 2, 64), (1, 5, 1, 16), (1, 600, 5, 80)])
@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
@pytest.mark.parametrize("order", ["contiguous", "sliced", "tokens first"])
def test_fused_quantising_is_that_of_plain_torch(
    shape: tuple[int, ...], dtype: torch.dtype, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, tokens, heads, width = shape
    x = torch.randn(batch, tokens, heads + 2, width, device="cuda").to(dtype) * 3 + 1
    x = x[:, :, 1:-1] if order == "sliced" else x[:, :, 1:-1].contiguous()
    if order == "tokens first":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    centre = torch.randn(batch, heads, width, device="cuda")
    fused = [attention_fp8.channels(x), attention_fp8.quantise(x), attention_fp8.quantise(x, centre)]
    monkeypatch.setattr(attention_fp8, "_is_fused", lambda x: False)
    plain = [attention_fp8.channels(x), attention_fp8.quantise(x), attention_fp8.quantise(x, centre)]
    torch.testing.assert_close(fused[0], plain[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(fused[1:], plain[1:], strict=True):
        assert torch.equal(one.scale, other.scale)
        assert torch.equal(one.values.float(), other.values.float())


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("centred", [True, False])
def test_a_head_that_is_not_finite_stays_so_and_spoils_no_other(bad: float, centred: bool) -> None:
    x = torch.randn(2, 700, 3, 128, device="cuda", dtype=BF16)
    x[1, 600, 2, 5] = bad
    made = attention_fp8.quantise_centred(x) if centred else attention_fp8.quantise(x)
    restored = made.values.float() * made.scale[:, None, :, None]
    spoiled = ~torch.isfinite(restored).all(dim=3).all(dim=1)
    assert spoiled.nonzero().tolist() == [[1, 2]]


def test_offsets_beyond_31_bits() -> None:
    """75,600 tokens x 40 heads x 128 are 0.39e9 numbers; six videos are more than 2^31."""
    x = torch.randn(6, 75600, 40, 128, device="cuda", dtype=BF16)
    whole, last = attention_fp8.quantise_centred(x), attention_fp8.quantise_centred(x[5:])
    assert torch.equal(whole.values[5:].view(torch.uint8), last.values.view(torch.uint8))
    torch.testing.assert_close(whole.scale[5:], last.scale)
    back = last.values[:, ::1000].float() * last.scale[:, None, :, None]
    expected = x[5:, ::1000].float() - x[5:].float().mean(1, keepdim=True)
    assert relative_error(back, expected) < 0.04
