"""The VAE in slabs over ranks against the VAE in one process: sizes, slabs and ranks that do not fit one another."""

import pytest
import torch
from crew import Crew
from torch import Tensor

from wan.config import TASKS
from wan.networks.vae.network import WanVae
from wan.parallel import Layout
from wan.parallel import vae as split_vae
from wan.parallel.ranks import Ranks
from wan.spans import listening
from wan.weights.fill import materialize, on_meta, random_vae

CPU = torch.device("cpu")
CONFIG = TASKS["t2v-tiny"].vae
SIZES = [(6, 8), (8, 6), (4, 13), (11, 3), (2, 3)]
"""Latent height and width: wide, upright, a width and a height that do not divide, fewer columns than ranks."""


def built(dtype: torch.dtype = torch.float32) -> WanVae:
    vae = on_meta(lambda: WanVae(CONFIG), dtype)
    materialize(vae, random_vae(), CPU)
    return vae


def latents(size: tuple[int, int], num_latents: int = 3) -> Tensor:
    return torch.randn(16, num_latents, *size, generator=torch.Generator().manual_seed(5))


def pixels(size: tuple[int, int], num_frames: int = 9) -> Tensor:
    height, width = (8 * side for side in size)
    return torch.rand(3, num_frames, height, width, generator=torch.Generator().manual_seed(5)) * 2 - 1


def decoded(rank: int, num: int, size: tuple[int, int], slabs: int, num_latents: int = 3) -> Tensor | None:
    return split_vae.decode(built(), latents(size, num_latents), Ranks(Layout(ranks=num), CPU), slabs)


def encoded(rank: int, num: int, size: tuple[int, int], slabs: int, num_frames: int = 9) -> Tensor:
    return split_vae.encode(built(), pixels(size, num_frames), Ranks(Layout(ranks=num), CPU), slabs)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("slabs", [0, 5])
def test_ranks_decode_what_one_process_decodes(four: Crew, size: tuple[int, int], slabs: int) -> None:
    expected = built().decode(latents(size))
    assert expected.std() > 0.05
    first, *others = four.run(decoded, 4, size, slabs)
    assert others == [None, None, None]
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-5)


def in_bf16(rank: int, num: int, size: tuple[int, int], slabs: int) -> tuple[Tensor | None, Tensor]:
    ranks, vae = Ranks(Layout(ranks=num), CPU), built(torch.bfloat16)
    return split_vae.decode(vae, latents(size), ranks, slabs), split_vae.encode(
        vae, pixels(size), ranks, slabs
    )


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_ranks_make_in_bf16_what_one_process_makes_in_bf16(two: Crew, size: tuple[int, int]) -> None:
    """Slabs round where the whole image rounds: only an order of sums inside a convolution may differ."""
    vae = built(torch.bfloat16)
    video, encoding = vae.decode(latents(size)), vae.encode(pixels(size))
    (first, made), (other, alike) = two.run(in_bf16, 2, size, 4)
    assert other is None and first is not None
    for found, expected in ((first, video), (made, encoding), (alike, encoding)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("slabs", [0, 5])
def test_ranks_encode_what_one_process_encodes(four: Crew, size: tuple[int, int], slabs: int) -> None:
    expected = built().encode(pixels(size))
    assert expected.std() > 0.01
    for made in four.run(encoded, 4, size, slabs):
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_an_image_is_a_video_of_one_frame(two: Crew) -> None:
    first, _ = two.run(decoded, 2, (6, 8), 0, 1)
    torch.testing.assert_close(first, built().decode(latents((6, 8), 1)), rtol=0, atol=1e-5)
    for made in two.run(encoded, 2, (6, 8), 0, 1):
        torch.testing.assert_close(made, built().encode(pixels((6, 8), 1)), rtol=0, atol=1e-5)


def widths(rank: int, size: tuple[int, int]) -> set[int]:
    """Columns of latent features that this rank's slabs are made from."""
    seen: set[int] = set()
    vae, plain = built(), WanVae.decode_slab

    def spy(self: WanVae, features: Tensor, *arguments: object, **named: object) -> object:
        seen.add(features.shape[3])
        # The whole would live on behind a view.
        assert features.untyped_storage().nbytes() == features.nbytes
        return plain(self, features, *arguments, **named)  # type: ignore[arg-type]

    WanVae.decode_slab = spy  # type: ignore[method-assign, assignment]
    try:
        split_vae.decode(vae, latents(size, 1), Ranks(Layout(ranks=2), CPU))
    finally:
        WanVae.decode_slab = plain  # type: ignore[method-assign]
    return seen


def test_a_rank_keeps_only_the_features_that_its_slabs_read(two: Crew) -> None:
    """Seven columns beyond its own on the inner side: what the upsampling layers of the network reach."""
    assert two.run(widths, (2, 60)) == [{37}, {37}]


class Chunks:
    def __init__(self) -> None:
        self.count = 0

    def enter(self, name: str, attributes: object) -> None:
        self.count += name == "vae.chunk"

    def exit(self, name: str, failed: bool) -> None:
        pass


def chunks(rank: int) -> int:
    heard = Chunks()
    with listening(heard):
        decoded(rank, 2, (6, 8), 0)
    return heard.count


def test_every_rank_makes_one_slab_of_every_latent_frame(two: Crew) -> None:
    assert two.run(chunks) == [3, 3]
