"""wan.inputs.conditioning against formulae written again here."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wan.errors import InputError
from wan.inputs import conditioning
from wan.inputs.conditioning import (
    VaceInputs,
    first_frame_mask,
    fit_last_frame,
    flf2v_latents,
    i2v_latents,
    i2v_size,
    letterbox,
    vace_inputs,
    vace_latents,
    vace_size,
)


class FakeVae:
    """Latents of the right shape that tell what was encoded: channel c is (c + 1) times the pooled video."""

    def __init__(self) -> None:
        self.videos: list[Tensor] = []

    def __call__(self, video: Tensor) -> Tensor:
        self.videos.append(video)
        assert video.dtype == torch.float32
        assert video.device.type in ("cpu", "meta")
        channels, frames, height, width = video.shape
        assert (channels, frames % 4, height % 16, width % 16) == (3, 1, 0, 0)
        pooled = F.avg_pool2d(video.mean(0)[::4], 8)
        return torch.stack([(channel + 1) * pooled for channel in range(16)])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("max_area", [1280 * 720, 832 * 480])
@pytest.mark.parametrize(
    "height, width", [(720, 1280), (1280, 720), (1000, 1000), (1080, 1920), (427, 640), (333, 1000)]
)
def test_i2v_size(height: int, width: int, max_area: int) -> None:
    ratio = height / width
    expected = tuple(
        int(round(np.sqrt(area) // 8 // 2 * 2)) * 8 for area in (max_area * ratio, max_area / ratio)
    )
    assert i2v_size(height, width, max_area) == expected
    assert i2v_size(height, width, max_area)[0] % 16 == 0
    assert math.prod(expected) <= max_area


def test_i2v_size_keeps_the_named_sizes() -> None:
    assert i2v_size(720, 1280, 1280 * 720) == (720, 1280)
    assert i2v_size(1280, 720, 1280 * 720) == (1280, 720)
    assert i2v_size(832, 480, 832 * 480) == (832, 480)
    # All but this one: 832 * 480 * (480 / 832) is one rounding below 480 squared; the floor takes 16 pixels.
    # The release does the same.
    assert i2v_size(480, 832, 832 * 480) == (464, 832)


@pytest.mark.parametrize(("height", "width"), [(1, 1600), (2, 4000), (1600, 1)])
def test_i2v_size_of_an_image_too_narrow(height: int, width: int) -> None:
    with pytest.raises(InputError, match=f"has {width}x{height} pixels, too narrow") as caught:
        i2v_size(height, width, 832 * 480)
    assert caught.value.hint == "crop it: the longer side may be 1560 times the shorter"
    assert i2v_size(1, 1559, 832 * 480)[0] == 16


def mask_by_views(frames: int, height: int, width: int, given: list[int]) -> Tensor:
    """The release's way: a mask per pixel frame, the first repeated, folded by four."""
    mask = torch.zeros(1, frames, height, width)
    mask[:, given] = 1
    mask = torch.cat([mask[:, :1].repeat_interleave(4, dim=1), mask[:, 1:]], dim=1)
    return mask.view(1, (frames + 3) // 4, 4, height, width).transpose(1, 2)[0]


@pytest.mark.parametrize("frames", [1, 5, 9, 81])
def test_masks_are_those_of_the_release(frames: int) -> None:
    latents = torch.empty(16, (frames - 1) // 4 + 1, 2, 3)
    assert torch.equal(first_frame_mask(latents), mask_by_views(frames, 2, 3, [0]))
    both = first_frame_mask(latents, also_last=True)
    assert torch.equal(both, mask_by_views(frames, 2, 3, [0, frames - 1]))


def test_mask_of_nine_frames_written_out() -> None:
    mask = first_frame_mask(torch.empty(16, 3, 1, 1), also_last=True)
    assert mask[:, :, 0, 0].tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]


def test_i2v_latents() -> None:
    vae, image = FakeVae(), noise(3, 50, 70)
    y = i2v_latents(image, frame_num=9, size=(32, 48), encode=vae)
    expected = torch.zeros(3, 9, 32, 48)
    expected[:, :1] = F.interpolate(image[None], size=(32, 48), mode="bicubic").transpose(0, 1)
    assert torch.equal(vae.videos[0], expected)
    assert torch.equal(y, torch.cat([mask_by_views(9, 4, 6, [0]), FakeVae()(expected)]))
    assert len(vae.videos) == 1


def test_flf2v_latents() -> None:
    vae, first, last = FakeVae(), noise(3, 50, 70), noise(3, 50, 70, seed=1)
    y = flf2v_latents(first, last, frame_num=9, size=(32, 48), encode=vae)
    expected = torch.zeros(3, 9, 32, 48)
    for index, image in ((0, first), (8, last)):
        expected[:, index] = F.interpolate(image[None], size=(32, 48), mode="bicubic")[0]
    assert torch.equal(vae.videos[0], expected)
    assert torch.equal(y, torch.cat([mask_by_views(9, 4, 6, [0, 8]), FakeVae()(expected)]))


def test_flf2v_does_not_cut_the_fitted_last_frame_again() -> None:
    # GIVEN what fit_last_frame leaves of a last frame: rounded to whole pixels, not quite of the first's ratio
    first, other = noise(3, 20, 60), noise(3, 40, 31, seed=1)
    last = fit_last_frame(other, first)
    assert fit_last_frame(last, first).shape != last.shape
    vae = FakeVae()

    flf2v_latents(first, last, frame_num=5, size=(16, 48), encode=vae)

    # THEN the VAE sees all of it, as CLIP does
    expected = F.interpolate(last[None], size=(16, 48), mode="bicubic")[0]
    assert torch.equal(vae.videos[0][:, 4], expected)


def test_shapes_of_720p() -> None:
    with torch.device("meta"):
        image = torch.empty(3, 1080, 1920)
        for y in (
            i2v_latents(image, 81, (720, 1280), FakeVae()),
            flf2v_latents(image, image, 81, (720, 1280), FakeVae()),
        ):
            assert y.shape == (20, 21, 90, 160)
        inputs = vace_inputs(None, None, [image, image], size=(720, 1280), frame_num=81)
        assert vace_latents(inputs, FakeVae()).shape == (96, 23, 90, 160)
        video, mask = torch.empty(3, 90, 720, 1280), torch.empty(1, 90, 720, 1280)
        inputs = vace_inputs(video, mask, [], size=(480, 832), frame_num=81)
        assert inputs.size == (480, 832)
        assert vace_latents(inputs, FakeVae()).shape == (96, 21, 60, 104)


def test_flf2v_needs_two_latent_frames() -> None:
    with pytest.raises(InputError, match="at least 5 frames, got 1"):
        flf2v_latents(noise(3, 16, 16), noise(3, 16, 16), 1, (16, 16), FakeVae())


def test_last_frame_is_cut_to_the_ratio_of_the_first() -> None:
    first = noise(3, 40, 60)
    assert torch.equal(fit_last_frame(first, first), first)
    assert fit_last_frame(noise(3, 80, 120), first).shape == (3, 80, 120)
    wide = noise(3, 20, 60)
    assert torch.equal(fit_last_frame(wide, first), wide[:, :, 15:45])
    tall = noise(3, 100, 60)
    assert torch.equal(fit_last_frame(tall, first), tall[:, 30:70])
    assert fit_last_frame(noise(3, 1, 1), noise(3, 10, 60)).shape == (3, 1, 1)


@pytest.mark.parametrize(
    "source, area, expected",
    [
        ((720, 1280), 1280 * 720, (720, 1280)),
        ((480, 832), 1280 * 720, (480, 832)),  # never enlarged
        ((1080, 1920), 1280 * 720, (720, 1280)),
        ((1920, 1080), 1280 * 720, (1280, 720)),
        ((500, 500), 832 * 480, (496, 496)),
    ],
)
def test_vace_size(source: tuple[int, int], area: int, expected: tuple[int, int]) -> None:
    assert vace_size(*source, max_area=area) == expected


def test_vace_size_of_a_video_too_small() -> None:
    with pytest.raises(InputError, match="12x40 pixels are too few"):
        vace_size(40, 12, 832 * 480)


@pytest.mark.parametrize("num_refs", [0, 1, 2])
def test_vace_without_a_video(num_refs: int) -> None:
    # GIVEN no control video
    vae, refs = FakeVae(), [noise(3, 32, 48, seed=seed) for seed in range(num_refs)]
    inputs = vace_inputs(None, None, refs, size=(32, 48), frame_num=9)
    # WHEN it is encoded
    z = vace_latents(inputs, vae)
    # THEN kept and changed parts are black-box zeros, the mask is one everywhere, references come first
    assert z.shape == (96, num_refs + 3, 4, 6)
    assert torch.equal(z[:32, num_refs:], torch.zeros(32, 3, 4, 6))
    assert torch.equal(z[32:, num_refs:], torch.ones(64, 3, 4, 6))
    for index, ref in enumerate(refs):
        assert torch.equal(z[:16, index : index + 1], FakeVae()(ref[:, None]))
        assert torch.equal(z[16:, index], torch.zeros(80, 4, 6))
    assert len(vae.videos) == 1 + num_refs


def mask_channels(mask: Tensor) -> Tensor:
    """[1, F, H, W] -> [64, T', h, w], the release's way: folding first, then time by interpolate."""
    _, frames, height, width = mask.shape
    folded = mask[0].view(frames, height // 8, 8, width // 8, 8).permute(2, 4, 0, 1, 3)
    folded = folded.reshape(64, frames, height // 8, width // 8)
    new_size = ((frames + 3) // 4, height // 8, width // 8)
    return F.interpolate(folded[None], size=new_size, mode="nearest-exact")[0]


@pytest.mark.parametrize("frames", [1, 5, 9, 33, 81, 121])
def test_vace_with_video_mask_and_reference(frames: int) -> None:
    vae, video, ref = FakeVae(), noise(3, frames, 32, 48), noise(3, 32, 48, seed=3)
    mask = (noise(1, frames, 32, 48, seed=2) + 1) / 2
    inputs = vace_inputs(video, mask, [ref], size=(32, 48), frame_num=frames)
    z = vace_latents(inputs, vae)
    hard = torch.where(mask > 0.5, 1.0, 0.0)
    kept, changed = FakeVae()(video * (1 - hard)), FakeVae()(video * hard)
    expected = torch.cat([kept, changed, mask_channels(mask)])
    reference = torch.cat([FakeVae()(ref[:, None]), torch.zeros(80, 1, 4, 6)])
    torch.testing.assert_close(z, torch.cat([reference, expected], dim=1))


def test_vace_with_a_video_and_no_mask_changes_everything() -> None:
    video = noise(3, 9, 32, 48)
    z = vace_latents(vace_inputs(video, None, [], size=(32, 48), frame_num=9), FakeVae())
    expected = torch.cat([torch.zeros(16, 3, 4, 6), FakeVae()(video), torch.ones(64, 3, 4, 6)])
    assert torch.equal(z, expected)


def test_vace_cuts_the_video_to_4n_plus_1_and_one_mask_image_holds_for_all() -> None:
    video, mask = noise(3, 12, 32, 48), torch.zeros(1, 1, 32, 48)
    mask[..., :16] = 1
    inputs = vace_inputs(video, mask, [], size=(32, 48), frame_num=81)
    assert inputs.frame_num == 9
    assert torch.equal(inputs.video, video[:, :9])
    assert torch.equal(inputs.mask, mask.expand(1, 9, 32, 48))
    assert vace_inputs(video, mask, [], size=(32, 48), frame_num=5).frame_num == 5


def test_vace_scales_video_mask_and_references_alike() -> None:
    # GIVEN a wide clip of which the left half is masked, and a square reference
    video, mask = torch.full((3, 5, 100, 200), 0.25), torch.zeros(1, 5, 100, 200)
    mask[..., :100] = 1
    inputs = vace_inputs(video, mask, [torch.zeros(3, 10, 10)], size=(32, 64), frame_num=5)
    # THEN all have the clip's ratio at the area asked for
    assert inputs.size == (32, 64)
    torch.testing.assert_close(inputs.video, torch.full((3, 5, 32, 64), 0.25))
    expected = torch.zeros(1, 5, 32, 64)
    expected[..., :32] = 1
    assert torch.equal(inputs.mask > 0.5, expected > 0.5)
    assert inputs.mask.min() >= 0
    assert inputs.mask.max() <= 1
    assert inputs.refs[0].shape == (3, 1, 32, 64)


@pytest.mark.parametrize(("height", "width"), [(96, 128), (160, 128), (96, 200), (24, 32), (24, 40)])
def test_vace_scales_both_sides_alike_and_cuts_what_goes_beyond_evenly(height: int, width: int) -> None:
    """GIVEN ramps over the rows and over the columns THEN each keeps its middle, and the slope of the scale."""
    size = 48, 64
    rows = torch.arange(height).float()[:, None].expand(height, width)
    columns = torch.arange(width).float().expand(height, width)
    video = torch.stack([rows, columns, torch.zeros(height, width)])[:, None]
    made = conditioning._cover(video, size)[:, 0]
    scale = max(size[0] / height, size[1] / width)
    for channel, length, whole in ((0, size[0], height), (1, size[1], width)):
        at = torch.arange(length) - (length - 1) / 2
        expected = (whole - 1) / 2 + at / scale
        found = made[channel].mean(dim=1 - channel)
        inner = slice(8, -8)  # at the edges a kernel has fewer pixels
        torch.testing.assert_close(found[inner], expected[inner], atol=0.6 / scale, rtol=0)


def test_vace_copies_no_video_that_has_its_size() -> None:
    video, mask = noise(3, 5, 32, 48), torch.ones(1, 5, 32, 48)
    inputs = vace_inputs(video, mask, [], size=(32, 48), frame_num=5)
    assert inputs.video is not None
    assert inputs.video.data_ptr() == video.data_ptr()


def test_letterbox_is_white_around_the_centre() -> None:
    boxed = letterbox(torch.zeros(3, 10, 20), (16, 16))
    expected = torch.ones(3, 16, 16)
    expected[:, 4:12] = 0
    assert torch.equal(boxed, expected)
    image = noise(3, 16, 16)
    assert torch.equal(letterbox(image, (16, 16)), image)


def test_letterbox_of_a_line_is_a_line() -> None:
    for shape in ((3, 1, 1000), (3, 1000, 1)):
        boxed = letterbox(torch.zeros(shape), (48, 64))
        assert (boxed == 0).all(0).sum() == (64 if shape[1] == 1 else 48)


def test_vace_refuses_a_mask_alone_or_too_short() -> None:
    with pytest.raises(InputError, match="src_mask is given without src_video"):
        vace_inputs(None, torch.ones(1, 5, 16, 16), [], size=(16, 16), frame_num=5)
    with pytest.raises(InputError, match="src_mask has 4 frames, src_video has 5"):
        vace_inputs(noise(3, 5, 16, 16), torch.ones(1, 4, 16, 16), [], size=(16, 16), frame_num=5)


def test_vace_inputs_are_whole_values() -> None:
    assert vace_inputs(None, None, [], size=(16, 32), frame_num=5) == VaceInputs(
        video=None, mask=None, refs=(), frame_num=5, size=(16, 32)
    )
