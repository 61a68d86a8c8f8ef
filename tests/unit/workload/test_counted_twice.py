"""What is alive at the peak of a training under DDP, against a count of the program's own tensors in 512-byte blocks.

The program counts by itself, at the moment of its peak, and knows nothing of how owners are found.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ray_memprof.query.database import open_run
from ray_memprof.query.questions import rows_of
from ray_memprof.recorder.meters import host
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.recording import recording
from ray_memprof.workload.observed import observed

BLOCK = 512
WIDTH, HEADS, TOKENS, WORDS = 24, 2, 12, 61
PEAK = 1 << 22


def in_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


class BlockMeter(host.HostMeter):
    """Counts storages of the CPU as the CUDA caching allocator does: in whole blocks."""

    def _change(self, number: int, size: int) -> None:
        super()._change(number, in_blocks(size))

    def locate(self, tensor: Tensor) -> tuple[int, int, int] | None:
        found = super().locate(tensor)
        return None if found is None else (*found[:2], in_blocks(found[2]))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            one.unflatten(2, (HEADS, -1)).transpose(1, 2) for one in self.c_attn(x).split(WIDTH, dim=2)
        )
        out: Tensor = self.c_proj(
            functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )
        return out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    """Two blocks, learned positions, the head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(2))
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.wte.weight = self.lm_head.weight
        self.register_buffer("positions", torch.arange(TOKENS) + 0)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(self.positions)
        for block in self.h:
            x = block(x)
        return functional.cross_entropy(self.lm_head(x).flatten(0, 1), tokens.flatten())


def counted(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the blocks of these tensors' storages, each storage once."""
    storages = {
        one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors if one is not None
    }
    return sum(map(in_blocks, storages.values()))


def bucket_sizes(wrapped: DistributedDataParallel) -> list[int]:
    """Bytes of DDP's buckets, as it logs them itself; it builds them anew after the first step."""
    logged = wrapped._get_ddp_logging_data()
    sizes = logged.get("rebuilt_bucket_sizes") or logged["bucket_sizes"]
    return [int(size) for size in sizes.split(",")]


def train(is_view: bool, num_steps: int, peak_in: str) -> dict[str, int]:
    """Train as nanoGPT does; returns what the program counts when the most is alive: in the last step."""
    torch.manual_seed(0)
    model = GPT()
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=is_view, bucket_cap_mb=0.02)
    matrices = [one for one in model.parameters() if one.dim() > 1]
    others = [one for one in model.parameters() if one.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}])
    count: dict[str, int] = {}

    def most(*_: object) -> None:
        torch.ones(PEAK // 4)
        state = [value for held in optimizer.state.values() for value in held.values() if value.dim()]
        gradients = counted(one.grad for one in model.parameters())
        buckets = sum(map(in_blocks, bucket_sizes(wrapped)))
        # Gradients are views of the buckets once they are reduced; those of a batch that is not are none yet.
        are_views = is_view and peak_in == "step"
        assert not are_views or gradients == buckets
        count.update(
            weight=counted(model.parameters()),
            buffer=counted(model.buffers()),
            optimizer=counted(state),
            gradient=0 if are_views else gradients,
            communication=buckets,
        )

    for number in range(num_steps):
        is_last = number == num_steps - 1
        for is_synced in (False, True):  # gradients of two batches are accumulated
            tokens = torch.randint(WORDS, (3, TOKENS))
            with nullcontext() if is_synced else wrapped.no_sync():
                loss = wrapped(tokens)
                if is_last and peak_in == "backward" and is_synced:
                    loss.register_hook(most)  # gradients of the first batch are there
                loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if is_last and peak_in == "step":
            most()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return count


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("is_view", [False, True])
@pytest.mark.parametrize("peak_in", ["step", "backward"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_program_counts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_view: bool, peak_in: str, num_steps: int
) -> None:
    monkeypatch.setattr(host, "HostMeter", BlockMeter)
    with recording(RecordingOptions(run_dir=tmp_path / "run", device="cpu")) as recorder:
        with observed(recorder, module_spans=("h.*",)):
            count = train(is_view, num_steps, peak_in)
    assert recorder.problems == ()
    held = Counter[str]()
    with open_run(tmp_path / "run") as connection:
        for row in rows_of(connection, "alive_at_peak_by_owner"):
            held[row["category"]] += row["bytes"]
        (rank,) = rows_of(connection, "peak_by_rank")
    assert {category: held[category] for category in count} == count
    assert sum(held.values()) == rank["allocated_peak_bytes"]
    assert held["temporary"] + held["activation"] >= PEAK
