"""The CLIP image tower against the formulae on the official keys, and the official preprocessing."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from wan.config import TASKS, ClipConfig
from wan.networks.image import ImageEncoder, build_image_encoder, encode_image, preprocess
from wan.spans import Attribute, listening
from wan.weights.fill import RandomSource, expected_shapes, load, random_clip
from wan.weights.keymap import clip_origin

TINY = TASKS["i2v-tiny"].clip
FULL = TASKS["i2v-14B"].clip
assert TINY is not None and FULL is not None


def official_weights(config: ClipConfig) -> dict[str, Tensor]:
    weights = {}
    for name, shape in expected_shapes(build_image_encoder(config, torch.float32)).items():
        origin = clip_origin(name)
        weights[origin.key] = torch.empty(origin.official_shape(shape))
        RandomSource().read_into(origin.key, weights[origin.key])
    return weights


def reference_tower(weights: dict[str, Tensor], pixels: Tensor, config: ClipConfig) -> Tensor:
    """ViT with a norm in front, from its formulae, without its last layer: [B, 3, S, S] -> [B, T, D]."""

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    side = config.patch_size
    patches = pixels.unfold(2, side, side).unfold(3, side, side)  # [B, 3, H, W, side, side]
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), -1, 3 * side * side)
    x = patches @ weights["visual.patch_embedding.weight"].flatten(1).T
    x = torch.cat([weights["visual.cls_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = norm(x + weights["visual.pos_embedding"], "visual.pre_norm")
    head_dim = config.hidden_dim // config.num_heads
    for index in range(config.num_layers - 1):
        block = f"visual.transformer.{index}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.to_qkv")
        q, k, v = qkv.unflatten(-1, (3, config.num_heads, head_dim)).unbind(2)
        scores = torch.einsum("bqnd,bknd->bnqk", q, k) / head_dim**0.5
        attended = torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), v).flatten(2)
        x = x + linear(attended, f"{block}.attn.proj")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.0")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, f"{block}.mlp.2")
    return x


def loaded(config: ClipConfig, dtype: torch.dtype = torch.float32) -> ImageEncoder:
    encoder = build_image_encoder(config, dtype)
    load(encoder, random_clip(), "cpu")
    return encoder


def images(height: int = 48, width: int = 64) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_equals_the_formulae_on_the_official_keys() -> None:
    states = encode_image(loaded(TINY), images(), TINY)

    expected = reference_tower(official_weights(TINY), preprocess(images(), TINY), TINY)
    assert states.shape == (2, TINY.num_tokens, TINY.hidden_dim)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 64), (100, 20)], ids=["wide", "tall"])
def test_preprocessing_squashes_to_a_square_without_antialiasing(size: tuple[int, int]) -> None:
    pixels = preprocess(images(*size), TINY)

    expected = functional.interpolate(images(*size), (56, 56), mode="bicubic", antialias=False) * 0.5 + 0.5
    for channel, mean, std in (
        (0, 0.48145466, 0.26862954),
        (1, 0.4578275, 0.26130258),
        (2, 0.40821073, 0.27577711),
    ):
        expected[:, channel] = (expected[:, channel] - mean) / std
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)


def test_preprocessing_works_in_fp32_whatever_comes_in() -> None:
    assert torch.equal(preprocess(images().bfloat16(), TINY), preprocess(images().bfloat16().float(), TINY))


def test_half_precision_is_near() -> None:
    states = encode_image(loaded(TINY, torch.float16), images(), TINY)

    assert states.dtype == torch.float16
    torch.testing.assert_close(
        states.float(), encode_image(loaded(TINY), images(), TINY), rtol=0.02, atol=0.02
    )


def test_the_full_size_has_the_published_shapes() -> None:
    encoder = build_image_encoder(FULL, torch.float16)

    # The image tower of the file has 632,076,800; the last of 32 layers, post_norm and head are not built.
    layer = 4 * (1280 * 1280 + 1280) + 2 * 1280 * 5120 + 5120 + 1280 + 4 * 1280
    total = sum(parameter.numel() for parameter in encoder.parameters())
    assert total == 632_076_800 - layer - 2 * 1280 - 1280 * 1024
    assert len(encoder.blocks) == 31
    assert {(p.device.type, p.dtype, p.requires_grad) for p in encoder.parameters()} == {
        ("meta", torch.float16, False)
    }
    assert list(encoder.buffers()) == []


def test_blocks_are_spans() -> None:
    heard: list[tuple[str, dict[str, Attribute]]] = []

    class Listener:
        def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
            heard.append((name, attributes))

        def exit(self, name: str, failed: bool) -> None:
            pass

    encoder = loaded(TINY)
    with listening(Listener()):
        encode_image(encoder, images(), TINY)

    assert heard == [("clip.block", {"index": 0}), ("clip.block", {"index": 1})]


def test_runs_under_fake_tensors() -> None:
    with FakeTensorMode():
        states = encode_image(loaded(FULL, torch.float16), images(480, 832), FULL)

    assert (states.shape, states.dtype) == ((2, 257, 1280), torch.float16)
