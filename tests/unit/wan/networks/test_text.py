"""The T5 encoder against the formulae on the official keys, and with its table on another device."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from wan.config import TASKS, TextConfig
from wan.networks.text import (
    TextEncoder,
    build_text_encoder,
    encode_text,
)
from wan.spans import Attribute, listening
from wan.weights.fill import (
    RandomSource,
    expected_shapes,
    load,
    materialize,
    random_text,
)
from wan.weights.keymap import text_origin
from wan.weights.tokenizer import load_tokenizer

CONFIG = TASKS["t2v-tiny"].text
# Longer than max_distance, so that every bucket of the position bias is used.
LONG = TextConfig(vocab_size=300, d_model=24, d_kv=8, d_ff=48, num_layers=3, num_heads=4, text_len=300)


def official_weights(config: TextConfig) -> dict[str, Tensor]:
    """Random values under the official keys, as RandomSource gives them for a folder (stored in bf16)."""
    weights = {}
    for name, shape in expected_shapes(build_text_encoder(config, torch.float32)).items():
        origin = text_origin(name)
        stored = torch.empty(origin.official_shape(shape), dtype=origin.dtype)
        RandomSource().read_into(origin.key, stored)
        weights[origin.key] = stored.float()
    return weights


def reference_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def reference_bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    """Half of the buckets look back, half ahead; of each, half are exact, the rest logarithmic."""
    half = num_buckets // 2
    exact = half // 2
    size = abs(distance)
    if size >= exact:
        growth = math.log(size / exact) / math.log(max_distance / exact)
        size = min(half - 1, exact + int(growth * (half - exact)))
    return size + (half if distance > 0 else 0)


def reference_encoder(weights: dict[str, Tensor], ids: Tensor, mask: Tensor, config: TextConfig) -> Tensor:
    """UMT5 from its formulae, one prompt: ids [L], mask [L] -> [L, D]."""
    num_tokens = len(ids)
    buckets = torch.tensor([
        [reference_bucket(key - query, config.num_buckets, config.max_distance) for key in range(num_tokens)]
        for query in range(num_tokens)
    ])  # fmt: skip
    x = weights["token_embedding.weight"][ids]
    for index in range(config.num_layers):
        block = {
            key.removeprefix(f"blocks.{index}."): value
            for key, value in weights.items()
            if key.startswith(f"blocks.{index}.")
        }
        y = reference_norm(x, block["norm1.weight"])
        q, k, v = (
            (y @ block[f"attn.{name}.weight"].T).view(num_tokens, config.num_heads, config.d_kv)
            for name in "qkv"
        )
        scores = torch.einsum("qnd,knd->nqk", q, k)
        scores = scores + block["pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        scores = scores.masked_fill(mask == 0, -torch.inf)
        attended = torch.einsum("nqk,knd->qnd", scores.softmax(-1), v)
        x = x + attended.reshape(num_tokens, -1) @ block["attn.o.weight"].T
        y = reference_norm(x, block["norm2.weight"])
        gate = functional.gelu(y @ block["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (y @ block["ffn.fc1.weight"].T)) @ block["ffn.fc2.weight"].T
    return reference_norm(x, weights["norm.weight"]) * mask[:, None]


def loaded(config: TextConfig, dtype: torch.dtype = torch.float32) -> TextEncoder:
    encoder = build_text_encoder(config, dtype)
    load(encoder, random_text(), "cpu")
    return encoder


def test_an_empty_prompt_is_one_token_and_zeros() -> None:
    states = encode_text(loaded(CONFIG), load_tokenizer(None, CONFIG), [""], "cpu")

    assert states.shape == (1, CONFIG.text_len, CONFIG.d_model)
    assert states[0, 0].abs().min() > 0
    assert torch.equal(states[0, 1:], torch.zeros(CONFIG.text_len - 1, CONFIG.d_model))


@pytest.mark.parametrize("config", [CONFIG, LONG], ids=["tiny", "long"])
def test_equals_the_formulae_on_the_official_keys(config: TextConfig) -> None:
    prompts = ["a red fox", "\u72d0\u72f8 jumps over " * 30]
    ids, mask = load_tokenizer(None, config)(prompts)

    states = loaded(config)(ids, mask)

    weights = official_weights(config)
    expected = torch.stack([
        reference_encoder(weights, ids[row], mask[row], config) for row in range(len(prompts))
    ])  # fmt: skip
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


def test_bf16_scores_go_through_a_softmax_in_fp32() -> None:
    attention = loaded(CONFIG, torch.bfloat16).blocks[0].layer[0].SelfAttention
    x = torch.randn(1, 7, CONFIG.d_model, generator=torch.Generator().manual_seed(0)).bfloat16()

    output = attention(x)[0]

    def heads(linear: torch.nn.Linear) -> Tensor:
        return linear(x).view(1, 7, CONFIG.num_heads, CONFIG.d_kv).transpose(1, 2)

    scores = heads(attention.q) @ heads(attention.k).transpose(2, 3) + attention.compute_bias(7, 7)
    attended = scores.float().softmax(-1).bfloat16() @ heads(attention.v)
    assert torch.equal(output, attention.o(attended.transpose(1, 2).reshape(1, 7, -1)))


def test_the_full_size_has_the_published_number_of_parameters() -> None:
    encoder = build_text_encoder(TASKS["t2v-14B"].text, torch.bfloat16)

    assert sum(parameter.numel() for parameter in encoder.parameters()) == 5_680_910_336
    assert {(p.device.type, p.dtype, p.requires_grad) for p in encoder.parameters()} == {
        ("meta", torch.bfloat16, False)
    }
    assert list(encoder.buffers()) == []
    assert len(encoder.blocks) == 24


def test_blocks_are_spans() -> None:
    heard: list[tuple[str, dict[str, Attribute]]] = []

    class Listener:
        def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
            heard.append((name, attributes))

        def exit(self, name: str, failed: bool) -> None:
            pass

    encoder, tokenizer = loaded(CONFIG), load_tokenizer(None, CONFIG)
    with listening(Listener()):
        encode_text(encoder, tokenizer, ["x"], "cpu")

    assert heard == [("t5.block", {"index": 0}), ("t5.block", {"index": 1})]


def test_the_table_may_stay_on_another_device() -> None:
    # GIVEN an encoder of which only the table is on the CPU
    encoder = build_text_encoder(CONFIG, torch.bfloat16)
    materialize(encoder.token_embedding, random_text(), "cpu", prefix="token_embedding.")
    # WHEN it runs
    states = encoder(*load_tokenizer(None, CONFIG)(["x", "y"]))
    # THEN the states are where the other weights are
    assert (states.shape, states.dtype) == ((2, CONFIG.text_len, CONFIG.d_model), torch.bfloat16)
    assert (states.device.type, encoder.token_embedding.weight.device.type) == ("meta", "cpu")


def test_runs_under_fake_tensors() -> None:
    full = TASKS["t2v-14B"].text
    with FakeTensorMode():
        states = encode_text(loaded(full, torch.bfloat16), load_tokenizer(None, full), ["x"], "cpu")

    assert (states.shape, states.dtype) == ((1, 512, 4096), torch.bfloat16)
