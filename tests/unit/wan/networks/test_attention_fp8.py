"""q, k and v in fp8: what a value and a scale stand for, and what is taken out of the keys."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.live_bytes import LiveBytes
from tests.references import relative_error
from wan.networks.attention_fp8 import (
    Quantised,
    centre_of,
    channels,
    quantise,
    quantise_centred,
)
from wan.weights.fp8 import FP8, LARGEST


def restored(made: Quantised) -> Tensor:
    return made.values.float() * made.scale[:, None, :, None]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def test_a_head_of_zeros_stays_zero() -> None:
    made = quantise(torch.zeros(1, 4, 2, 16))
    assert torch.equal(restored(made), torch.zeros(1, 4, 2, 16))
    assert torch.isfinite(made.scale.reciprocal()).all()
    constant = quantise_centred(torch.full((1, 4, 2, 16), 3.0))
    assert torch.equal(restored(constant), torch.zeros(1, 4, 2, 16))


def test_each_head_of_each_video_has_a_scale_of_its_own() -> None:
    x = noise(2, 9, 3, 16) * torch.tensor([1e-20, 1.0, 1e20]).view(1, 1, 3, 1)
    x[1] *= 7
    made = quantise(x)
    assert (made.values.dtype, tuple(made.values.shape), made.values.is_contiguous()) == (
        FP8,
        (2, 9, 3, 16),
        True,
    )
    torch.testing.assert_close(made.scale, x.abs().amax((1, 3)) / LARGEST)
    # Four significant digits: half a unit of the last is 1/16 of the number, or 2^-10 of the scale below 2^-6.
    bound = x.abs() / 16 + made.scale[:, None, :, None] * 2**-9
    assert ((restored(made) - x).abs() <= bound).all()
    assert made.values.float().abs().amax((1, 3)).eq(LARGEST).all(), "the whole range is used"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_mean_over_the_tokens_is_taken_out_of_the_keys(dtype: torch.dtype) -> None:
    x = (noise(2, 50, 3, 16) + 40 * noise(2, 1, 3, 16)).to(dtype)
    made = quantise_centred(x)
    centred = x.float() - x.float().mean(1, keepdim=True)
    assert relative_error(restored(made), centred) < 0.04
    torch.testing.assert_close(made.scale, centred.abs().amax((1, 3)) / LARGEST)
    torch.testing.assert_close(centre_of(x), x.float().mean(1))


def test_a_given_centre_is_taken_out_whatever_the_mean_is() -> None:
    x, centre = noise(1, 20, 2, 16), 100 * noise(1, 2, 16)
    made = quantise(x, centre)
    shifted = x - centre.unsqueeze(1)
    torch.testing.assert_close(made.scale, shifted.abs().amax((1, 3)) / LARGEST)
    assert relative_error(restored(made), shifted) < 0.04


def test_channels_have_a_mean_a_lowest_and_a_highest_value() -> None:
    x = noise(2, 9, 3, 16)
    assert all(
        torch.equal(*pair) for pair in zip(channels(x), (x.mean(1), x.amin(1), x.amax(1)), strict=True)
    )


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("centred", [True, False])
def test_a_head_that_is_not_finite_stays_so_and_spoils_no_other(bad: float, centred: bool) -> None:
    x = noise(2, 9, 3, 16)
    x[1, 4, 2, 5] = bad
    made = quantise_centred(x) if centred else quantise(x)
    spoiled = ~torch.isfinite(restored(made)).all(dim=3).all(dim=1)
    assert spoiled.nonzero().tolist() == [[1, 2]]


def test_fake_tensors_allocate_the_copy_and_the_ranges_only() -> None:
    shape = (1, 75600, 40, 128)
    with FakeTensorMode():
        x = torch.empty(shape, dtype=torch.bfloat16)
        with LiveBytes(x) as live:
            made = quantise_centred(x)
    assert (made.values.dtype, tuple(made.values.shape), tuple(made.scale.shape)) == (FP8, shape, (1, 40))
    copy = x.numel()
    assert copy < live.peak < 1.03 * copy
