"""Prompts to UMT5 states: the encoder, whose blocks are transformers' own.

    encoder = build_text_encoder(task.text, torch.bfloat16)     # on meta; fill.load fills it
    states = encode_text(encoder, load_tokenizer(ckpt_dir, task.text), ["a fox"], device)   # [1, 512, 4096]

Shapes: B prompts, L tokens (text_len), D d_model.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from wan.config import TextConfig
from wan.spans import span
from wan.weights.fill import on_meta
from wan.weights.tokenizer import Tokenizer


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


def encode_text(
    encoder: TextEncoder, tokenizer: Tokenizer, prompts: Sequence[str], device: torch.device | str
) -> torch.Tensor:
    """States of `prompts`: [B, text_len, d_model] on `device`, zero past the end of each prompt."""
    ids, mask = tokenizer(prompts)
    states: torch.Tensor = encoder(ids, mask)
    return states.to(device)
