"""Where the time of a DiT block goes, kernel by kernel, on one GPU; torch's profiler counts.

    python scripts/bench_block.py --task t2v-14B                       # 20 seconds on one H200
    python scripts/bench_block.py --task t2v-1.3B --everything-fp8     # weights, products and attention in fp8

The network has --layers blocks of the true width and runs over 81 frames at the task's larger usual size, with random
weights. Few blocks do not heat a GPU: in a whole forward pass, at the power limit, the same kernels take 5 to 10 %
longer. What runs once for a forward pass (embeddings, head) is spread over the blocks. Columns:

    ms          of all calls of the kernel, for one block
    share       of the time of all kernels
    calls       for one block

The last line tells how long no kernel ran, between the first and the last.
"""

import argparse
from collections import Counter
from typing import Any

import torch
from bench_wan import FP8, latent_grid
from measuring import random_dit
from torch.profiler import ProfilerActivity, profile

from wan.config import TASKS
from wan.levers import Levers

TEXT_TASKS = [name for name in TASKS if name.startswith(("t2v", "t2i"))]
"""Tasks whose DiT takes latents and text alone."""
WARM_UPS = 2
SHORTEST_MS = 0.005  # of a block; what takes less is one line


def kernels_of(task: str, num_layers: int, fp8: bool) -> list[Any]:
    """The profiler's events on the device, of one forward pass after the warm-ups."""
    given = dict(FP8) if fp8 else {}
    weights_dtype = given.pop("weights_dtype", "precision")
    dit = TASKS[task].dit
    part = random_dit(task, Levers(**given), weights_dtype=weights_dtype, num_blocks=num_layers)
    latents = torch.randn(1, dit.in_dim, *latent_grid(task), device="cuda")
    text = torch.randn(1, dit.text_len, dit.text_dim, device="cuda", dtype=torch.bfloat16)
    moment = torch.tensor([500.0], device="cuda")
    with torch.no_grad(), part.on_device() as network:
        for _ in range(WARM_UPS):
            network(latents, moment, text)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            network(latents, moment, text)
            torch.cuda.synchronize()
    return [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def table(events: list[Any], num_layers: int) -> list[str]:
    """Lines of Markdown, the longest kernel first, and the gaps between kernels."""
    took: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        took[event.name] += event.time_range.end - event.time_range.start
        calls[event.name] += 1
    whole = sum(took.values())
    lines = ["| kernel | ms | share | calls |", "|---|---|---|---|"]
    short = 0.0
    for name, us in took.most_common():
        ms = us / 1e3 / num_layers
        if ms < SHORTEST_MS:
            short += ms
            continue
        lines.append(f"| `{name[:70]}` | {ms:.3f} | {us / whole:.1%} | {calls[name] / num_layers:g} |")
    lines.append(f"| shorter ones | {short:.3f} | {1e3 * num_layers * short / whole:.1%} | |")
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    idle, until = 0.0, spans[0][0]
    for start, end in spans:
        idle += max(0.0, start - until)
        until = max(until, end)
    return [*lines, f"no kernel ran for {idle / 1e3 / num_layers:.3f} ms of a block"]


def main() -> None:
    """Profile one forward pass and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="t2v-14B", choices=TEXT_TASKS)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--everything-fp8", action="store_true")
    given = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print("\n".join(table(kernels_of(given.task, given.layers, given.everything_fp8), given.layers)))


if __name__ == "__main__":
    main()
