"""The flags of `python -m wan.generate`: the official ones by their names and defaults, and this package's own.

    options = parse(["--task", "t2v-1.3B", "--ckpt_dir", "Wan2.1-T2V-1.3B", "--prompt", "a red fox"])
    check(options)                        # everything that can be refused before any weight is read

Parsing and checking import no torch, so that a wrong flag is answered at once.
"""

import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from wan.config import (
    LARGEST_SEED,
    MAX_GUIDE_SCALE,
    MAX_SHIFT,
    MAX_STEPS,
    MIN_SHIFT,
    TASKS,
    Language,
    Method,
    Solver,
    Task,
)
from wan.errors import InputError
from wan.flags import flag_parser
from wan.levers import Levers, LoadStrategy, Precision
from wan.options_here import FILES, Names, check_here
from wan.parallel.environment import Place
from wan.parallel.layout import Backend, Layout, VaeRanks

DEFAULT_PROMPTS = {
    "t2v": "A red fox trots along a frozen river at dawn, its breath rising in the cold light.",
    "i2v": "The scene of the picture comes to life: leaves stir, light shifts, the camera glides slowly forward.",
    "flf2v": "The first picture turns smoothly into the last one, in a single unbroken camera movement.",
    "vace": "A paper boat sails down a rain-filled gutter, past fallen leaves, towards a bright street.",
}
MAX_SEED = 2**31 - 1
"""The largest seed that is drawn: short enough to be typed again."""
MAX_TOKENS = 2**31 - 1
"""Attention kernels count the tokens of a video in 32 bits."""
_LAYOUT = {
    "ulysses": "ulysses_size", "ring": "ring_size", "dit_fsdp": "dit_fsdp", "t5_fsdp": "t5_fsdp", "vae": "vae_parallel",
    "backend": "sp_backend", "load_strategy": "load_strategy", "ranks": "ranks",
}  # fmt: skip
"""The names that Layout has in its messages, and the options they come from; `ranks` is an option only in a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Every flag, by its name; see --help."""

    task: str
    size: str
    frame_num: int
    ckpt_dir: Path | None
    weights: str
    device: str
    offload_model: bool
    ulysses_size: int
    ring_size: int
    t5_fsdp: bool
    dit_fsdp: bool
    vae_parallel: VaeRanks
    sp_backend: Backend
    t5_cpu: bool
    save_file: Path | None
    prompt: str
    negative_prompt: str | None
    use_prompt_extend: bool
    prompt_extend_method: Method
    prompt_extend_model: str | None
    prompt_extend_target_lang: Language
    base_seed: int
    image: Path | None
    first_frame: Path | None
    last_frame: Path | None
    src_video: Path | None
    src_mask: Path | None
    src_ref_images: tuple[Path, ...]
    sample_solver: Solver
    sample_steps: int
    sample_shift: float
    sample_guide_scale: float
    precision: Precision
    load_strategy: LoadStrategy
    expandable_segments: bool
    levers: Levers


FLAGS: Names = {
    field.name: f"--{field.name}" for field in (*fields(Options), *fields(Levers)) if field.name != "levers"
}


def parse(argv: Sequence[str], *, num_ranks: int | None = None) -> Options:
    """The flags as Options, with the task's defaults filled in.

    Args:
        argv: the flags.
        num_ranks: of the run; None: the number that torchrun sets in the environment.

    Raises:
        InputError: what cannot be parsed.
    """
    values = vars(flag_parser().parse_args(argv))
    task = TASKS[values["task"]]
    levers = Levers(**{name: values.pop(name) for name in Levers.__dataclass_fields__})
    defaults = {
        "size": task.sizes[0],
        "frame_num": task.frame_num,
        "sample_steps": task.sample_steps,
        "sample_guide_scale": task.sample_guide_scale,
        "prompt": DEFAULT_PROMPTS[task.dit.model_type],
        # With "full", several ranks would keep as many copies of a whole network in host memory.
        "load_strategy": "full" if _resolved(num_ranks) == 1 else "block",
    }
    values = {name: defaults.get(name) if value is None else value for name, value in values.items()}
    if values["sample_shift"] is None:
        values["sample_shift"] = task.default_shift(values["size"])
    if values["base_seed"] < 0:
        values["base_seed"] = random.randint(0, MAX_SEED)
    return Options(**values, levers=levers)


def _resolved(num_ranks: int | None) -> int:
    return Place.of(os.environ).num_ranks if num_ranks is None else num_ranks


def check(
    options: Options,
    *,
    here: bool = True,
    num_ranks: int | None = None,
    names: Names = FLAGS,
) -> None:
    """Refuse options that cannot work, and say why.

    Args:
        options: made by parse(), or in another way.
        here: also check what depends on this host's files and memory.
        num_ranks: of the run; None: the number that torchrun sets in the environment.
        names: how the user spells the options: as flags, or as the keys of a file.

    Raises:
        InputError: for the first problem that is found.
    """
    task = TASKS[options.task]
    _check_parallel(options, task, _resolved(num_ranks), names)
    _check_shape(options, task, names)
    _check_numbers(options, names)
    _check_weights(options, names)
    _check_inputs(options, task, names)
    if here:
        check_here(options, names)


def layout_of(options: Options, num_ranks: int) -> Layout:
    """How `num_ranks` ranks divide the work; may be one that check() refuses."""
    return Layout(
        ranks=num_ranks,
        ulysses=options.ulysses_size,
        ring=options.ring_size,
        dit_fsdp=options.dit_fsdp,
        t5_fsdp=options.t5_fsdp,
        vae=options.vae_parallel,
        backend=options.sp_backend,
    )


def _check_parallel(options: Options, task: Task, num_ranks: int, names: Names) -> None:
    of_layout = {field: names[option] for field, option in _LAYOUT.items() if option in names}
    layout_of(options, num_ranks).check(task.name, task.dit.num_heads, of_layout)
    if options.dit_fsdp and options.load_strategy == "stream":
        raise InputError(
            f"{names['dit_fsdp']} keeps blocks on the other GPUs, {names['load_strategy']} stream in host memory",
            hint="leave one out",
        )
    if options.t5_fsdp and options.t5_cpu:
        raise InputError(
            f"{names['t5_fsdp']} shards over GPUs what {names['t5_cpu']} keeps off them", hint="leave one out"
        )
    if options.sp_backend == "xfuser" and options.device == "cpu":
        raise InputError(
            f"{names['sp_backend']} xfuser needs CUDA, {names['device']} is cpu",
            hint=f"{names['sp_backend']} native runs on CPUs too",
        )
    if num_ranks > 1 and options.device not in ("cuda", "cpu"):
        raise InputError(
            f"{names['device']} {options.device}: with {num_ranks} ranks each takes the GPU of its LOCAL_RANK",
            hint="use cuda or cpu; CUDA_VISIBLE_DEVICES chooses the GPUs",
        )


def _check_shape(options: Options, task: Task, names: Names) -> None:
    if options.size not in task.sizes and not (task.is_tiny and _is_small_size(options.size)):
        sizes = ", ".join(task.sizes) + (", or small multiples of 16" if task.is_tiny else "")
        raise InputError(f"{names['size']} {options.size} is not a size of {task.name}", hint=f"use {sizes}")
    if task.name.startswith("t2i") and options.frame_num != 1:
        raise InputError(
            f"{names['frame_num']} {options.frame_num}: {task.name} makes one image", hint="leave it out"
        )
    if options.frame_num < 1 or options.frame_num % 4 != 1:
        below = max(1, (options.frame_num - 1) // 4 * 4 + 1)
        raise InputError(
            f"{names['frame_num']} {options.frame_num} is not 4n+1: the VAE makes four frames of each latent but "
            "the first",
            hint=f"use {below} or {below + 4}",
        )
    _check_length(options, task, names)
    if task.dit.model_type == "flf2v" and options.frame_num == 1:
        raise InputError(
            f"{names['frame_num']} 1: {task.name} goes from a first to a last frame", hint="use at least 5"
        )


def _check_length(options: Options, task: Task, names: Names) -> None:
    _, height, width = task.dit.patch_size
    frames, rows, columns = task.latent_shape(*_sides(options), options.frame_num)[1:]
    tokens_a_frame = rows * columns // (height * width)
    if frames * tokens_a_frame > MAX_TOKENS:
        most = (MAX_TOKENS // tokens_a_frame - 1) * task.vae.stride[0] + 1
        raise InputError(
            f"{names['frame_num']} {options.frame_num}: {frames * tokens_a_frame:,} tokens of {options.size}, "
            f"attention counts at most {MAX_TOKENS:,}",
            hint=f"use at most {most}; 81 is the length the model was made for",
        )


def _sides(options: Options) -> tuple[int, int]:
    width, height = options.size.split("*")
    return int(width), int(height)


def _is_small_size(size: str) -> bool:
    sides = size.split("*")
    return len(sides) == 2 and all(
        side.isdecimal() and 0 < int(side) <= 512 and int(side) % 16 == 0 for side in sides
    )


def _check_numbers(options: Options, names: Names) -> None:
    levers = options.levers
    least = [
        ("sample_steps", options.sample_steps, 1, "40 and 50 are usual values"),
        ("ffn_chunks", levers.ffn_chunks, 0, "0 chooses by size, 1 is off"),
        ("rope_chunks", levers.rope_chunks, 1, "1 is off"),
        ("vae_slabs", levers.vae_slabs, 0, "0 chooses by size, 1 is off"),
    ]
    for name, value, bound, hint in least:
        if value < bound:
            raise InputError(f"{names[name]} {value}: must be at least {bound}", hint=hint)
    if options.sample_steps > MAX_STEPS:
        raise InputError(
            f"{names['sample_steps']} {options.sample_steps}: must be at most {MAX_STEPS}, the noise levels that the "
            "model knows",
            hint="40 and 50 are usual values",
        )
    if not MIN_SHIFT <= options.sample_shift <= MAX_SHIFT:
        raise InputError(
            f"{names['sample_shift']} {options.sample_shift}: must be from {MIN_SHIFT:g} to {MAX_SHIFT:g}",
            hint="3 to 16 are usual values",
        )
    if not abs(options.sample_guide_scale) <= MAX_GUIDE_SCALE:
        raise InputError(
            f"{names['sample_guide_scale']} {options.sample_guide_scale}: must be a finite number in fp32",
            hint="5 is a usual value, 1 is none",
        )
    if options.base_seed > LARGEST_SEED:
        raise InputError(
            f"{names['base_seed']} {options.base_seed}: must be at most {LARGEST_SEED}",
            hint="below 0 takes any seed",
        )


def _check_weights(options: Options, names: Names) -> None:
    if options.weights == "random":
        if options.ckpt_dir is not None:
            raise InputError(
                f"{names['weights']} random reads no files, but {names['ckpt_dir']} {options.ckpt_dir} is given",
                hint="leave one out",
            )
    elif options.ckpt_dir is None:
        raise InputError(
            f"{names['ckpt_dir']} is missing: {options.task} needs the folder {TASKS[options.task].repo}",
            hint=f"{names['weights']} random runs without files",
        )


# What each kind of model reads, and what it needs.
_INPUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "t2v": ((), ()),
    "i2v": (("image",), ("image",)),
    "flf2v": (("first_frame", "last_frame"), ("first_frame", "last_frame")),
    "vace": (("src_video", "src_mask", "src_ref_images"), ()),
}


def _check_inputs(options: Options, task: Task, names: Names) -> None:
    reads, needs = _INPUTS[task.dit.model_type]
    for name in FILES:
        value = getattr(options, name)
        if value and name not in reads:
            used = ", ".join(f"{names[other]}" for other in reads) or "a prompt only"
            raise InputError(f"{names[name]} has no use in {task.name}", hint=f"{task.name} reads {used}")
        if not value and name in needs:
            raise InputError(
                f"{names[name]} is missing: {task.name} starts from it", hint=f"give it: {names[name]} FILE"
            )
    if options.src_mask is not None and options.src_video is None:
        raise InputError(
            f"{names['src_mask']} is given without {names['src_video']}",
            hint="give the video that the mask belongs to",
        )


def describe(options: Options) -> str:
    """The run in one line, for the log."""
    task = TASKS[options.task]
    return (
        f"{task.name} {options.size} {options.frame_num} frames, {options.sample_steps} steps of "
        f"{options.sample_solver}, shift {options.sample_shift:g}, guidance {options.sample_guide_scale:g}, "
        f"seed {options.base_seed}, {options.precision} on {options.device}, weights {options.weights}, "
        f"load {options.load_strategy}{_describe_ranks(options)}"
    )


def _describe_ranks(options: Options) -> str:
    num_ranks = Place.of(os.environ).num_ranks
    if num_ranks == 1:
        return ""
    sharded = [name for name in ("dit_fsdp", "t5_fsdp") if getattr(options, name)]
    degrees = f"ulysses {options.ulysses_size} x ring {options.ring_size} ({options.sp_backend})"
    return ", ".join(["", f"{num_ranks} ranks: {degrees}", *sharded, f"VAE {options.vae_parallel}"])


def warn(message: str) -> None:
    """A line on stderr about a flag that has no effect, or less than was asked for."""
    sys.stderr.write(f"warning: {message}\n")
