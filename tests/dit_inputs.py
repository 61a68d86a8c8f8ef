"""What a DiT is given: noise, the same for the same configuration, batch and shape."""

import torch
from torch import Tensor

from wan.config import DitConfig


def inputs(config: DitConfig, batch: int = 2, shape: tuple[int, int, int] = (3, 6, 8)) -> dict[str, Tensor]:
    """Arguments of WanDit by name; shape: T', h, w of the latents."""
    generator = torch.Generator().manual_seed(1)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    made = {
        "latents": noise(batch, 16, *shape),
        "time": torch.tensor([700.0, 31.0])[:batch],
        "text": noise(batch, config.text_len, config.text_dim),
    }
    if config.has_image_context:
        made["image_latents"] = noise(batch, 20, *shape)
        made["image_states"] = noise(batch, config.image_len, config.image_dim)
    if config.model_type == "vace":
        made["control"] = noise(batch, config.vace_in_dim, *shape)
    return made
