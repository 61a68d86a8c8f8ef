"""Prompts to UMT5 states: cleaning, tokens, and the encoder, whose blocks are transformers' own.

    encoder = build_text_encoder(task.text, torch.bfloat16)     # on meta; fill.load fills it
    states = encode_text(encoder, load_tokenizer(ckpt_dir, task.text), ["a fox"], device)   # [1, 512, 4096]

Shapes: B prompts, L tokens (text_len), D d_model.
"""

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
import tokenizers
import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from wan.config import TextConfig
from wan.errors import WeightsError
from wan.inputs.files import is_absent
from wan.spans import span
from wan.weights.fill import on_meta
from wan.weights.folder import refuse_unusable

TOKENIZER_DIR = "google/umt5-xxl"
TOKENIZER_FILE = "tokenizer.json"
_PAD, _EOS, _NUM_SPECIAL = 0, 1, 3

Tokenizer = Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor]]
"""Prompts -> ids [B, L] int64 and mask [B, L] int64 (1 = a token, 0 = padding), on the CPU."""


class TextEncoder(nn.Module):
    """The UMT5 encoder; its blocks may be filled and emptied one by one.

    The token table may stay on another device than the rest: only the rows of the prompt are moved.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        encoder = UMT5EncoderModel(_umt5_config(config)).encoder
        self.token_embedding: nn.Embedding = encoder.embed_tokens
        self.blocks: nn.ModuleList = encoder.block
        self.norm: nn.Module = encoder.final_layer_norm

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """States of the prompts, on the device of the final norm.

        Args:
            ids: [B, L] int64.
            mask: [B, L], 1 for a token and 0 for padding.

        Returns:
            [B, L, D] in the dtype of the weights, zero where `mask` is 0.
        """
        weight = self.norm.get_parameter("weight")
        x = self.token_embedding(ids.to(self.token_embedding.weight.device)).to(weight.device)
        mask = mask.to(device=x.device, dtype=x.dtype)
        # This is added to the scores, as the position bias is: the lowest number makes the softmax of padding zero.
        bias = (1 - mask)[:, None, None, :] * torch.finfo(x.dtype).min
        for index, block in enumerate(self.blocks):
            with span("t5.block", index=index):
                x = block(x, attention_mask=bias)
        normed: torch.Tensor = self.norm(x)
        return normed * mask[:, :, None]


def _umt5_config(config: TextConfig) -> UMT5Config:
    return UMT5Config(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_kv=config.d_kv,
        d_ff=config.d_ff,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        relative_attention_num_buckets=config.num_buckets,
        relative_attention_max_distance=config.max_distance,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        dropout_rate=0.0,
        use_cache=False,
        # Scores in the dtype of the weights and a softmax that sums in fp32, as the model was trained.
        attn_implementation="eager",  # type: ignore[call-arg]
    )


def build_text_encoder(config: TextConfig, dtype: torch.dtype) -> TextEncoder:
    """The encoder on the meta device, its parameters of `dtype`."""
    return on_meta(lambda: TextEncoder(config), dtype)


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
    path = ckpt_dir / TOKENIZER_DIR / TOKENIZER_FILE
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


def encode_text(
    encoder: TextEncoder, tokenizer: Tokenizer, prompts: Sequence[str], device: torch.device | str
) -> torch.Tensor:
    """States of `prompts`: [B, text_len, d_model] on `device`, zero past the end of each prompt."""
    ids, mask = tokenizer(prompts)
    states: torch.Tensor = encoder(ids, mask)
    return states.to(device)
