"""Which kernel a run takes, what it says of it, and what each kernel is given and gives back."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flash_attention import installed, without_rounding
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.live_bytes import LiveBytes
from tests.references import exact_attention, relative_error
from wan.config import TASKS
from wan.errors import InputError
from wan.levers import INEXACT_KERNELS, AttentionKernel, Levers
from wan.networks.attention import Attention
from wan.networks.attention_kernels import KERNELS, SDPA, choose, explain, kernel_for
from wan.networks.dit import CrossAttention

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HOPPER, BLACKWELL, AMPERE = (9, 0), (10, 0), (8, 0)
ROOT = Path(__file__).parents[4]


def parts(dtype: torch.dtype = FP32, width: int = 16, tokens: int = 50) -> list[Tensor]:
    """q, k, v [2, tokens, 3, width] as slices of wider tensors; the keys have much in common."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, tokens, 5, width, generator=generator)[:, :, 1:4] for _ in range(3))
    return [q.to(dtype), (k + 3 * torch.randn(1, 1, 3, width, generator=generator)).to(dtype), v.to(dtype)]


# ---- which kernel ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "capability", "dtype", "expected"),
    [
        ((), HOPPER, BF16, "sdpa"),
        (("fa3",), HOPPER, BF16, "fa3"),
        (("fa4",), HOPPER, BF16, "fa4"),
        (("fa3", "fa4"), HOPPER, BF16, "fa3"),
        (("fa3", "fa4"), HOPPER, FP16, "fa4"),
        (("fa3",), HOPPER, FP16, "sdpa"),
        (("fa3", "fa4"), HOPPER, FP32, "sdpa"),
        (("fa3", "fa4"), BLACKWELL, BF16, "fa4"),
        (("fa3",), BLACKWELL, BF16, "sdpa"),
        (("fa3", "fa4"), AMPERE, BF16, "sdpa"),
        (("fa3", "fa4"), (12, 0), BF16, "sdpa"),
    ],
)
def test_auto_takes_the_fastest_exact_kernel_that_is_there_and_fits(
    there: tuple[str, ...], capability: tuple[int, int], dtype: torch.dtype, expected: str
) -> None:
    with installed(*there, capability=capability):
        assert choose("auto", CUDA, dtype, 128).name == expected


def test_auto_is_torch_on_the_cpu_and_where_no_gpu_is_there() -> None:
    with installed("fa3", "fa4"):
        assert choose("auto", CPU, BF16, 128) is SDPA
        assert choose("auto", CUDA, BF16, 128) is SDPA


@pytest.mark.parametrize(("head_dim", "capability", "expected"), [
    (128, HOPPER, "fa3"), (256, HOPPER, "fa3"), (264, HOPPER, "sdpa"), (60, HOPPER, "sdpa"),
    (128, BLACKWELL, "fa4"), (136, BLACKWELL, "sdpa"),
])  # fmt: skip
def test_auto_takes_what_fits_the_heads(head_dim: int, capability: tuple[int, int], expected: str) -> None:
    with installed("fa3", "fa4", capability=capability):
        assert choose("auto", CUDA, BF16, head_dim).name == expected


def test_auto_never_takes_an_inexact_kernel() -> None:
    assert INEXACT_KERNELS == ("fa3_fp8",)
    with installed("fa3", capability=HOPPER):
        assert choose("fa3_fp8", CUDA, BF16, 128).name == "fa3_fp8"
        assert choose("auto", CUDA, BF16, 128).name == "fa3"


@pytest.mark.parametrize(
    ("name", "device", "capability", "dtype", "head_dim", "message"),
    [
        ("fa3", CPU, HOPPER, BF16, 128, "it needs a Hopper GPU, the device is cpu"),
        ("fa3", CUDA, None, BF16, 128, "it needs a Hopper GPU, the device is not there"),
        ("fa3", CUDA, BLACKWELL, BF16, 128, "it needs a Hopper GPU, this one has compute capability 10.0"),
        ("fa4", CUDA, (8, 9), BF16, 128,
         "it needs a Hopper or data-centre Blackwell GPU, this one has compute capability 8.9"),
        ("fa3", CUDA, HOPPER, FP16, 128, "it computes in bf16, not in fp16"),
        ("fa3_fp8", CUDA, HOPPER, FP32, 128, "it computes in bf16, not in fp32"),
        ("fa4", CUDA, HOPPER, FP32, 128, "it computes in bf16 or fp16, not in fp32"),
        ("fa3", CUDA, HOPPER, BF16, 264, "heads are 264 wide, it takes multiples of 8 up to 256"),
        ("fa3_fp8", CUDA, HOPPER, BF16, 24, "heads are 24 wide, it takes multiples of 16 up to 256"),
        ("fa4", CUDA, BLACKWELL, BF16, 256, "heads are 256 wide, it takes multiples of 8 up to 128"),
    ],
)  # fmt: skip
def test_a_kernel_that_does_not_fit_is_refused_in_the_words_of_the_user(
    name: AttentionKernel, device: torch.device, capability: tuple[int, int] | None, dtype: torch.dtype,
    head_dim: int, message: str,
) -> None:  # fmt: skip
    with installed("fa3", "fa4", capability=capability), pytest.raises(InputError) as raised:
        choose(name, device, dtype, head_dim, spelled="--attention_kernel")
    assert str(raised.value) == f"--attention_kernel {name}: {message}"
    assert raised.value.hint == "--attention_kernel auto takes what fits"


@pytest.mark.parametrize(
    ("name", "package"),
    [("fa3", "fa3-fwd==0.0.3"), ("fa3_fp8", "fa3-fwd==0.0.3"), ("fa4", "flash-attn-4==4.0.0b36")],
)
def test_a_kernel_that_is_not_installed_says_how_to_install_it(name: AttentionKernel, package: str) -> None:
    with installed(capability=HOPPER), pytest.raises(InputError) as raised:
        choose(name, CUDA, BF16, 128, spelled="optimization.attention_kernel")
    words = f"optimization.attention_kernel {name}: {package.partition('=')[0]} is not installed"
    assert (str(raised.value), raised.value.exit_code) == (words, 2)
    assert raised.value.hint == (
        f"pip install {package}; optimization.attention_kernel auto takes what is there"
    )
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras[name.partition("_")[0]] == [package]


def test_a_package_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "cute.py").write_text("import a_compiler_that_is_not_there\n")
    with installed("fa3", capability=HOPPER):
        for name in ("flash_attn", "flash_attn.cute"):
            monkeypatch.delitem(torch.sys.modules, name)
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(InputError) as raised:
            choose("fa4", CUDA, BF16, 128)
    assert str(raised.value) == (
        "attention_kernel fa4: flash-attn-4 cannot be imported: No module named 'a_compiler_that_is_not_there'"
    )


@pytest.mark.parametrize(
    ("there", "name", "capability", "expected"),
    [
        (("fa3",), "auto", HOPPER, "fa3"),
        (("fa3",), "fa3_fp8", HOPPER, "fa3_fp8"),
        ((), "sdpa", HOPPER, "sdpa"),
        (("fa4",), "auto", HOPPER, "fa4; fa3 would fit: fa3-fwd is not installed"),
        (
            (), "auto", HOPPER,
            "sdpa; fa3 would fit: fa3-fwd is not installed; fa4 would fit: flash-attn-4 is not installed",
        ),
        ((), "auto", AMPERE, "sdpa"),
    ],
)  # fmt: skip
def test_the_log_says_which_kernel_and_what_would_be_faster(
    there: tuple[str, ...], name: AttentionKernel, capability: tuple[int, int], expected: str
) -> None:
    with installed(*there, capability=capability):
        assert explain(name, CUDA, BF16, 128) == expected


def test_where_autograd_records_torch_computes() -> None:
    q, k, v = parts()
    with installed("fa3", capability=HOPPER):
        assert kernel_for("fa3", [q, k, v.clone().requires_grad_()]) is SDPA
        with torch.no_grad(), pytest.raises(InputError):
            kernel_for("fa3", [q, k, v.clone().requires_grad_()])


def test_the_levers_that_change_the_result_are_named() -> None:
    assert Levers().inexact == ()
    assert Levers(attention_kernel="fa3").inexact == ()
    assert Levers(attention_kernel="fa3_fp8").inexact == ("attention_kernel fa3_fp8",)
    both = Levers(attention_kernel="fa3_fp8", vae_dtype="bf16")
    assert both.inexact == ("attention_kernel fa3_fp8", "vae_dtype bf16")


# ---- what they compute -------------------------------------------------------------------------------------------


@pytest.fixture
def packages() -> Iterator[None]:
    with installed("fa3", "fa4"):
        yield


@pytest.mark.parametrize("name", ["sdpa", "fa3", "fa4"])
def test_an_exact_kernel_is_attention_and_empties_what_it_is_given(name: str, packages: None) -> None:
    q, k, v = given = parts()
    out = KERNELS[name].attend(given)
    assert given == []
    torch.testing.assert_close(out.double(), exact_attention(q, k, v)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sdpa", "fa3", "fa4"])
def test_an_exact_kernel_tells_the_lse_of_a_part(name: str, packages: None) -> None:
    q, k, v = parts()
    attend = KERNELS[name].by_parts(q, k[:, :20])
    out, lse = attend(k[:, 20:], v[:, 20:])
    expected, expected_lse = exact_attention(q, k[:, 20:], v[:, 20:])
    assert lse.dtype == FP32
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=1e-5)


def test_fp8_is_near_what_it_stands_for_though_keys_have_much_in_common(packages: None) -> None:
    q, k, v = given = parts(BF16, width=64, tokens=300)
    out = KERNELS["fa3_fp8"].attend(given)
    assert given == [] and out.dtype == BF16
    assert 1e-3 < relative_error(out, exact_attention(q, k, v)[0]) < 0.06


def test_taking_the_mean_out_of_the_keys_changes_nothing_but_rounding(packages: None) -> None:
    q, k, v = given = parts()
    with without_rounding():
        out = KERNELS["fa3_fp8"].attend(given)
    torch.testing.assert_close(out.double(), exact_attention(q, k, v)[0], rtol=0, atol=1e-5)


def test_every_part_has_its_lse_shifted_by_the_same(packages: None) -> None:
    q, k, v = parts()
    with without_rounding():
        attend = KERNELS["fa3_fp8"].by_parts(q, k[:, :20])
        shifts = []
        for part in (slice(0, 20), slice(20, 23), slice(23, None)):
            out, lse = attend(k[:, part], v[:, part])
            expected, expected_lse = exact_attention(q, k[:, part], v[:, part])
            torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
            shifts.append(lse.double() - expected_lse)
    assert shifts[0].abs().max() > 1, "the mean is large, so there is something to agree on"
    for shift in shifts[1:]:
        torch.testing.assert_close(shift, shifts[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_cross_attention_stays_with_torch() -> None:
    config = TASKS["i2v-tiny"].dit
    by_torch, other = (
        CrossAttention(config, Levers(attention_kernel=name)) for name in ("sdpa", "fa4")
    )  # fa4 runs on no CPU
    other.load_state_dict(by_torch.state_dict())
    x, context = torch.randn(1, 9, config.dim), torch.randn(1, config.image_len + 7, config.dim)
    assert torch.equal(other(x, other.keys_values(context)), by_torch(x, by_torch.keys_values(context)))


# ---- what they allocate ------------------------------------------------------------------------------------------


def fake_peak(name: AttentionKernel, tokens: int, heads: int, width: int) -> int:
    """Bytes at the peak of one attention over bf16 fake tensors that only `attend` holds, in bytes of one of them."""
    with FakeTensorMode(), LiveBytes() as live:
        given = [torch.empty(1, tokens, heads, width, dtype=BF16) for _ in range(3)]
        out = Attention(name).attend(given)
        assert (tuple(out.shape), out.dtype) == ((1, tokens, heads, width), BF16)
        assert live.current == out.nbytes, "nothing but the output is left"
    return live.peak


def fake_part_peak(name: str, tokens: int, heads: int, width: int) -> int:
    """Bytes at the peak of attention to a part of the keys, above bf16 fake tensors that the caller holds."""
    with FakeTensorMode(), torch.no_grad():
        q, k, v = (torch.empty(2, tokens, heads, width, dtype=BF16) for _ in range(3))
        attend = KERNELS[name].by_parts(q, k)
        part = slice(0, tokens // 2)
        with LiveBytes(q, k, v) as live:
            out, lse = attend(k[:, part], v[:, part])
            assert (tuple(out.shape), out.dtype) == ((2, tokens, heads, width), BF16)
            assert (tuple(lse.shape), lse.dtype) == ((2, tokens, heads, 1), FP32)
            assert live.current == out.nbytes + lse.nbytes, "nothing but what is returned is left"
    return live.peak


def test_fake_tensors_allocate_what_the_kernels_would_for_a_part_of_the_keys() -> None:
    tokens, heads, width = 9000, 8, 128
    one, lse = 2 * 2 * tokens * heads * width, 4 * 2 * tokens * heads
    with installed():  # of what is installed nothing is asked
        for name in ("sdpa", "fa3", "fa4"):
            assert fake_part_peak(name, tokens, heads, width) == one + lse, name
        # Copies of k and v, half as many keys and half the bytes of each, with their scales.
        copies = one // 2
        assert (
            one + lse + copies < fake_part_peak("fa3_fp8", tokens, heads, width) < (one + lse + copies) * 1.01
        )


def test_fake_tensors_allocate_what_the_kernels_would() -> None:
    tokens, heads, width = 75600, 40, 128
    one, lse = 2 * tokens * heads * width, 4 * tokens * heads
    with installed():  # of what is installed nothing is asked
        assert fake_peak("sdpa", tokens, heads, width) == fake_peak("auto", tokens, heads, width) == 4 * one
        assert fake_peak("fa4", tokens, heads, width) == 4 * one
        assert fake_peak("fa3", tokens, heads, width) == 4 * one + lse
        # q, k, v and a copy of half the bytes; a few MB of ranges beside it. Then the copies and the output.
        assert 3.5 * one <= fake_peak("fa3_fp8", tokens, heads, width) < 3.53 * one
