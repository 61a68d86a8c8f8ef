"""How a prompt is cleaned and cut into tokens, and which tokenizers of a folder are refused."""

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from wan.config import TASKS, TextConfig
from wan.errors import WeightsError
from wan.weights.tokenizer import TOKENIZER_DIR, clean_prompt, load_tokenizer

CONFIG = TASKS["t2v-tiny"].text
LONG = TextConfig(vocab_size=300, d_model=24, d_kv=8, d_ff=48, num_layers=3, num_heads=4, text_len=300)


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
