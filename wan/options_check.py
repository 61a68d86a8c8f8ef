"""What the flags of wan.generate may say together; imports no torch.

check(options)      # InputError: in words, with a hint
"""

from wan.config import (
    LARGEST_SEED,
    MAX_GUIDE_SCALE,
    MAX_SHIFT,
    MAX_STEPS,
    MIN_SHIFT,
    TASKS,
    Task,
    sides_of,
)
from wan.errors import InputError
from wan.levers import KERNEL_PRECISIONS, check_dtypes
from wan.options import FLAGS, Names, Options, ranks_here
from wan.options_here import FILES, check_here
from wan.parallel.layout import Layout

MAX_TOKENS = 2**31 - 1
"""Attention kernels count the tokens of a video in 32 bits."""

FEW_CHUNKS, FEW_SLABS = 64, 16
"""So many are always taken: they cost little, however small they are."""
LEAST_CHUNK_TOKENS = 64
"""Of a chunk that is worth its kernels: its hidden layer takes 1.7 MiB in the 14B models."""
LEAST_SLAB_COLUMNS = 4
"""Latents of a slab's width: it holds as much of its neighbours as of itself, a narrower one more of them."""

_LAYOUT = {
    "ulysses": "ulysses_size", "ring": "ring_size", "cfg": "cfg_size", "dit_fsdp": "dit_fsdp", "t5_fsdp": "t5_fsdp",
    "vae": "vae_parallel", "backend": "sp_backend", "load_strategy": "load_strategy", "ranks": "ranks",
    "guide_scale": "sample_guide_scale",
}  # fmt: skip
"""The names that Layout has in its messages, and the options they come from; `ranks` is an option only in a file."""

# What each kind of model reads, and what it needs.
_INPUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "t2v": ((), ()),
    "i2v": (("image",), ("image",)),
    "flf2v": (("first_frame", "last_frame"), ("first_frame", "last_frame")),
    "vace": (("src_video", "src_mask", "src_ref_images"), ()),
}


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
    _check_parallel(options, task, ranks_here(num_ranks), names)
    _check_shape(options, task, names)
    _check_numbers(options, names)
    _check_parts(options, task, names)
    _check_kernel(options, names)
    _check_weights(options, names)
    check_dtypes(options.precision, options.weights_dtype, options.levers.matmul, names)
    _check_inputs(options, task, names)
    if here:
        check_here(options, names)


def layout_of(options: Options, num_ranks: int) -> Layout:
    """How `num_ranks` ranks divide the work; may be one that check() refuses."""
    return Layout(
        ranks=num_ranks,
        ulysses=options.ulysses_size,
        ring=options.ring_size,
        cfg=options.cfg_size,
        dit_fsdp=options.dit_fsdp,
        t5_fsdp=options.t5_fsdp,
        vae=options.vae_parallel,
        backend=options.sp_backend,
    )


def _check_parallel(options: Options, task: Task, num_ranks: int, names: Names) -> None:
    of_layout = {field: names[option] for field, option in _LAYOUT.items() if option in names}
    layout_of(options, num_ranks).check(
        task.name, task.dit.num_heads, of_layout, guide_scale=options.sample_guide_scale
    )
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
    frames, tokens_a_frame = _tokens(options, task)
    if frames * tokens_a_frame > MAX_TOKENS:
        most = (MAX_TOKENS // tokens_a_frame - 1) * task.vae.stride[0] + 1
        raise InputError(
            f"{names['frame_num']} {options.frame_num}: {frames * tokens_a_frame:,} tokens of {options.size}, "
            f"attention counts at most {MAX_TOKENS:,}",
            hint=f"use at most {most}; 81 is the length the model was made for",
        )


def _tokens(options: Options, task: Task) -> tuple[int, int]:
    """Latent frames, and the tokens of each."""
    _, height, width = task.dit.patch_size
    frames, rows, columns = task.latent_shape(*sides_of(options.size), options.frame_num)[1:]
    return frames, rows * columns // (height * width)


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


def _check_parts(options: Options, task: Task, names: Names) -> None:
    """Refuse so many chunks and slabs that they save next to nothing, and turn a step of seconds into one of hours."""
    levers, (frames, tokens_a_frame) = options.levers, _tokens(options, task)
    num_tokens = frames * tokens_a_frame // (options.ulysses_size * options.ring_size)
    num_columns = max(task.latent_shape(*sides_of(options.size), options.frame_num)[2:])
    most_chunks = max(FEW_CHUNKS, num_tokens // LEAST_CHUNK_TOKENS)
    most_slabs = max(FEW_SLABS, num_columns // LEAST_SLAB_COLUMNS)
    for name, value, most, what, hint in (
        ("ffn_chunks", levers.ffn_chunks, most_chunks, f"{num_tokens:,} tokens of a rank", "16 is a usual value"),
        ("rope_chunks", levers.rope_chunks, most_chunks, f"{num_tokens:,} tokens of a rank", "16 is a usual value"),
        ("vae_slabs", levers.vae_slabs, most_slabs, f"{num_columns} columns of latents", "8 is a usual value"),
    ):  # fmt: skip
        if value > most:
            raise InputError(
                f"{names[name]} {value}: must be at most {most}: smaller parts of {what} save next to nothing and take "
                "far longer",
                hint=hint,
            )


def _check_kernel(options: Options, names: Names) -> None:
    """What can be said without torch; attention_kernels.choose() says the rest, on the device."""
    kernel = options.levers.attention_kernel
    if kernel == "auto":
        return
    spelled = f"{names['attention_kernel']} {kernel}"
    if options.attends_by_xfuser:
        raise InputError(
            f"{spelled} has no effect: {names['sp_backend']} xfuser has kernels of its own",
            hint="leave one out",
        )
    if kernel not in KERNEL_PRECISIONS:
        return
    if options.device == "cpu":
        raise InputError(
            f"{spelled} needs CUDA, {names['device']} is cpu",
            hint=f"{names['attention_kernel']} sdpa runs on CPUs too",
        )
    if options.precision not in KERNEL_PRECISIONS[kernel]:
        raise InputError(
            f"{spelled} computes in {' or '.join(KERNEL_PRECISIONS[kernel])}, "
            f"{names['precision']} is {options.precision}",
            hint=f"{names['attention_kernel']} auto takes what fits",
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


def _check_inputs(options: Options, task: Task, names: Names) -> None:
    reads, needs = _INPUTS[task.dit.model_type]
    for name in FILES:
        value = getattr(options, name)
        if value and name not in reads:
            used = ", ".join(names[other] for other in reads) or "a prompt only"
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
