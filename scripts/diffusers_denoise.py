#!/usr/bin/env python3
"""A program that knows nothing of the profiler: diffusers' Wan2.1 1.3B, random weights, a few denoise steps, a decode.

    python scripts/diffusers_denoise.py --steps 2
    torchrun --nproc-per-node 2 scripts/diffusers_denoise.py        # every rank makes its own video
    python -m ray_memprof.launch configs/script.yaml                # the same, recorded, without a change here

It stands for the generate.py of other people. Needs a CUDA device.
"""

import argparse
import os
import sys

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from torch import distributed


def build(size: tuple[int, int, int]) -> tuple[WanTransformer3DModel, AutoencoderKLWan, torch.Tensor]:
    """The 1.3B transformer in bf16, the VAE in fp32, and noise [1, 16, T, H, W]."""
    transformer = WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30
    )
    noise = torch.randn(1, 16, *size, device="cuda")
    return transformer.to("cuda", torch.bfloat16).eval(), AutoencoderKLWan().to("cuda").eval(), noise


@torch.no_grad()
def main() -> None:
    """Denoise, decode, and say how much memory it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--frames", type=int, default=21, help="latent frames; 21 make a video of 81")
    arguments = parser.parse_args()
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("nccl")
    transformer, vae, latents = build((arguments.frames, 60, 104))
    text = torch.randn(1, 512, 4096, device="cuda", dtype=torch.bfloat16)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(arguments.steps, device="cuda")
    for timestep in scheduler.timesteps:
        velocity = transformer(latents.bfloat16(), timestep[None], text, return_dict=False)[0]
        latents = scheduler.step(velocity.float(), timestep, latents, return_dict=False)[0]
    video = vae.decode(latents, return_dict=False)[0]
    peak = torch.cuda.max_memory_allocated() / 2**30
    sys.stdout.write(f"video {tuple(video.shape)}, peak {peak:.2f} GiB allocated\n")
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
