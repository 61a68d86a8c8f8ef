"""Ring attention: exact whatever the size of the scores, and never more than two parts of keys and values."""

import pytest
import torch
from crew import Crew
from flash_attention import installed, without_rounding
from torch import Tensor

from tests.live_bytes import LiveBytes
from wan.networks.attention_kernels import KERNELS, SDPA
from wan.networks.sdpa import attention, attention_lse
from wan.parallel import Layout
from wan.parallel.ranks import Ranks
from wan.parallel.ring import Merged, Ring, Slots, ring_attention

CPU = torch.device("cpu")
LENGTHS = (5, 7, 1, 6)


def parts(scale: float, heads: int = 2, width: int = 16, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """q, k, v of every rank, one behind the other."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, sum(lengths), heads, width, generator=generator) for _ in range(3))
    return [q * scale, k, v]


def ring_of(rank: int, lengths: tuple[int, ...]) -> Ring:
    layout = Layout(ranks=len(lengths), ring=len(lengths))
    return Ring(
        ranks=Ranks(layout, CPU), place=rank, peers=range(len(lengths)), lengths=lengths, slots=Slots()
    )


def around(rank: int, scale: float) -> Tensor:
    own = [part.split(LENGTHS, dim=1)[rank] for part in parts(scale)]
    return ring_attention(own, ring_of(rank, LENGTHS), SDPA)


@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
def test_a_ring_attends_to_the_keys_of_all(four: Crew, scale: float) -> None:
    expected = attention(*parts(scale))
    made = torch.cat(four.run(around, scale), dim=1)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def around_by(rank: int, name: str) -> Tensor:
    """As around(), by a kernel of another package; every rank's keys have a mean of their own, far from 0."""
    q, k, v = parts(2.0)
    k = k + torch.cat(
        [torch.full((1, length, 1, 1), 4.0 * (1 + r)) for r, length in enumerate(LENGTHS)], dim=1
    )
    own = [part.split(LENGTHS, dim=1)[rank] for part in (q, k, v)]
    with installed("fa3", "fa4"), without_rounding():
        return torch.cat(
            [ring_attention(own, ring_of(rank, LENGTHS), KERNELS[name]), attention(q, k, v)], dim=1
        )


@pytest.mark.parametrize("name", ["fa3", "fa4", "fa3_fp8"])
def test_other_kernels_go_around_the_ring(four: Crew, name: str) -> None:
    """fa3_fp8 without its rounding: what a rank takes out of all keys must not change the weights of the parts."""
    made = four.run(around_by, name)
    own = torch.cat([out[:, :length] for out, length in zip(made, LENGTHS, strict=True)], dim=1)
    torch.testing.assert_close(own, made[0][:, LENGTHS[0] :], rtol=0, atol=1e-5)


def peak(rank: int, length: int) -> tuple[int, int]:
    """Bytes alive at the worst moment that were not there before, and bytes of one part of the keys."""
    lengths = (length,) * 4
    own = [part.split(lengths, dim=1)[rank].contiguous() for part in parts(1.0, lengths=lengths)]
    part_bytes = own[0].nbytes
    with LiveBytes() as live:
        ring_attention(own, ring_of(rank, lengths), SDPA)
    assert not own, "the parts are given away"
    return live.peak, part_bytes


def test_two_parts_of_keys_and_values_are_held_and_never_all(four: Crew) -> None:
    """Own k and v are counted as given; then 2 x 2 of a part, its output, the merged one, and a piece of the latter."""
    for live, part in four.run(peak, 64):
        assert 4 * part <= live < 8 * part, "all four ranks' keys and values would be 8"


def test_lse_is_the_logarithm_of_the_sum() -> None:
    q, k, v = parts(2.0)
    out, lse = attention_lse(q, k[:, :9], v[:, :9])
    scores = torch.einsum("blnd,bsnd->bnls", q, k[:, :9]) / 4
    expected = torch.logsumexp(scores, dim=-1).transpose(1, 2).unsqueeze(-1)
    torch.testing.assert_close(lse, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, attention(q, k[:, :9], v[:, :9]), rtol=0, atol=1e-6)


def test_parts_of_opposite_weight_merge_without_overflow() -> None:
    one = torch.ones(1, 2, 1, 4)
    merged = Merged(1 * one, torch.tensor([-500.0, 500.0]).view(1, 2, 1, 1))
    merged.add(3 * one, torch.tensor([500.0, -500.0]).view(1, 2, 1, 1))
    assert torch.equal(merged.out, torch.tensor([3.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4))
    assert torch.equal(merged.lse.flatten(), torch.tensor([500.0, 500.0]))


def test_half_precision_is_merged_in_fp32() -> None:
    merged = Merged(torch.ones(1, 1, 1, 2, dtype=torch.bfloat16), torch.zeros(1, 1, 1, 1))
    merged.add(torch.full((1, 1, 1, 2), 1.0078125, dtype=torch.bfloat16), torch.zeros(1, 1, 1, 1))
    assert merged.out.dtype == torch.float32
    assert torch.equal(merged.out, torch.full((1, 1, 1, 2), 1.00390625))
