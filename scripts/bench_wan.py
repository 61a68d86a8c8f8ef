"""wan/ beside diffusers on one GPU: time and memory of a DiT forward, a VAE decode and whole runs.

    python scripts/bench_wan.py                     # everything, about 25 minutes on one H200
    python scripts/bench_wan.py dit-14B run-1.3B    # some groups
    python scripts/bench_wan.py "dit 1.3B 480P" "dit 1.3B 480P, diffusers"      # some cases
    python scripts/bench_wan.py --list

Every case runs in a process of its own, so that no context, cache or fragment of one is counted for the next. Weights
are random, of the true shapes: memory and speed are true, the picture is noise. Columns, GiB of 1024^3 bytes:

    weights         what the network under test holds before it runs; not for whole runs, where networks come and go
    allocated       peak of torch.cuda.max_memory_allocated()
    reserved        peak of torch.cuda.max_memory_reserved()
    device used     peak of what nvidia-smi would show for the whole device, sampled every 2 ms
    seconds         median of the timed calls after one warm-up; for whole runs, of one denoise step

The last lines repeat the table with the ratio to diffusers in the same run, as Markdown; --json FILE keeps it all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import device_bytes, measure_on_gpu, peaks, random_dit

if TYPE_CHECKING:
    from wan.levers import Precision, VaeDtype, WeightsDtype

GIB = 2**30
RESULT = "result: "
FP8 = {"weights_dtype": "fp8", "matmul": "fp8", "attention_kernel": "fa3_fp8"}
# name -> (group, function name, arguments). The part before the first comma is shared with the diffusers case to
# compare.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dit 14B 720P": ("dit-14B", "our_dit", {"task": "t2v-14B"}),
    "dit 14B 720P, attention_slicing": ("dit-14B", "our_dit", {"task": "t2v-14B", "attention_slicing": True}),
    "dit 14B 720P, fp8 weights": ("dit-14B", "our_dit", {"task": "t2v-14B", "weights_dtype": "fp8"}),
    "dit 14B 720P, fp8 products": (
        "dit-14B", "our_dit", {"task": "t2v-14B", "weights_dtype": "fp8", "matmul": "fp8"},
    ),
    "dit 14B 720P, no fused kernels": ("dit-14B", "our_dit", {"task": "t2v-14B", "fused_kernels": False}),
    # auto takes FlashAttention where it is installed; sdpa is what ran before there was a choice.
    "dit 14B 720P, sdpa": ("dit-14B", "our_dit", {"task": "t2v-14B", "attention_kernel": "sdpa"}),
    "dit 14B 720P, everything fp8": (
        "dit-fp8", "our_dit",
        {"task": "t2v-14B", **FP8},
    ),
    "dit 14B 720P, fa3_fp8": ("dit-fp8", "our_dit", {"task": "t2v-14B", "attention_kernel": "fa3_fp8"}),
    "dit 14B 720P, every lever off": (
        "dit-levers", "our_dit",
        {"task": "t2v-14B", "fused_kernels": False, "ffn_chunks": 1, "rope_chunks": 1},
    ),
    "dit 14B 720P, rope_chunks only": (
        "dit-levers", "our_dit", {"task": "t2v-14B", "fused_kernels": False, "ffn_chunks": 1},
    ),
    "dit 14B 720P, diffusers": ("dit-14B", "their_dit", {"task": "t2v-14B"}),
    "dit 1.3B 480P": ("dit-1.3B", "our_dit", {"task": "t2v-1.3B"}),
    "dit 1.3B 480P, attention_slicing": ("dit-1.3B", "our_dit", {"task": "t2v-1.3B", "attention_slicing": True}),
    "dit 1.3B 480P, fp8 products": (
        "dit-1.3B", "our_dit", {"task": "t2v-1.3B", "weights_dtype": "fp8", "matmul": "fp8"},
    ),
    "dit 1.3B 480P, sdpa": ("dit-1.3B", "our_dit", {"task": "t2v-1.3B", "attention_kernel": "sdpa"}),
    "dit 1.3B 480P, everything fp8": (
        "dit-fp8", "our_dit",
        {"task": "t2v-1.3B", **FP8},
    ),
    "dit 1.3B 480P, fa3_fp8": ("dit-fp8", "our_dit", {"task": "t2v-1.3B", "attention_kernel": "fa3_fp8"}),
    "dit 1.3B 480P, fp32": ("dit-1.3B", "our_dit", {"task": "t2v-1.3B", "precision": "fp32"}),
    "dit 1.3B 480P, diffusers": ("dit-1.3B", "their_dit", {"task": "t2v-1.3B"}),
    "vae decode 720P": ("vae", "our_decode", {}),
    "vae decode 720P, 1 slab": ("vae", "our_decode", {"slabs": 1}),
    "vae decode 720P, 8 slabs": ("vae", "our_decode", {"slabs": 8}),
    "vae decode 720P, diffusers": ("vae", "their_decode", {}),
    "vae decode 720P, bf16": ("vae", "our_decode", {"dtype": "bf16"}),
    "vae encode 720P, bf16": ("vae", "our_encode", {"dtype": "bf16"}),
    "vae encode 720P": ("vae", "our_encode", {}),
    "vae encode 720P, diffusers": ("vae", "their_encode", {}),
    "run 14B 720P, resident": ("run-14B", "our_run", {"task": "t2v-14B", "load_strategy": "block"}),
    "run 14B 720P, stream": ("run-14B", "our_run", {"task": "t2v-14B", "load_strategy": "stream"}),
    "run 14B 720P, every lever": (
        "run-14B", "our_run",
        {"task": "t2v-14B", "load_strategy": "stream", "attention_slicing": True, "ffn_chunks": 16, "vae_slabs": 8},
    ),
    "run 1.3B 480P, resident": ("run-1.3B", "our_run", {"task": "t2v-1.3B", "load_strategy": "block"}),
    "run 1.3B 480P, stream": ("run-1.3B", "our_run", {"task": "t2v-1.3B", "load_strategy": "stream"}),
    "run 1.3B 480P, every lever": (
        "run-1.3B", "our_run",
        {"task": "t2v-1.3B", "load_strategy": "stream", "attention_slicing": True, "ffn_chunks": 16, "vae_slabs": 8},
    ),
    "run 14B 720P, fp8": ("run-fp8", "our_run", {"task": "t2v-14B", "load_strategy": "block", **FP8}),
    "run 14B 720P, fp8, every lever": (
        "run-fp8", "our_run",
        {"task": "t2v-14B", "load_strategy": "stream", "attention_slicing": True, "ffn_chunks": 16, "vae_slabs": 8,
         **FP8},
    ),
    # 40 steps of i2v-14B are what LightX2V publishes: encode + 40 x step + decode is computed from these.
    "run i2v-14B 720P, exact": ("run-i2v", "our_run", {"task": "i2v-14B", "load_strategy": "stream", "steps": 4}),
    "run i2v-14B 720P, fp8": (
        "run-i2v", "our_run", {"task": "i2v-14B", "load_strategy": "block", "steps": 4, **FP8},
    ),
    **{
        f"run {task}, stream": ("run-tasks", "our_run", {"task": task, "load_strategy": "stream", "steps": 2})
        for task in ("t2i-14B", "i2v-14B", "flf2v-14B", "vace-1.3B", "vace-14B")
    },
}  # fmt: skip


# ---- measuring ---------------------------------------------------------------------------------------------


def measure(call: Callable[[], object], num_timed: int) -> dict[str, float]:
    """One line of the table, in GiB and seconds: a warm-up, and the median of `num_timed` calls."""
    import torch

    weights, device_used, seconds = measure_on_gpu(call, num_timed)
    peak = torch.cuda.max_memory_allocated()
    return {
        "weights": weights / GIB,
        "above weights": (peak - weights) / GIB,
        "allocated": peak / GIB,
        "reserved": torch.cuda.max_memory_reserved() / GIB,
        "device used": device_used / GIB,
        "seconds": seconds,
    }


# ---- cases -------------------------------------------------------------------------------------------------


def latent_grid(task: str) -> tuple[int, int, int]:
    """T', h, w of 81 frames at the task's larger usual size."""
    return (21, 60, 104) if "1.3B" in task else (21, 90, 160)


def our_dit(
    task: str, precision: "Precision" = "bf16", weights_dtype: "WeightsDtype" = "precision", **levers: Any
) -> dict[str, float]:
    """One forward pass of WanDit."""
    import torch

    from wan.levers import Levers

    part = random_dit(task, Levers(**levers), precision=precision, weights_dtype=weights_dtype)
    latents = torch.randn(1, 16, *latent_grid(task), device="cuda")
    text = torch.randn(1, 512, 4096, device="cuda", dtype=torch.bfloat16)
    moment = torch.tensor([500.0], device="cuda")
    with torch.no_grad(), part.on_device() as dit:
        return measure(lambda: dit(latents, moment, text), 2 if "14B" in task else 6)


def their_dit(task: str) -> dict[str, float]:
    """One forward pass of diffusers' WanTransformer3DModel, bf16, its own settings."""
    import torch
    from diffusers import WanTransformer3DModel

    from wan.config import TASKS

    config = TASKS[task].dit
    with torch.device("meta"):
        dit = WanTransformer3DModel(
            num_attention_heads=config.num_heads, attention_head_dim=config.head_dim, ffn_dim=config.ffn_dim,
            num_layers=config.num_layers, cross_attn_norm=True,
        )  # fmt: skip
    dit = fill(dit.to(torch.bfloat16))
    latents = torch.randn(1, 16, *latent_grid(task), device="cuda", dtype=torch.bfloat16)
    text = torch.randn(1, 512, 4096, device="cuda", dtype=torch.bfloat16)
    moment = torch.tensor([500.0], device="cuda")
    with torch.no_grad():
        return measure(lambda: dit(latents, moment, text, return_dict=False), 2 if "14B" in task else 6)


def fill(module: Any) -> Any:
    """Random values on the GPU for a module built on meta; buffers that a constructor computes are made again."""
    import torch

    buffers = dict(module.named_buffers())
    module.to_empty(device="cuda")
    for parameter in module.parameters():
        parameter.data.normal_(std=0.02)
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        setattr(
            module.get_submodule(owner), leaf, torch.rand(buffer.shape, device="cuda", dtype=buffer.dtype)
        )
    return module.eval().requires_grad_(False)


def our_vae(*, encoder: bool, dtype: "VaeDtype" = "fp32") -> Any:
    """Half a WanVae on the GPU."""
    from wan.config import VaeConfig
    from wan.networks.dtypes import DTYPES
    from wan.networks.vae.network import WanVae
    from wan.weights.fill import load, on_meta, random_vae

    vae = on_meta(lambda: WanVae(VaeConfig(), encoder=encoder, decoder=not encoder), DTYPES[dtype])
    load(vae, random_vae(), "cuda")
    return vae


def our_decode(slabs: int = 0, dtype: "VaeDtype" = "fp32") -> dict[str, float]:
    """81 frames of 1280*720 out of latents, in fp32 exactly."""
    import torch

    vae = our_vae(encoder=False, dtype=dtype)
    latents = torch.randn(16, *latent_grid("14B"), device="cuda")
    with torch.no_grad():
        return measure(lambda: vae.decode(latents, slabs=slabs), 2)


def our_encode(slabs: int = 0, dtype: "VaeDtype" = "fp32") -> dict[str, float]:
    """81 frames of 1280*720 from host memory into latents, in fp32 exactly."""
    import torch

    vae = our_vae(encoder=True, dtype=dtype)
    video = torch.rand(3, 81, 720, 1280) * 2 - 1
    with torch.no_grad():
        return measure(lambda: vae.encode(video, slabs=slabs), 2)


def their_vae() -> Any:
    """diffusers' AutoencoderKLWan on the GPU, fp32, no tiling."""
    import torch
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan()
    return fill(vae)


def their_decode() -> dict[str, float]:
    """The same by diffusers, without tiles, because it blends tiles and so is not exact."""
    import torch

    vae = their_vae()
    latents = torch.randn(1, 16, *latent_grid("14B"), device="cuda")
    with torch.no_grad():
        return measure(lambda: vae.decode(latents, return_dict=False)[0].cpu(), 2)


def their_encode() -> dict[str, float]:
    """The same by diffusers."""
    import torch

    vae = their_vae()
    video = torch.rand(1, 3, 81, 720, 1280) * 2 - 1
    with torch.no_grad():
        return measure(lambda: vae.encode(video.cuda()).latent_dist.mode(), 2)


def our_run(
    task: str, load_strategy: str, steps: int = 3, weights_dtype: str = "precision", **levers: Any
) -> dict[str, float]:
    """From prompt to video, T5 on the GPU; the time is one denoise step (two forward passes)."""
    import torch

    from wan.config import TASKS
    from wan.levers import Levers
    from wan.pipeline import Pipeline, Request
    from wan.spans import listening

    pipeline = Pipeline(
        TASKS[task],
        ckpt_dir=None,
        device="cuda",
        load_strategy=load_strategy,
        weights_dtype=weights_dtype,  # type: ignore[arg-type]
        levers=Levers(**levers),  # type: ignore[arg-type]
    )
    moments: list[float] = []
    stages = StagePeaks()

    def on_step(step: int, total: int) -> None:
        torch.cuda.synchronize()
        moments.append(time.perf_counter())

    torch.cuda.init()
    start = time.perf_counter()
    with peaks(device_bytes) as most, listening(stages):
        request = Request(prompt="a red fox in the snow", steps=steps, **inputs(task))
        video = pipeline.generate(request, on_step)
    assert video.shape[1] == TASKS[task].frame_num and bool(torch.isfinite(video).all())
    seconds = statistics.median([b - a for a, b in zip(moments, moments[1:], strict=False)])
    return {
        "allocated": stages.highest("allocated"),
        "reserved": stages.highest("reserved"),
        "device used": most["device used"] / GIB,
        "seconds": seconds,
        "whole run s": time.perf_counter() - start,
        **stages.figures,
    }


def inputs(task: str) -> dict[str, Any]:
    """What a task starts from besides the prompt, made of noise, at the size of its videos."""
    import torch

    picture = torch.rand(3, 720, 1280) * 2 - 1
    kind = task.split("-")[0]
    if kind == "i2v":
        return {"image": picture}
    if kind == "flf2v":
        return {"first_frame": picture, "last_frame": -picture}
    if kind == "vace":
        height, width = (480, 832) if "1.3B" in task else (720, 1280)
        video, mask = torch.rand(3, 81, height, width) * 2 - 1, torch.ones(1, 81, height, width)
        return {"src_video": video, "src_mask": mask, "src_ref_images": (picture,)}
    return {}


class StagePeaks:
    """Peaks of allocated and reserved memory, and the time, of each top-level stage; a spans.Listener."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._depth = 0

    def highest(self, kind: str) -> float:
        """The highest of all stages, GiB."""
        return max(value for name, value in self.figures.items() if name.endswith(kind))

    def enter(self, name: str, attributes: object) -> None:
        """A span begins; the outermost ones are stages."""
        import torch

        if self._depth == 0:
            torch.cuda.reset_peak_memory_stats()
            self._start = time.perf_counter()
        self._depth += 1

    def exit(self, name: str, failed: bool) -> None:
        """A span ends."""
        import torch

        self._depth -= 1
        if self._depth == 0:
            self._keep(f"{name} allocated", torch.cuda.max_memory_allocated() / GIB)
            self._keep(f"{name} reserved", torch.cuda.max_memory_reserved() / GIB)
            self.figures[f"{name} s"] = self.figures.get(f"{name} s", 0.0) + time.perf_counter() - self._start

    def _keep(self, name: str, value: float) -> None:
        self.figures[name] = max(self.figures.get(name, 0.0), value)


# ---- running and reporting ---------------------------------------------------------------------------------


def run_case(name: str) -> dict[str, Any]:
    """The case in a process of its own; a failure is a row too."""
    environment = dict(os.environ)
    if "PYTORCH_ALLOC_CONF" not in environment:
        environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    process = subprocess.run(
        [sys.executable, __file__, "--case", name],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    for line in process.stdout.splitlines():
        if line.startswith(RESULT):
            return {"case": name, **json.loads(line.removeprefix(RESULT))}
    sys.stderr.write(process.stderr[-3000:])
    return {
        "case": name,
        "failed": process.stderr.strip().splitlines()[-1] if process.stderr else "no output",
    }


def versions() -> str:
    """What the numbers depend on."""
    import diffusers
    import torch

    cudnn = torch.backends.cudnn.version()
    return (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}, "
        f"diffusers {diffusers.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; the ratio is to the diffusers case of the same name, in the same run."""
    times = {found["case"]: found.get("seconds") for found in rows}
    lines = [
        "| case | weights | above weights | allocated | reserved | device used | seconds | x diffusers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in rows:
        if "failed" in found:
            lines.append(f"| {found['case']} | failed: {found['failed']} |")
            continue
        other = times.get(found["case"].split(",")[0] + ", diffusers")
        ratio = f"{found['seconds'] / other:.3f}" if other else "-"
        keys = ("weights", "above weights", "allocated", "reserved", "device used")
        figures = " | ".join(f"{found[key]:.2f}" if key in found else "-" for key in keys)
        lines.append(f"| {found['case']} | {figures} | {found['seconds']:.3f} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Run the groups named, or all."""
    groups = list(dict.fromkeys(group for group, _, _ in CASES.values()))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(groups)}; or cases")
    parser.add_argument("--case", choices=list(CASES), help="run one case in this process")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    options = parser.parse_args()
    if options.case:
        _, function, arguments = CASES[options.case]
        print(RESULT + json.dumps(globals()[function](**arguments)))
        return
    asked = options.groups or groups
    chosen = [name for name, (group, _, _) in CASES.items() if group in asked or name in asked]
    if options.list:
        print("\n".join(chosen))
        return
    rows = []
    for name in chosen:
        start = time.perf_counter()
        rows.append(run_case(name))
        print(f"{json.dumps(rows[-1])}  [{time.perf_counter() - start:.0f} s]", flush=True)
        if options.json:
            options.json.write_text(
                json.dumps({"versions": versions(), "rows": rows}, indent=1), encoding="utf-8"
            )
    print(f"\n{versions()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
