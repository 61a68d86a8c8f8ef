"""The VAE against diffusers', slabs against the whole image, and what it holds while it works."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from live_bytes import LiveBytes
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tests.references import relative_error
from wan.config import VaeConfig
from wan.levers import LoadStrategy
from wan.networks.vae import layers
from wan.networks.vae.network import WanVae, cut_dim
from wan.networks.vae.slabs import (
    DECODE_FRAMES,
    Reach,
    Window,
    choose_slabs,
    crops,
    split,
    windows,
)
from wan.spans import listening
from wan.weights.fill import on_meta, random_vae
from wan.weights.residency import Component

GIB = 2**30
BLOCK, UP, DOWN = Reach(before=2, after=2), Reach(before=1, after=1, zoom=2), Reach(after=2, stride=2)


def tiny_vae(seed: int = 0) -> WanVae:
    torch.manual_seed(seed)
    vae = WanVae(VaeConfig(base_dim=8)).requires_grad_(False)
    for name, parameter in vae.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.05)
        if name.endswith("gamma"):
            parameter.normal_(mean=1, std=0.1)
    return vae


@pytest.fixture(scope="module")
def vae() -> WanVae:
    return tiny_vae()


# Slab arithmetic.


@pytest.mark.parametrize(
    "chain", [[Reach()], [BLOCK], [UP], [DOWN], [BLOCK, UP, BLOCK, UP], [BLOCK, DOWN, BLOCK, DOWN]]
)
def test_windows_are_exactly_what_a_slab_depends_on(chain: list[Reach]) -> None:
    size = 24
    sizes = [size]
    for reach in chain:
        sizes.append(reach.scaled(sizes[-1]))
    for start in range(sizes[-1]):
        for stop in range(start + 1, sizes[-1] + 1):
            read = windows(chain, Window(start, stop), size)
            needed = set(range(start, stop))
            for reach, length, window in reversed(list(zip(chain, sizes, read, strict=False))):
                positions = {
                    (i * reach.stride + offset) // reach.zoom
                    for i in needed
                    for offset in range(-reach.before, reach.after + 1)
                }
                needed = {i for i in positions if 0 <= i < length}
                assert window == (min(needed), max(needed) + 1)
            assert read[-1] == (start, stop)


def test_crops_count_from_where_each_output_starts() -> None:
    read = windows([UP, BLOCK], Window(8, 16), size=20)
    assert read == [(2, 10), (6, 18), (8, 16)]
    assert crops([UP, BLOCK], read) == [(2, 14), (2, 10)]


def test_the_public_decoder_reads_seven_latents_beside_a_slab_and_the_encoder_36_pixels() -> None:
    with torch.device("meta"):
        vae = WanVae(VaeConfig())
    decoder = [step.reach for step in vae.decoder.slab_steps()]
    assert windows(decoder, Window(8 * 40, 8 * 80), size=160)[0] == (40 - 7, 80 + 7)
    assert windows(decoder, Window(0, 8 * 40), size=160)[0] == (0, 40 + 7)
    encoder = [step.reach for step in vae.encoder.slab_steps()]
    assert windows(encoder, Window(40, 80), size=1280)[0] == (8 * 40 - 29, 8 * 80 + 36)


def test_split_covers_everything_once_and_never_makes_an_empty_slab() -> None:
    assert split(7, 3) == [(0, 2), (2, 4), (4, 7)]
    assert split(3, 8) == [(0, 1), (1, 2), (2, 3)]
    assert split(160, 1) == [(0, 160)]


def test_slabs_are_chosen_by_size() -> None:
    def chosen(height: int, width: int) -> int:
        return choose_slabs(96 * 4 * height * width, DECODE_FRAMES)

    assert [chosen(48, 64), chosen(480, 832), chosen(720, 1280)] == [1, 2, 3]


# Names and numbers.


def test_the_parameters_are_those_of_the_official_file() -> None:
    with torch.device("meta"):
        vae = WanVae(VaeConfig())
    shapes = {name: tuple(value.shape) for name, value in vae.state_dict().items()}
    assert len(shapes) == 194
    assert sum(parameter.numel() for parameter in vae.parameters()) == 126_892_531
    assert shapes["decoder.upsamples.3.time_conv.weight"] == (768, 384, 3, 1, 1)
    assert shapes["decoder.upsamples.11.resample.1.weight"] == (96, 192, 3, 3)
    assert shapes["encoder.middle.1.norm.gamma"] == (384, 1, 1)
    assert shapes["encoder.downsamples.3.shortcut.weight"] == (192, 96, 1, 1, 1)
    assert shapes["conv1.weight"] == (32, 32, 1, 1, 1)


def test_a_half_has_only_its_own_parameters() -> None:
    config = VaeConfig(base_dim=8)
    decoder = {name.split(".")[0] for name in WanVae(config, encoder=False).state_dict()}
    encoder = {name.split(".")[0] for name in WanVae(config, decoder=False).state_dict()}
    assert (decoder, encoder) == ({"decoder", "conv2"}, {"encoder", "conv1"})


RENAMED = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
    "middle.0": "mid_block.resnets.0",
    "middle.1": "mid_block.attentions.0",
    "middle.2": "mid_block.resnets.1",
    "head.0": "norm_out",
    "head.2": "conv_out",
    "coder.conv1": "coder.conv_in",
    "downsamples": "down_blocks",
}


def diffusers_key(key: str) -> str:
    if key.startswith(("conv1", "conv2")):
        return key.replace("conv1", "quant_conv").replace("conv2", "post_quant_conv")
    # The first convolution before the blocks get one of the same name.
    for ours in ("coder.conv1", *RENAMED):
        key = key.replace(ours, RENAMED[ours])
    parts = key.split(".")
    if parts[1] == "upsamples":
        level, place = divmod(int(parts[2]), 4)
        parts[1:3] = [
            "up_blocks",
            str(level),
            *(["upsamplers", "0"] if place == 3 else ["resnets", str(place)]),
        ]
    return ".".join(parts)


@pytest.fixture(scope="module")
def reference(vae: WanVae) -> AutoencoderKLWan:
    model = AutoencoderKLWan(base_dim=8).eval().requires_grad_(False)
    model.load_state_dict({diffusers_key(key): value for key, value in vae.state_dict().items()}, strict=True)
    return model


def statistics() -> tuple[Tensor, Tensor]:
    config = VaeConfig()
    return torch.tensor(config.mean).view(-1, 1, 1, 1), torch.tensor(config.std).view(-1, 1, 1, 1)


SIZES = [(1, 6, 10), (5, 10, 6), (9, 4, 6), (13, 5, 3)]


@pytest.mark.parametrize(("frames", "height", "width"), SIZES)
@pytest.mark.parametrize("slabs", [1, 3])
def test_decode_equals_diffusers(
    vae: WanVae, reference: AutoencoderKLWan, frames: int, height: int, width: int, slabs: int
) -> None:
    mean, std = statistics()
    z = torch.randn(16, (frames - 1) // 4 + 1, height, width)
    expected = reference.decode((z * std + mean)[None]).sample[0]
    video = vae.decode(z, slabs)
    assert video.shape == (3, frames, 8 * height, 8 * width)
    assert 0.1 < video.std() < 0.9
    torch.testing.assert_close(video, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("frames", "height", "width"), SIZES)
@pytest.mark.parametrize("slabs", [1, 3])
def test_encode_equals_diffusers(
    vae: WanVae, reference: AutoencoderKLWan, frames: int, height: int, width: int, slabs: int
) -> None:
    mean, std = statistics()
    video = torch.rand(3, frames, 8 * height, 8 * width) * 2 - 1
    expected = (reference.encode(video[None]).latent_dist.mode()[0] - mean) / std
    torch.testing.assert_close(vae.encode(video, slabs), expected, atol=1e-5, rtol=0)


# bf16.


def test_bf16_is_near_fp32_and_latents_and_video_stay_fp32() -> None:
    vae, half = tiny_vae(), tiny_vae().to(torch.bfloat16)
    z, video = torch.randn(16, 2, 3, 6), torch.rand(3, 5, 24, 48) * 2 - 1
    for made, expected in (
        (half.decode(z), vae.decode(z)),
        (half.encode(video), vae.encode(video)),
        (half.decode(z, 2), vae.decode(z)),
    ):
        assert made.dtype == torch.float32
        assert 1e-3 < relative_error(made, expected) < 6e-2


def test_latents_far_from_zero_keep_the_digits_of_fp32_until_the_first_convolution() -> None:
    """GIVEN statistics that round in bf16 THEN the shift by them does not: only its result is rounded."""
    half, seen = tiny_vae().to(torch.bfloat16), []
    half.conv2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    z = torch.randn(16, 1, 2, 2)
    half.decode(z)
    mean, std = statistics()
    assert torch.equal(seen[0], (z * std + mean).movedim(1, 0).to(torch.bfloat16))


# Slabs.


@pytest.mark.parametrize("upright", [False, True])
def test_slabs_equal_the_whole_image(vae: WanVae, upright: bool) -> None:
    # 40 latents wide: with 2 and 3 slabs the halo ends inside the image, with 5 it spans neighbours, and 40
    # slabs are one latent each.
    z = torch.randn(16, 3, 3, 40)
    video = torch.rand(3, 9, 24, 320) * 2 - 1
    if upright:
        z, video = z.mT.contiguous(), video.mT.contiguous()
    decoded, encoded = vae.decode(z, 1), vae.encode(video, 1)
    for slabs in (2, 3, 5, *([] if upright else [40])):
        torch.testing.assert_close(vae.decode(z, slabs), decoded, atol=1e-5, rtol=0)
        torch.testing.assert_close(vae.encode(video, slabs), encoded, atol=1e-5, rtol=0)


def test_a_smaller_reach_would_be_seen(vae: WanVae, monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(16, 2, 3, 40)
    whole = vae.decode(z, 1)
    monkeypatch.setattr(layers.ResidualBlock, "reach", Reach(before=1, after=1))
    assert (vae.decode(z, 2) - whole).abs().max() > 1e-3


def test_one_slab_can_be_made_alone(vae: WanVae) -> None:
    z = torch.randn(16, 3, 3, 12)
    whole = vae.decode(z, 1)
    features = vae.decode_features(z)
    assert cut_dim(features) == 3
    chunks = list(vae.decode_slab(features, Window(4, 9)))
    assert [first for first, _ in chunks] == [0, 1, 5]
    torch.testing.assert_close(
        torch.cat([pixels for _, pixels in chunks], dim=1), whole[..., 32:72], atol=1e-5, rtol=0
    )


def test_decode_writes_into_what_it_is_given(vae: WanVae) -> None:
    z = torch.randn(16, 2, 4, 6)
    out = torch.full((3, 5, 32, 48), torch.nan)
    assert vae.decode(z, 2, out) is out
    assert out.isfinite().all()


def test_weights_keep_names_shapes_and_values_when_they_are_laid_out(vae: WanVae) -> None:
    before = {name: value.clone() for name, value in tiny_vae().state_dict().items()}
    used = tiny_vae()
    used.decode(torch.randn(16, 2, 2, 2))
    used.encode(torch.randn(3, 5, 16, 16))
    after = used.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("strategy", ["full", "block"])
def test_weights_are_laid_out_while_they_are_loaded(strategy: LoadStrategy) -> None:
    """GIVEN a VAE from files THEN its weights are where load.vae has put them: decoding makes none anew."""
    part = Component(
        "vae",
        lambda: on_meta(lambda: WanVae(VaeConfig(base_dim=8)), torch.float32),
        random_vae,
        strategy=strategy,
        device=torch.device("cpu"),
        offload=False,
    )
    with part.on_device() as vae:
        before = {name: parameter.data_ptr() for name, parameter in vae.named_parameters()}
        vae.decode(torch.randn(16, 2, 2, 2))
        vae.encode(torch.randn(3, 5, 16, 16))
        assert {name: parameter.data_ptr() for name, parameter in vae.named_parameters()} == before


def test_spans_name_features_slabs_and_chunks(vae: WanVae) -> None:
    heard: list[str] = []

    class Ear:
        def enter(self, name: str, attributes: dict[str, int | str]) -> None:
            heard.append(name + "".join(f" {value}" for value in attributes.values()))

        def exit(self, name: str, failed: bool) -> None:
            heard.append("end")

    chunks = ["vae.chunk 0", "end", "vae.chunk 1", "end"]
    slabs = ["vae.slab 0", *chunks, "end", "vae.slab 1", *chunks, "end"]
    with listening(Ear()):
        vae.decode(torch.randn(16, 2, 4, 6), 2)
        assert heard == ["vae.features", "end", *slabs]
        heard.clear()
        vae.encode(torch.randn(3, 5, 32, 48), 2)
        assert heard == [*slabs, "vae.latents", "end"]


# Memory, without a device.


def peak_gib(
    what: str, height: int, width: int, frames: int, slabs: int, dtype: torch.dtype = torch.float32
) -> float:
    """Live bytes above weights, video and latents, in GiB, at the public size."""
    with FakeTensorMode(), torch.no_grad():
        torch.set_default_dtype(dtype)
        try:
            vae = WanVae(VaeConfig(), encoder=what == "encode", decoder=what == "decode")
        finally:
            torch.set_default_dtype(torch.float32)
        vae.requires_grad_(False)
        z = torch.empty(16, (frames - 1) // 4 + 1, height // 8, width // 8)
        video = torch.empty(3, frames, height, width)
        run = (
            (lambda: vae.decode(z, slabs, video)) if what == "decode" else (lambda: vae.encode(video, slabs))
        )
        # Weights are laid out at first use: what replaces them would count, what is freed would not.
        vae.decode(z[:, :2, :2, :2], 1) if what == "decode" else vae.encode(video[:, :5, :16, :16], 1)
        with LiveBytes() as live:
            run()
    return live.peak / GIB


def test_live_bytes_counts_what_lives() -> None:
    with FakeTensorMode(), LiveBytes() as live:
        a = torch.empty(1024)
        b = a.view(2, 512) + 1
        assert (live.current, live.peak) == (8192, 8192)
        del a, b
        torch.empty(10)
    assert (live.current, live.peak) == (0, 8192)


def test_live_bytes_of_results_that_are_remembered_are_the_same() -> None:
    peaks = []
    for remembers in (True, False):
        with FakeTensorMode(), torch.no_grad():
            vae, z = tiny_vae(), torch.empty(16, 3, 6, 8)
            with LiveBytes(remembers=remembers) as live:
                vae.decode(z, 2)
        peaks.append(live.peak)
    assert peaks[0] == peaks[1] > 2**18


def features_gib(num_latents: int, height: int, width: int) -> float:
    return num_latents * 384 * (height // 8) * (width // 8) * 4 / GIB


def test_480p_stays_under_its_bounds() -> None:
    # 3 of 21 latent frames reach the steady state of every convolution; the features of the others are added.
    missing = features_gib(18, 480, 832)
    assert peak_gib("decode", 480, 832, 9, 0) + missing < 2.5
    assert peak_gib("encode", 480, 832, 9, 0) + missing < 2.7


@pytest.mark.parametrize("what", ["decode", "encode"])
def test_bf16_takes_half_of_what_fp32_takes(what: str) -> None:
    """What is fp32 all the same: the input, the first convolution's or the pixels' copy; a few per cent."""
    half, whole = peak_gib(what, 240, 416, 9, 2, torch.bfloat16), peak_gib(what, 240, 416, 9, 2)
    assert half == pytest.approx(whole / 2, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "bound"), [("decode", 3.7), ("encode", 3.4)])
def test_720p_stays_under_its_bounds(what: str, bound: float) -> None:
    assert peak_gib(what, 720, 1280, 81, 0) < bound


@pytest.mark.slow
@pytest.mark.parametrize(("what", "bound"), [("decode", 1.9), ("encode", 1.4)])
def test_720p_in_eight_slabs_stays_under_its_bounds(what: str, bound: float) -> None:
    assert peak_gib(what, 720, 1280, 9, 8) + features_gib(18, 720, 1280) < bound
