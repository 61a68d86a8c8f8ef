"""The flags of `python -m wan.generate`: the official ones by their names and defaults, and this package's own.

    options = parse(["--task", "t2v-1.3B", "--ckpt_dir", "Wan2.1-T2V-1.3B", "--prompt", "a red fox"])

Parsing imports no torch, so that a wrong flag is answered at once. What may stand together: options_check.py.
"""

import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from wan.config import (
    TASKS,
    Language,
    Method,
    Solver,
    Task,
)
from wan.flags import flag_parser
from wan.levers import Levers, LoadStrategy, Precision, WeightsDtype
from wan.parallel.environment import Place
from wan.parallel.layout import Backend, VaeRanks

DEFAULT_PROMPTS = {
    "t2v": "A red fox trots along a frozen river at dawn, its breath rising in the cold light.",
    "i2v": "The scene of the picture comes to life: leaves stir, light shifts, the camera glides slowly forward.",
    "flf2v": "The first picture turns smoothly into the last one, in a single unbroken camera movement.",
    "vace": "A paper boat sails down a rain-filled gutter, past fallen leaves, towards a bright street.",
}
MAX_SEED = 2**31 - 1
"""The largest seed that is drawn: short enough to be typed again."""


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
    cfg_size: int
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
    weights_dtype: WeightsDtype
    load_strategy: LoadStrategy
    expandable_segments: bool
    levers: Levers

    @property
    def splits_tokens(self) -> bool:
        """Whether several ranks share the tokens of one forward pass."""
        return self.ulysses_size * self.ring_size > 1

    @property
    def attends_by_xfuser(self) -> bool:
        """Whether xfuser computes self-attention, with kernels of its own: only where tokens are split."""
        return self.sp_backend == "xfuser" and self.splits_tokens


Names: TypeAlias = Mapping[str, str]
"""How the user spells an option, by its name: --frame_num, or generation.frame_num in a file."""
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
    # Who starts wan.generate has acted on these two already: fit.py.
    del values["fit"], values["fit_limit"]
    levers = Levers(**{name: values.pop(name) for name in Levers.__dataclass_fields__})
    defaults = defaults_of(TASKS[values["task"]], values["size"], ranks_here(num_ranks))
    values = {name: defaults.get(name) if value is None else value for name, value in values.items()}
    if values["base_seed"] < 0:
        values["base_seed"] = drawn_seed()
    return Options(**values, levers=levers)


def defaults_of(task: Task, size: str | None, num_ranks: int) -> dict[str, Any]:
    """The values of the options that depend on the task, by the name of the option.

    Args:
        task: of the run.
        size: width*height that the user asks for; None: the first of the task.
        num_ranks: of the run.
    """
    size = size or task.sizes[0]
    return {
        "size": size,
        "frame_num": task.frame_num,
        "sample_steps": task.sample_steps,
        "sample_shift": task.default_shift(size),
        "sample_guide_scale": task.sample_guide_scale,
        "prompt": DEFAULT_PROMPTS[task.dit.model_type],
        # With "full", several ranks would keep as many copies of a whole network in host memory.
        "load_strategy": "full" if num_ranks == 1 else "block",
    }


def drawn_seed() -> int:
    """A random seed, for a user who does not care which."""
    return random.randint(0, MAX_SEED)


def ranks_here(num_ranks: int | None) -> int:
    """`num_ranks`, or where it is None what torchrun says in the environment."""
    return Place.of(os.environ).num_ranks if num_ranks is None else num_ranks


def describe(options: Options, num_ranks: int = 1) -> str:
    """The run in one line, for the log; with several ranks it ends with how they share the work."""
    task = TASKS[options.task]
    return (
        f"{task.name} {options.size} {options.frame_num} frames, {options.sample_steps} steps of "
        f"{options.sample_solver}, shift {options.sample_shift:g}, guidance {options.sample_guide_scale:g}, "
        f"seed {options.base_seed}, {_describe_dtypes(options)} on {options.device}, weights {options.weights}, "
        f"load {options.load_strategy}{_describe_ranks(options, num_ranks)}"
    )


def _describe_dtypes(options: Options) -> str:
    told: str = options.precision
    if options.weights_dtype != "precision":
        product = "" if options.levers.matmul == "precision" else f" and matmul {options.levers.matmul}"
        told += f" with {options.weights_dtype} weights{product}"
    return told if options.levers.vae_dtype == "fp32" else f"{told}, VAE {options.levers.vae_dtype}"


def _describe_ranks(options: Options, num_ranks: int) -> str:
    if num_ranks == 1:
        return ""
    sharded = [name for name in ("dit_fsdp", "t5_fsdp") if getattr(options, name)]
    degrees = f"ulysses {options.ulysses_size} x ring {options.ring_size}"
    if options.cfg_size > 1:
        degrees += f" x cfg {options.cfg_size}"
    by = f"{num_ranks} ranks: {degrees} ({options.sp_backend})"
    return ", ".join(["", by, *sharded, f"VAE {options.vae_parallel}"])


def warn(message: str) -> None:
    """A line on stderr about a flag that has no effect, or less than was asked for."""
    sys.stderr.write(f"warning: {message}\n")
