"""The flags of wan.generate: their names, kinds, defaults and help. options.py decides which may be combined."""

import argparse
from pathlib import Path
from typing import NoReturn, get_args

from wan.config import (
    TASKS,
    Language,
    Method,
    Solver,
)
from wan.errors import InputError
from wan.levers import AttentionKernel, Levers, LoadStrategy, Matmul, Precision, VaeDtype, WeightsDtype
from wan.parallel.layout import Backend, VaeRanks

# The words that the release accepts, in upper or lower case.
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


class _Parser(argparse.ArgumentParser):
    """Raises InputError instead of printing a usage text, so that every refusal looks the same."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message, hint=f"{self.prog} --help lists the flags")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of a flag that has one; other flags say in their help what decides."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, ()) else super()._get_help_string(action)


def flag_parser() -> argparse.ArgumentParser:
    """A parser of all flags; what it cannot read raises InputError."""
    parser = _Parser(
        prog="python -m wan.generate",
        description="Make a video or an image with Wan2.1.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    _add_task_flags(parser)
    _add_input_flags(parser)
    _add_sampling_flags(parser)
    _add_prompt_extension_flags(parser)
    _add_memory_flags(parser)
    _add_parallel_flags(parser)
    return parser


def _add_task_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("task and weights")
    group.add_argument(
        "--task", choices=list(TASKS), default="t2v-14B", help="what to make, with which model"
    )
    group.add_argument("--size", help="width*height in pixels; default: the first size of the task")
    group.add_argument("--frame_num", type=int, help="frames, 4n+1; default: 81, or 1 for t2i")
    group.add_argument("--ckpt_dir", type=Path, help="folder of the official checkpoint")
    group.add_argument(
        "--weights", choices=["checkpoint", "random"], default="checkpoint",
        help="random: same names, shapes and dtypes, no files; true memory and speed, no picture",
    )  # fmt: skip
    group.add_argument("--precision", choices=get_args(Precision), default="bf16", help="dtype of the DiT")
    group.add_argument(
        "--weights_dtype", choices=get_args(WeightsDtype), default="precision",
        help="dtype of the linear layers in the DiT's blocks; fp8: e4m3 with a scale per output, half the memory of "
        "bf16, inexact",
    )  # fmt: skip
    group.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    group.add_argument(
        "--save_file", type=Path, help="where to write; default: a name made of task, size and time"
    )


def _add_input_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("inputs")
    group.add_argument("--prompt", help="what to make; default: an example")
    group.add_argument("--negative_prompt", help="what to avoid; default: the published one")
    group.add_argument("--image", type=Path, help="the picture to start from (i2v)")
    group.add_argument("--first_frame", type=Path, help="the first frame (flf2v)")
    group.add_argument("--last_frame", type=Path, help="the last frame (flf2v)")
    group.add_argument(
        "--src_video",
        type=Path,
        help="the control video (vace): at most frame_num of its frames, evenly over the whole clip",
    )
    group.add_argument(
        "--src_mask",
        type=Path,
        help="white where the video is to change (vace); its frame N belongs to frame N of the video",
    )
    group.add_argument(
        "--src_ref_images", type=_paths, default=(), help="reference pictures, separated by commas (vace)"
    )


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--sample_solver", choices=get_args(Solver), default="unipc", help="the ODE solver")
    group.add_argument("--sample_steps", type=int, help="steps; default: 50, or 40 for i2v")
    group.add_argument(
        "--sample_shift", type=float, help="shift of the noise schedule; default: by task and size"
    )
    group.add_argument(
        "--sample_guide_scale",
        type=float,
        help="classifier-free guidance; 1 halves the work; default: by task",
    )
    group.add_argument("--base_seed", type=int, default=-1, help="seed of the noise; below 0: a random one")


def _add_prompt_extension_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompt extension")
    _switch(group, "--use_prompt_extend", False, "let a language model add details to the prompt")
    group.add_argument(
        "--prompt_extend_method",
        choices=get_args(Method),
        default="local_qwen",
        help="what extends the prompt",
    )
    group.add_argument(
        "--prompt_extend_model", help="folder, hub name or service model; default: by method and task"
    )
    group.add_argument(
        "--prompt_extend_target_lang",
        choices=get_args(Language),
        default="zh",
        help="language of the extended prompt",
    )


def _add_memory_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory and time")
    group.add_argument(
        "--load_strategy", choices=get_args(LoadStrategy),
        help="full: through host memory; block: straight to the device; stream: blocks visit the device in turn; "
        "default: full, or block with several ranks",
    )  # fmt: skip
    _switch(
        group,
        "--fit",
        False,
        "let ray-memprof plan choose the levers that are not given, for the GPU at hand",
    )
    group.add_argument(
        "--fit_limit", metavar="SIZE", help="what --fit may use: '22 GiB'; default: all of the GPU"
    )
    _switch(group, "--offload_model", True, "give a network's device memory back after its stage")
    _switch(group, "--t5_cpu", False, "run the text encoder on the CPU")
    levers = Levers()
    _switch(
        group, "--attention_slicing", levers.attention_slicing, "attention for one group of heads at a time"
    )
    _switch(group, "--gradient_checkpointing", levers.gradient_checkpointing, "has no effect in generation")
    _switch(group, "--fused_kernels", levers.fused_kernels, "norms and rotary embedding in one pass (CUDA)")
    group.add_argument(
        "--matmul", choices=get_args(Matmul), default=levers.matmul,
        help="how linear layers in fp8 multiply; fp8: on the fp8 units of the GPU, faster, inexact",
    )  # fmt: skip
    group.add_argument(
        "--ffn_chunks",
        type=int,
        default=levers.ffn_chunks,
        help="token chunks after self-attention; 0: by size; 1: off",
    )
    group.add_argument(
        "--rope_chunks",
        type=int,
        default=levers.rope_chunks,
        help="token chunks of rotary embedding where no fused kernel runs; 1: off",
    )
    group.add_argument(
        "--vae_slabs",
        type=int,
        default=levers.vae_slabs,
        help="slabs of the image in the VAE; 0: by size; 1: off",
    )
    group.add_argument(
        "--vae_dtype",
        choices=get_args(VaeDtype),
        default=levers.vae_dtype,
        help="dtype of the VAE; bf16: half of its memory, less time, inexact",
    )
    group.add_argument(
        "--attention_kernel",
        choices=get_args(AttentionKernel),
        default=levers.attention_kernel,
        help="who computes self-attention; auto: the fastest exact one that is installed and fits; fa3_fp8 is inexact",
    )
    _switch(
        group, "--expandable_segments", True, "let the CUDA allocator grow segments, against fragmentation"
    )


def _add_parallel_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several GPUs (torchrun --nproc_per_node N -m wan.generate ...)")
    group.add_argument("--ulysses_size", type=int, default=1, help="ranks that split the heads")
    group.add_argument("--ring_size", type=int, default=1, help="ranks that pass keys and values around")
    group.add_argument(
        "--cfg_size",
        type=int,
        default=1,
        help="2: the passes of guidance at the same time, each on half of the ranks; 1: one after the other",
    )
    _switch(group, "--dit_fsdp", False, "shard the DiT over the ranks")
    _switch(group, "--t5_fsdp", False, "shard the text encoder over the ranks")
    group.add_argument(
        "--vae_parallel",
        choices=get_args(VaeRanks),
        default="split",
        help="who runs the VAE: the first rank alone, or every rank a slab of the image",
    )
    group.add_argument(
        "--sp_backend",
        choices=get_args(Backend),
        default="native",
        help="whose code computes attention across ranks",
    )


def _switch(group: argparse._ArgumentGroup, flag: str, default: bool, text: str) -> None:
    # Both `--t5_cpu` and `--offload_model False` are official ways to write a switch.
    group.add_argument(
        flag, type=_boolean, nargs="?", const=True, default=default, metavar="True|False", help=text
    )


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in _TRUE + _FALSE:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return word in _TRUE


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(Path(part.strip()) for part in text.split(",") if part.strip())
