"""The tokenizer of a checkpoint folder, and how a prompt is cleaned before it is cut into tokens.

    ids, mask = load_tokenizer(ckpt_dir, task.text)(["a fox"])    # [1, 512] each

Shapes: B prompts, L tokens (text_len).
"""

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
import tokenizers
import torch

from wan.config import TextConfig
from wan.errors import WeightsError
from wan.inputs.files import is_absent
from wan.weights.folder import TOKENIZER_PATH, refuse_unusable

TOKENIZER_DIR = "google/umt5-xxl"
_PAD, _EOS, _NUM_SPECIAL = 0, 1, 3

Tokenizer = Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor]]
"""Prompts -> ids [B, L] int64 and mask [B, L] int64 (1 = a token, 0 = padding), on the CPU."""


def clean_prompt(prompt: str) -> str:
    """`prompt` as the model was trained to see it: broken Unicode and HTML entities mended, spaces merged."""
    mended = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", mended).strip()


def load_tokenizer(ckpt_dir: Path | None, config: TextConfig) -> Tokenizer:
    """The tokenizer in the checkpoint folder; without a folder (random weights) a stand-in over bytes.

    Raises:
        WeightsError: the folder has no tokenizer, or one that cannot be read or does not fit the token table.
    """
    if ckpt_dir is None:
        return lambda prompts: _tokenize_bytes(prompts, config.text_len)
    path = ckpt_dir / TOKENIZER_PATH
    if is_absent(path):
        raise WeightsError(
            f"no such tokenizer: {path}", hint=f"copy the folder {TOKENIZER_DIR} of the official checkpoint"
        )
    refuse_unusable(path)
    # Not through AutoTokenizer: transformers 5 rebuilds a tokenizer that is named T5Tokenizer from its vocabulary, and
    # so loses UMT5's byte fallback and its way of splitting. The file itself has what the model was trained with.
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower class
        raise WeightsError(f"{path} cannot be read: {error}", hint="download it again") from error
    # An empty prompt has the ids that the template adds to every prompt.
    highest = max(
        [*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("").ids], default=0
    )
    if highest >= config.vocab_size:
        raise WeightsError(
            f"{path} gives token ids up to {highest}, the token table of the task has {config.vocab_size} rows",
            hint=f"copy the folder {TOKENIZER_DIR} of the checkpoint that the T5 file is from",
        )
    tokenizer.enable_truncation(max_length=config.text_len)
    tokenizer.enable_padding(length=config.text_len, pad_id=_PAD, pad_token="<pad>")
    return lambda prompts: _tokenize(tokenizer, prompts)


def _tokenize(tokenizer: tokenizers.Tokenizer, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    encodings = tokenizer.encode_batch([clean_prompt(prompt) for prompt in prompts])
    ids = torch.tensor([encoding.ids for encoding in encodings])
    return ids, torch.tensor([encoding.attention_mask for encoding in encodings])


def _tokenize_bytes(prompts: Sequence[str], text_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per byte of UTF-8, then the end of the sequence: fits any table of 259 rows."""
    ids = torch.full((len(prompts), text_len), _PAD)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        tokens = [byte + _NUM_SPECIAL for byte in clean_prompt(prompt).encode()[: text_len - 1]] + [_EOS]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids, mask
