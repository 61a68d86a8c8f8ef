"""Programs under FSDP1 (FullyShardedDataParallel) on two ranks, in the shape of Wan2.1's public one and in training."""

import json
from typing import Any

import pytest
from programs import RECORD, TORCHRUN, Done, Start

MODELS = """
import gc, json, sys
from functools import partial
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, MixedPrecision, ShardingStrategy
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy
from torch.distributed.utils import _free_storage

WIDTH = 256

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.GELU(), nn.Linear(8 * WIDTH, WIDTH))
    def forward(self, x):
        return x + self.ffn(self.norm(x))

class Network(nn.Module):
    def __init__(self, num_blocks):
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))
    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

class T5Encoder(Network):
    pass

class WanModel(Network):
    pass

def shard(model, **options):
    precision = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, buffer_dtype=torch.float32)
    return FSDP(
        module=model,
        sharding_strategy=ShardingStrategy.FULL_SHARD,
        auto_wrap_policy=partial(lambda_auto_wrap_policy, lambda_fn=lambda one: one in model.blocks),
        mixed_precision=precision,
        device_id=torch.device("cpu"),
        **options,
    )

def share(model):
    return sum(one._handle.flat_param.untyped_storage().nbytes() for one in FSDP.fsdp_modules(model))

dist.init_process_group("gloo")
x = torch.ones(1, 8, WIDTH)
"""
GENERATE = f"""{MODELS}
text = shard(T5Encoder(2).to(torch.bfloat16).eval().requires_grad_(False))
model = shard(WanModel(3).eval().requires_grad_(False))
counted = {{"t5": share(text), "dit": share(model)}}
with torch.no_grad():
    context = text(x)
    for one in FSDP.fsdp_modules(text):
        _free_storage(one._handle.flat_param.data)
    del text, one
    gc.collect()
    for _ in range(3):
        x = x - 0.1 * model(x + context.float())
if dist.get_rank() == 0:
    print(json.dumps(counted))
"""
TRAIN = f"""{MODELS}
model = shard(WanModel(3), use_orig_params=sys.argv[1] == "True")
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(3):
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
if dist.get_rank() == 0:
    print(json.dumps({{"dit": share(model)}}))
"""
AT_PEAKS = """
WITH held AS (
    SELECT rank, seq, span_id, SUM(active) OVER (PARTITION BY rank ORDER BY seq) AS bytes FROM held_changes()
)
SELECT held.rank, spans.stage, ARG_MAX(held.seq, held.bytes) AS seq
FROM held INNER JOIN spans ON held.rank = spans.rank AND held.span_id = spans.span_id
GROUP BY held.rank, spans.stage
"""
"""When most is held, in each stage of each rank."""


def recorded(start: Start, text: str, *args: object) -> tuple[Done, dict[str, int]]:
    done = start(*TORCHRUN, "-m", *RECORD[2:], "main.py", *args, files={"main.py": text})
    assert done.code == 0, done.err
    assert "not known" not in done.err
    assert [row["is_exact"] for row in done.ask("replay_check")] == [True, True]
    counted: dict[str, int] = json.loads(done.out)
    return done, counted


def alive(done: Done) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """What is alive when most is held, by rank and stage."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in done.ask(f"WITH moments AS ({AT_PEAKS}) FROM tensors_alive(moments)"):
        found.setdefault((row["rank"], row["stage"]), []).append(row)
    return found


def total(rows: list[dict[str, Any]], **wanted: str) -> int:
    return sum(row["size_bytes"] for row in rows if all(row[key] == value for key, value in wanted.items()))


def check_named(done: Done) -> None:
    """At the peak of every stage, all but a hundredth of the bytes has a component; what the program makes has none."""
    for place, rows in alive(done).items():
        named = sum(row["size_bytes"] for row in rows if row["component"] and row["category"])
        assert named >= 0.99 * total(rows), place
        assert all(row["path"] is not None for row in rows), place
    assert all(row["path"] for row in done.ask("peak_moment"))


def test_two_networks_that_generate_as_wan_does(start: Start) -> None:
    done, counted = recorded(start, GENERATE)
    check_named(done)
    base = {(row["rank"], row["component"]): row["base_bytes"] for row in done.ask("base_memory")}
    assert base == {(rank, name): size for rank in (0, 1) for name, size in counted.items()}
    places = alive(done)
    for rank in (0, 1):
        # The first network was given back, all but what was gathered of its own last: torch keeps that.
        denoise = places[rank, "denoise"]
        assert total(denoise, category="weight", component="t5") == 0
        assert total(denoise, category="weight", component="dit") == counted["dit"]
        assert total(denoise, category="communication", component="dit") > 0
        text = places[rank, "encode.text"]
        assert total(text, category="weight") == counted["t5"] + counted["dit"]
        assert total(text, category="communication", component="t5") > 0
        # Before it is sharded, every rank has the whole of it.
        sharding = places[rank, "residency.shard"]
        assert total(sharding, category="weight", component="dit") > 1.9 * counted["dit"]
        assert total(sharding, category="activation") < 0.01 * total(sharding)


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_a_training(start: Start, use_orig_params: bool) -> None:
    done, counted = recorded(start, TRAIN, use_orig_params)
    check_named(done)
    share, places = counted["dit"], alive(done)
    for rank in (0, 1):
        step = places[rank, "optimizer"]
        assert total(step, category="weight") == share
        assert total(step, category="gradient") == share
        assert total(step, category="communication") == 0
        assert 1.9 * share <= total(step, category="optimizer") <= 2 * share
        backward = places[rank, "backward"]
        assert total(backward, category="weight") == share
        # A block that is gathered, and the gradient of a whole block on its way.
        assert total(backward, category="communication") > share / 3
    bytes_of = {row["component"]: row["base_bytes"] for row in done.ask("base_memory")}
    assert bytes_of == {"dit": share}
