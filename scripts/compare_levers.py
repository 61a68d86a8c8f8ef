"""How far a lever takes a video from what it would be: the same seed with and without it, and a table at the end.

    python scripts/compare_levers.py --task t2v-1.3B --weights random --sample_steps 8 --base_seed 0 \
        --lever weights_dtype=fp8 --lever weights_dtype=fp8,matmul=fp8
    python scripts/compare_levers.py --task t2v-14B --ckpt_dir Wan2.1-T2V-14B --base_seed 0 --lever weights_dtype=fp8
    python scripts/compare_levers.py --task t2v-14B --weights random --sample_steps 1 --lever precision=fp32   # of bf16

Each --lever names flags of `python -m wan.generate` with their values, and is a row; all other flags are those of
wan.generate and hold for every run. A lever may be any flag that leaves the shape of the video as it is. Columns:

    latents, relative error   |with - without| / |without| of the latents after the last step
    latents, PSNR             dB; the peak is the range of the latents without the lever
    frames, relative error    of the frames in [-1, 1]
    frames, PSNR              dB; the peak is 2, the range of a frame

With random weights the networks have the true shapes and the picture is noise: such figures tell how much arithmetic
is lost, and not how a video would look. A text encoder with random weights carries a rounding error on until it is as
large as its output, so that `--lever precision=fp32` compares two prompts. What a lever does to the DiT alone:

    python scripts/compare_levers.py --blocks 2 --task t2v-14B --size '832*480' --frame_num 9 --weights random \
        --base_seed 0 --lever weights_dtype=fp8 --lever weights_dtype=fp8,matmul=fp8

compares one forward pass of the first blocks, on the same noise for latents and text, with that of fp32 without a
lever. The first row is the precision of the run without a lever. The tasks t2v and t2i only.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import random_dit

from wan.errors import EXIT_OK, InputError, WanError
from wan.options import FLAGS, Options, describe, parse
from wan.options_check import check
from wan.options_here import FILES

if TYPE_CHECKING:
    from torch import Tensor


SHAPING = ("task", "size", "frame_num", *FILES)
"""Flags that say how large a video is, or name a file that does."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one run made, on the host."""

    latents: "Tensor"
    frames: "Tensor"
    """[3, F, H, W] in [-1, 1], as they would be saved."""


def flags_of(lever: str) -> list[str]:
    """The flags that a --lever stands for: weights_dtype=fp8,matmul=fp8. Raises InputError."""
    flags = []
    for setting in lever.split(","):
        name, equals, value = setting.strip().partition("=")
        if not (name and equals and value):
            raise InputError(
                f"--lever {lever}: {setting!r} is not NAME=VALUE", hint="--lever weights_dtype=fp8"
            )
        if f"--{name}" not in FLAGS.values():
            raise InputError(
                f"--lever {lever}: --{name} is no flag of wan.generate",
                hint="python -m wan.generate --help lists the flags",
            )
        if name in SHAPING:
            raise InputError(
                f"--lever {lever}: --{name} may change the shape of the video, and then nothing can be compared",
                hint=f"give --{name} to all runs",
            )
        flags += [f"--{name}", value]
    return flags


def cases(flags: Sequence[str], levers: Sequence[str]) -> tuple[Options, dict[str, Options]]:
    """The options of the run without levers, and of each run with one, by its name. Raises InputError."""
    without = parse(flags)
    check(without)
    # The seed may have been drawn: it is the same for all.
    seeded = [*flags, "--base_seed", str(without.base_seed)]
    found = {}
    for lever in levers:
        options = parse([*seeded, *flags_of(lever)])
        check(options)
        if options == without:
            raise InputError(
                f"--lever {lever} changes nothing: the run without it has these values",
                hint="name another value",
            )
        found[lever] = options
    return without, found


def with_one_prompt(without: Options, found: dict[str, Options]) -> tuple[Options, dict[str, Options]]:
    """The same, with the prompt extended once where all runs share it: an API may extend it otherwise each time."""
    if not without.use_prompt_extend:
        return without, found
    from wan.generate import make_prompt

    prompt, asked = make_prompt(without), _prompt_settings(without)

    def extended(options: Options) -> Options:
        if _prompt_settings(options) != asked:
            return options
        return replace(options, prompt=prompt, use_prompt_extend=False)

    return extended(without), {lever: extended(options) for lever, options in found.items()}


def _prompt_settings(options: Options) -> list[object]:
    names = (name for name in Options.__dataclass_fields__ if "prompt" in name and name != "negative_prompt")
    return [getattr(options, name) for name in names]


def run(options: Options) -> Result:
    """Make the video that `options` ask for."""
    import torch

    from wan.generate import make_pipeline, make_request

    sys.stderr.write(f"{describe(options)}\n")
    pipeline, request = make_pipeline(options), make_request(options)
    with torch.no_grad():
        latents = pipeline.latents(request)
        frames = pipeline.decode(latents)
    assert frames is not None  # there is one rank
    return Result(latents.cpu(), frames.clamp(-1, 1))


def relative_error(given: "Tensor", reference: "Tensor") -> float:
    """|given - reference| / |reference|."""
    return float((given.double() - reference.double()).norm() / reference.double().norm())


def psnr(given: "Tensor", reference: "Tensor", peak: float) -> float:
    """Peak signal-to-noise ratio, dB; infinite for equal tensors."""
    error = float((given.double() - reference.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def figures(given: Result, reference: Result) -> tuple[float, float, float, float]:
    """The columns of the table."""
    latents = reference.latents
    return (
        relative_error(given.latents, latents),
        psnr(given.latents, latents, float(latents.max() - latents.min())),
        relative_error(given.frames, reference.frames),
        psnr(given.frames, reference.frames, 2.0),
    )


def table(rows: dict[str, tuple[float, float, float, float]]) -> str:
    """Rows by the name of the lever, as Markdown."""
    lines = [
        "| lever | latents, relative error | latents, PSNR dB | frames, relative error | frames, PSNR dB |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {latents:.2e} | {latents_psnr:.1f} | {frames:.2e} | {frames_psnr:.1f} |"
        for name, (latents, latents_psnr, frames, frames_psnr) in rows.items()
    ]
    return "\n".join(lines)


def compare(flags: Sequence[str], levers: Sequence[str]) -> str:
    """Run without levers and with each; returns what was run, and the table. Raises WanError."""
    without, found = with_one_prompt(*cases(flags, levers))
    reference = run(without)
    rows = {lever: figures(run(options), reference) for lever, options in found.items()}
    weights = (
        "random weights: the picture is noise"
        if without.ckpt_dir is None
        else f"weights of {without.ckpt_dir.name}"
    )
    return f"Without: {describe(without)}; {weights}.\n\n{table(rows)}"


def velocity(options: Options, num_blocks: int) -> "Tensor":
    """Of one forward pass of the DiT's first blocks at step 500 of 1,000, weights random: fp32 [1, 16, T, H, W]."""
    import torch

    from wan.config import TASKS

    task, device = TASKS[options.task], options.device
    noise = torch.Generator().manual_seed(options.base_seed)
    shape = task.latent_shape(*map(int, options.size.split("*")), options.frame_num)
    latents = torch.randn(1, *shape, generator=noise)
    text = torch.randn(1, task.dit.text_len, task.dit.text_dim, generator=noise)
    part = random_dit(
        options.task, options.levers,
        precision=options.precision, weights_dtype=options.weights_dtype, device=device,
        strategy=options.load_strategy, num_blocks=num_blocks,
    )  # fmt: skip
    with torch.no_grad(), part.on_device() as network:
        out: Tensor = network(latents.to(device), torch.tensor([500.0], device=device), text.to(device))
        return out.cpu()


def compare_blocks(flags: Sequence[str], levers: Sequence[str], num_blocks: int) -> str:
    """What was run, and a table: forward passes of the DiT's first blocks against one in fp32. Raises WanError."""
    without, found = cases(flags, levers)
    kind = without.task.partition("-")[0]
    if kind not in ("t2v", "t2i") or without.ckpt_dir is not None or num_blocks < 1:
        raise InputError(
            f"--blocks {num_blocks} with --task {without.task}: it takes a number of blocks from 1 on, "
            "a task of t2v or t2i, and --weights random",
            hint="--blocks 2 --task t2v-14B --weights random",
        )
    reference = velocity(replace(without, precision="fp32"), num_blocks)
    rows = {f"none ({without.precision})": without, **found}
    lines = ["| lever | velocity, relative error |", "|---|---|"]
    for name, options in rows.items():
        lines.append(f"| {name} | {relative_error(velocity(options, num_blocks), reference):.2e} |")
    what = f"{num_blocks} blocks of {without.task}, {without.size}, {without.frame_num} frames, against fp32."
    return "\n".join([what, "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print, and return the exit code: that of wan.generate for what cannot be run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--lever", action="append", required=True, metavar="NAME=VALUE[,...]", help="a row")
    parser.add_argument(
        "--blocks", type=int, metavar="N", help="one forward pass of the DiT's first N blocks, against fp32"
    )
    own, flags = parser.parse_known_args(argv)
    try:
        compared = (
            compare(flags, own.lever) if own.blocks is None else compare_blocks(flags, own.lever, own.blocks)
        )
        print(compared)
    except WanError as error:
        sys.stderr.write(f"error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
