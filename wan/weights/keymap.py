"""Where each parameter of ours lies in the official files: under which key, as which part of it, in which dtype.

    text_origin("blocks.3.layer.1.DenseReluDense.wo.weight").key      # "blocks.3.ffn.fc2.weight"

The DiT and the VAE carry the official names. T5 and CLIP are built from transformers' blocks, whose names and divisions
of tensors differ; this file is the only one that knows both sides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What one parameter of ours is made of: part `part` of `num_parts` (by rows) of an official tensor."""

    key: str
    part: int = 0
    num_parts: int = 1
    num_leading: int = 0
    """Axes of size 1 that the official tensor has in front of ours."""
    dtype: torch.dtype = torch.float32
    """The dtype that the official file stores."""

    def official_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the official tensor, given the `shape` of our parameter."""
        if self.num_parts > 1:
            shape = torch.Size((shape[0] * self.num_parts, *shape[1:]))
        return torch.Size((1,) * self.num_leading + tuple(shape))

    def cut(self, official: torch.Tensor) -> torch.Tensor:
        """Our parameter as a view of the official tensor (same dtype, no copy)."""
        rows = official.view(official.shape[self.num_leading :])
        return rows.chunk(self.num_parts)[self.part] if self.num_parts > 1 else rows


KeyMap = Callable[[str], Origin]

# Official prefix of each part of a transformers block. The first match counts, so the longer of our names come first.
_TEXT_BLOCK = {
    "layer.0.SelfAttention.relative_attention_bias.": "pos_embedding.embedding.",
    "layer.0.SelfAttention.": "attn.",
    "layer.0.layer_norm.": "norm1.",
    "layer.1.DenseReluDense.wi_0.": "ffn.gate.0.",
    "layer.1.DenseReluDense.wi_1.": "ffn.fc1.",
    "layer.1.DenseReluDense.wo.": "ffn.fc2.",
    "layer.1.layer_norm.": "norm2.",
}
_CLIP_BLOCK = {
    "self_attn.q_proj.": ("attn.to_qkv.", 0),
    "self_attn.k_proj.": ("attn.to_qkv.", 1),
    "self_attn.v_proj.": ("attn.to_qkv.", 2),
    "self_attn.out_proj.": ("attn.proj.", None),
    "layer_norm1.": ("norm1.", None),
    "layer_norm2.": ("norm2.", None),
    "mlp.fc1.": ("mlp.0.", None),
    "mlp.fc2.": ("mlp.2.", None),
}
_CLIP_OUTSIDE = {
    "class_embedding": Origin(key="visual.cls_embedding", num_leading=2),
    "position_embedding.weight": Origin(key="visual.pos_embedding", num_leading=1),
}


def dit_origin(name: str) -> Origin:
    """The DiT is stored under its own names in fp32; what VACE adds to it was published in bf16."""
    return Origin(key=name, dtype=torch.bfloat16 if name.startswith("vace_") else torch.float32)


def vae_origin(name: str) -> Origin:
    """The VAE is stored under its own names, in fp32."""
    return Origin(key=name)


def text_origin(name: str) -> Origin:
    """Origin of parameter `name` of text.TextEncoder in the official T5 file (bf16)."""
    return Origin(key=_text_key(name), dtype=torch.bfloat16)


def _text_key(name: str) -> str:
    if not name.startswith("blocks."):
        return name
    _, index, inner = name.split(".", 2)
    ours, official = next(pair for pair in _TEXT_BLOCK.items() if inner.startswith(pair[0]))
    return f"blocks.{index}.{official}{inner.removeprefix(ours)}"


def clip_origin(name: str) -> Origin:
    """Origin of parameter `name` of image.ImageEncoder in the official CLIP file (fp32)."""
    if not name.startswith("blocks."):
        return _CLIP_OUTSIDE.get(name, Origin(key=f"visual.{name}"))
    _, index, inner = name.split(".", 2)
    ours, (official, part) = next(pair for pair in _CLIP_BLOCK.items() if inner.startswith(pair[0]))
    key = f"visual.transformer.{index}.{official}{inner.removeprefix(ours)}"
    return Origin(key=key) if part is None else Origin(key=key, part=part, num_parts=3)
