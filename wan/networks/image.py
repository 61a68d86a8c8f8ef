"""Images to CLIP states, as i2v and flf2v read them: the output of the second-to-last layer of ViT-H.

    encoder = build_image_encoder(task.clip, torch.float16)     # on meta; fill.load fills it
    states = encoder(preprocess(image, task.clip))              # [B, 3, H, W] in [-1, 1] -> [B, 257, 1280]

Shapes: B images, T tokens (class token first), D hidden_dim.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from wan.config import ClipConfig
from wan.spans import span
from wan.weights.fill import on_meta

# Statistics of the images that CLIP was trained on, per channel, for values in [0, 1].
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder(nn.Module):
    """The image tower without its last layer: that layer and what follows it are never built."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        model = CLIPVisionModel(_vision_config(config))
        # Some releases of transformers keep the tower in an attribute, others are the tower.
        tower = getattr(model, "vision_model", model)
        self.class_embedding: nn.Parameter = tower.embeddings.class_embedding
        self.patch_embedding: nn.Conv2d = tower.embeddings.patch_embedding
        self.position_embedding: nn.Embedding = tower.embeddings.position_embedding
        self.pre_norm: nn.LayerNorm = tower.pre_layrnorm
        self.blocks: nn.ModuleList = tower.encoder.layers

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """States of the images, in the dtype of the weights.

        Args:
            pixels: [B, 3, image_size, image_size], as preprocess() leaves them.

        Returns:
            [B, T, D].
        """
        patches: torch.Tensor = self.patch_embedding(pixels.to(self.patch_embedding.weight))
        class_token = self.class_embedding.expand(len(patches), 1, -1)
        tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
        x: torch.Tensor = self.pre_norm(tokens + self.position_embedding.weight)
        for index, block in enumerate(self.blocks):
            with span("clip.block", index=index):
                x = block(x, attention_mask=None)
        return x


def _vision_config(config: ClipConfig) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=config.hidden_dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers - 1,
        num_attention_heads=config.num_heads,
        patch_size=config.patch_size,
        image_size=config.image_size,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )


def build_image_encoder(config: ClipConfig, dtype: torch.dtype) -> ImageEncoder:
    """The encoder on the meta device, its parameters of `dtype` (the published one runs in fp16)."""
    return on_meta(lambda: ImageEncoder(config), dtype)


def preprocess(images: torch.Tensor, config: ClipConfig) -> torch.Tensor:
    """Images for the encoder: scaled to a square, whatever their shape, and normalised.

    Args:
        images: [B, 3, H, W] in [-1, 1], any float dtype.
        config: gives the side of the square.

    Returns:
        [B, 3, image_size, image_size] fp32 on the device of `images`.
    """
    size = (config.image_size, config.image_size)
    # Without antialiasing, however much an image shrinks: that is what the video model was trained on.
    resized = functional.interpolate(images.float(), size=size, mode="bicubic", align_corners=False)
    mean = torch.tensor(_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(_STD, device=images.device)[:, None, None]
    return (resized * 0.5 + 0.5 - mean) / std


def encode_image(encoder: ImageEncoder, images: torch.Tensor, config: ClipConfig) -> torch.Tensor:
    """States of `images` [B, 3, H, W] in [-1, 1]: [B, T, D] on the device of the encoder, in its dtype."""
    pixels = preprocess(images.to(encoder.patch_embedding.weight.device), config)
    states: torch.Tensor = encoder(pixels)
    return states
