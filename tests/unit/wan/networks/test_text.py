"""The T5 encoder against the formulae on the official keys; cleaning; tokens; the table on another device."""

import json
import math
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from wan.config import TASKS, TextConfig
from wan.errors import WeightsError
from wan.networks.text import (
    TOKENIZER_DIR,
    TextEncoder,
    build_text_encoder,
    clean_prompt,
    encode_text,
    load_tokenizer,
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


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("", ""),
        ("  a\n\t b  ", "a b"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
    ],
)
def test_cleaning(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned


def test_byte_tokens() -> None:
    ids, mask = load_tokenizer(None, LONG)(["", "a \u00e9", "x" * 400])

    pad = [0] * 300
    assert ids.tolist() == [
        [1, *pad[1:]],
        [100, 35, 198, 172, 1, *pad[5:]],
        [123] * 299 + [1],
    ]
    assert mask.tolist() == [[1, *pad[1:]], [1] * 5 + pad[5:], [1] * 300]


def write_tokenizer(ckpt_dir: Path, added: int = 0, end: int = 1) -> None:
    """A tokenizer.json of UMT5's kind, with the tokenizer_config.json that published folders have: 262 tokens."""
    vocab = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        ("\u2581fox", -1.0),
        ("!", -3.0),
    ]
    vocab += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    tokenizer.add_tokens([f"<extra_{index}>" for index in range(added)])
    folder = ckpt_dir / TOKENIZER_DIR
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))


def test_the_file_of_the_folder_decides_how_text_is_cut(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)

    ids, mask = load_tokenizer(tmp_path, CONFIG)(["  fox!\u72d0 ", "fox " * 40])

    # The byte fallback of the file is kept: U+72D0 is three bytes, not one unknown token.
    first = [4, 5, 6 + 0xE7, 6 + 0x8B, 6 + 0x90, 1]
    assert ids.tolist() == [first + [0] * 26, [4] * 31 + [1]]
    assert mask.tolist() == [[1] * 6 + [0] * 26, [1] * 32]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)


def test_absent_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_tokenizer(tmp_path, CONFIG)

    assert str(caught.value) == f"no such tokenizer: {tmp_path}/google/umt5-xxl/tokenizer.json"
    assert caught.value.hint == "copy the folder google/umt5-xxl of the official checkpoint"


def test_damaged_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / TOKENIZER_DIR / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:500])

    with pytest.raises(WeightsError) as caught:
        load_tokenizer(tmp_path, CONFIG)

    assert str(caught.value).startswith(f"{path} cannot be read: EOF while parsing")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("added", "end", "highest"),
    [(512 - 262 + 1, 1, 512), (0, 600, 600)],
    ids=["added tokens", "the end of the sequence"],
)
def test_ids_past_the_token_table_are_refused(tmp_path: Path, added: int, end: int, highest: int) -> None:
    write_tokenizer(tmp_path, added=added, end=end)

    with pytest.raises(WeightsError) as caught:
        load_tokenizer(tmp_path, CONFIG)

    assert str(caught.value) == (
        f"{tmp_path / TOKENIZER_DIR / 'tokenizer.json'} gives token ids up to {highest}, "
        "the token table of the task has 512 rows"
    )
    assert caught.value.hint == "copy the folder google/umt5-xxl of the checkpoint that the T5 file is from"


def test_added_tokens_may_fill_the_table(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, added=512 - 262)

    ids, _ = load_tokenizer(tmp_path, CONFIG)(["<extra_249>"])

    assert ids.max().item() == 511
