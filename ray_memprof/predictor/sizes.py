"""Sizes that a configuration decides, before anything runs: of the latents, and of the slabs of the VAE.

latent_shape(config)        # (16, 21, 60, 104)
"""

from ray_memprof.config.run_config import RunConfig
from wan.config import TASKS, sides_of
from wan.networks.vae.slabs import DECODE_FRAMES, choose_slabs


def latent_shape(config: RunConfig) -> tuple[int, int, int, int]:
    """Of the latents: channels, frames, height, width. A picture of a ratio of its own is taken as one of the size."""
    task, generation = TASKS[config.model.task], config.generation
    size = generation.size or task.sizes[0]
    num_frames = task.frame_num if generation.frame_num is None else generation.frame_num
    width, height = sides_of(size)
    return task.latent_shape(width, height, num_frames)


def chosen_slabs(config: RunConfig) -> int:
    """Slabs in which a chunk is decoded where the user leaves it open."""
    _, _, height, width = latent_shape(config)
    vae = TASKS[config.model.task].vae
    frame_bytes = vae_number_bytes(config) * vae.base_dim * height * width * vae.stride[1] ** 2
    return choose_slabs(frame_bytes, DECODE_FRAMES)


def vae_number_bytes(config: RunConfig) -> int:
    """Of each number in the weights and frames of the VAE."""
    return {"fp32": 4, "bf16": 2}[config.optimization.vae_dtype]


def num_slabs(config: RunConfig) -> int:
    """Slabs in which a chunk is decoded."""
    return config.optimization.vae_slabs or chosen_slabs(config)
