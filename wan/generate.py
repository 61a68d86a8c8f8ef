"""Make a video from the command line; the official flags, plus this package's.

    python -m wan.generate --task t2v-1.3B --size 832*480 --ckpt_dir Wan2.1-T2V-1.3B --prompt "a red fox in the snow"
    python -m wan.generate --task t2v-tiny --weights random --device cpu --precision fp32 --sample_steps 4
    torchrun --nproc_per_node 4 -m wan.generate --task t2v-14B --ulysses_size 4 --dit_fsdp --t5_fsdp --ckpt_dir ...

Writes one .mp4 (or .png for one frame). The exit codes are in errors.py; a wrong flag is refused before torch is
imported. Of several ranks, only the first one prints and saves. An error is reported by every rank that meets it; a
wrong flag only by the first rank of each host.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wan.config import TASKS, sides_of
from wan.errors import EXIT_INTERRUPTED, EXIT_OK, DeviceMemoryError, InputError, WanError
from wan.fit import fitted
from wan.options import FLAGS, Names, Options, describe, parse, warn
from wan.options_check import check, layout_of
from wan.options_here import check_memory, check_packages
from wan.parallel.environment import Place, growing_segments, set_defaults

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from wan.levers import AttentionKernel
    from wan.pipeline import Pipeline, Request


def main(argv: Sequence[str] | None = None) -> int:
    """Run once; returns the exit code."""
    # All ranks get the same flags, so all ranks of a host find the same mistakes: one of them reports. Another host may
    # differ, because it may lack a file.
    place, is_checked = Place(), False
    try:
        place = Place.of(os.environ)
        options = parse(fitted(sys.argv[1:] if argv is None else argv))
        check(options)
        check_packages(options, options.save_file or _default_path(options))
        is_checked = True
        run(options)
    except WanError as error:
        if place.local_rank == 0 or is_checked:
            who = f"rank {place.rank}: " if place.rank else ""
            hint = f"\nhint: {error.hint}" if error.hint else ""
            sys.stderr.write(f"error: {who}{error}{hint}\n")
        return error.exit_code
    except KeyboardInterrupt:
        if place.rank == 0:
            sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    return EXIT_OK


def run(options: Options) -> Path:
    """Make the video that `options` asks for; returns the file that the first rank writes."""
    place = Place.of(os.environ)
    path = options.save_file or _default_path(options)
    if options.expandable_segments:  # before CUDA starts
        os.environ.update(growing_segments(os.environ))
    if place.num_ranks > 1:
        set_defaults(os.environ)
    import torch

    from wan.inputs import media
    from wan.parallel.group import joined, meet
    from wan.progress import Progress
    from wan.spans import listening, span

    if place.rank == 0:
        media.check_output(path, num_frames=options.frame_num)
    if place.num_ranks > 1 and options.device == "cuda":
        options = replace(options, device=f"cuda:{place.local_rank}")
    if place.rank == 0 and options.sp_backend == "xfuser" and not options.attends_by_xfuser:
        warn("--sp_backend xfuser has no effect here: no tokens are split")
    _check_device(options.device, place.num_ranks)
    if options.levers.gradient_checkpointing and place.rank == 0:
        warn("--gradient_checkpointing has no effect here: inference records no gradients")
    with Progress(options.device, quiet=place.rank > 0) as progress, listening(progress):
        try:
            with joined(place, torch.device(options.device)):
                progress.say(describe(options, place.num_ranks))
                # The pipeline comes first: it reads headers only, and refuses a wrong folder before a prompt model or
                # an input is loaded.
                pipeline = make_pipeline(options, num_ranks=place.num_ranks)
                for line in told_levers(options):
                    progress.say(line)
                options = agreed(options, place)
                # Only the first rank says what differs from what was asked for.
                request = make_request(options, say=progress.say)
                if difference := other_than_asked(request, options):
                    progress.say(difference)
                video = pipeline.generate(request, on_step=progress.step)
                if video is not None:
                    _say_odd_frames(video)
                    with span("save"):
                        media.save(video, path, fps=TASKS[options.task].fps)
                meet(place)  # no rank leaves while another still works
        except (RuntimeError, MemoryError) as error:
            exhausted = _exhausted(error, progress.where, options)
            if exhausted is None:
                raise
            raise exhausted from error
        if video is not None:
            progress.finish(f"{path}: {video.shape[1]} frames of {video.shape[3]}*{video.shape[2]}")
    return path


def _say_odd_frames(video: "Tensor") -> None:
    from wan.finite import num_not_finite_frames

    if bad := num_not_finite_frames(video):
        warn(
            f"{bad} of {video.shape[1]} frames have values that are not finite, which are black or white in "
            "the file"
        )


def agreed(options: Options, place: Place) -> Options:
    """`options` with the seed and the extended prompt of the first rank: each process would make its own."""
    if place.num_ranks == 1:
        return options
    from torch.distributed import broadcast_object_list

    from wan.spans import span

    told = [replace(options, prompt=make_prompt(options)) if place.rank == 0 else options]
    with span("comm.broadcast"):
        broadcast_object_list(told, src=0)
    return replace(options, base_seed=told[0].base_seed, prompt=told[0].prompt, use_prompt_extend=False)


def _default_path(options: Options) -> Path:
    suffix = ".png" if options.frame_num == 1 else ".mp4"
    size = options.size.replace("*", "x")
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return Path(f"{options.task}_{size}_seed{options.base_seed}_{stamp}{suffix}")


def _check_device(name: str, num_ranks: int = 1) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: not a device", hint="use cuda, cuda:N or cpu") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices",
            hint="--device cpu runs the tiny tasks"
            if num_ranks == 1
            else "start as many ranks on a host as it has GPUs",
        )
    if device.type not in ("cuda", "cpu"):
        raise InputError(f"--device {name}: only cuda and cpu are supported", hint="use cuda, cuda:N or cpu")


def make_pipeline(options: Options, num_ranks: int = 1, *, names: Names = FLAGS) -> "Pipeline":
    """The networks that `options` ask for; every file is checked, none is loaded yet.

    With several ranks, the default process group of torch.distributed must exist and hold these ranks. `names` is how
    the user spells the options, for messages.
    """
    import torch

    from wan.networks.attention_kernels import choose
    from wan.networks.linear import check_matmul
    from wan.pipeline import Pipeline

    # What flags and keys cannot tell without a device: in the user's words, which Pipeline does not know.
    if options.levers.attention_kernel != "auto":
        choose(*_attention_of(options), spelled=names["attention_kernel"])
    # Again: a rank may run on another host than the one where the flags were checked.
    check_memory(options, names)
    check_matmul(options.levers.matmul, torch.device(options.device), names)
    return Pipeline(
        TASKS[options.task],
        ckpt_dir=options.ckpt_dir,
        device=options.device,
        precision=options.precision,
        weights_dtype=options.weights_dtype,
        load_strategy=options.load_strategy,
        offload_model=options.offload_model,
        t5_cpu=options.t5_cpu,
        levers=options.levers,
        layout=layout_of(options, num_ranks),
    )


def told_levers(options: Options) -> list[str]:
    """Lines for the log: which kernel computes self-attention, on a GPU, and which levers change the result."""
    from wan.networks.attention_kernels import explain

    lines = []
    if options.device.startswith("cuda") and not options.attends_by_xfuser:
        lines.append(f"  attention: {explain(*_attention_of(options))}")
    fp8_weights = ("weights_dtype fp8",) if options.weights_dtype == "fp8" else ()
    if inexact := (*fp8_weights, *options.levers.inexact):
        lines.append(f"  inexact: {', '.join(inexact)}")
    return lines


def _attention_of(options: Options) -> "tuple[AttentionKernel, torch.device, torch.dtype, int]":
    """What choose() and explain() of wan.networks.attention_kernels take."""
    import torch

    from wan.networks.dtypes import DTYPES

    head_dim = TASKS[options.task].dit.head_dim
    return options.levers.attention_kernel, torch.device(options.device), DTYPES[options.precision], head_dim


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def make_request(options: Options, *, say: Callable[[str], None] = _to_stderr) -> "Request":
    """What the video is made from: pictures and videos are read, and the prompt is extended where asked for.

    `say` is called with a line for each thing that will differ from what `options` asks for.
    """
    from wan.inputs import media
    from wan.inputs.control import read_control
    from wan.pipeline import Request

    def image(path: Path | None) -> "Tensor | None":
        return None if path is None else media.read_image(path)

    video = mask = None
    if options.src_video is not None:
        control = read_control(options.src_video, options.src_mask, frame_num=options.frame_num)
        video, mask = control.video, control.mask
        for line in control.lines:
            say(line)
    return Request(
        prompt=make_prompt(options),
        negative_prompt=options.negative_prompt,
        size=sides_of(options.size),
        frame_num=options.frame_num,
        solver=options.sample_solver,
        steps=options.sample_steps,
        shift=options.sample_shift,
        guide_scale=options.sample_guide_scale,
        seed=options.base_seed,
        image=image(options.image),
        first_frame=image(options.first_frame),
        last_frame=image(options.last_frame),
        src_video=video,
        src_mask=mask,
        src_ref_images=tuple(media.read_image(path) for path in options.src_ref_images),
    )


def other_than_asked(request: "Request", options: Options) -> str:
    """A line about the size of the result, if a picture or video changes it; empty if the size is as asked."""
    from wan.inputs import conditioning

    width, height = asked = request.size or (0, 0)
    first = request.image if request.image is not None else request.first_frame
    if first is not None:
        height, width = conditioning.i2v_size(first.shape[1], first.shape[2], width * height)
    elif request.src_video is not None:
        _, _, *sides = request.src_video.shape
        height, width = conditioning.vace_size(sides[0], sides[1], width * height)
    if (width, height) == asked:
        return ""
    return (
        f"  size: {width}*{height}, with the ratio of the picture or video, within the area of {options.size}"
    )


def make_prompt(options: Options) -> str:
    """The prompt, extended where that is asked for."""
    if not options.use_prompt_extend:
        return options.prompt
    from wan.inputs.prompt_extend import extend_prompt

    extended = extend_prompt(
        options.prompt,
        method=options.prompt_extend_method,
        model=options.prompt_extend_model,
        language=options.prompt_extend_target_lang,
        task=options.task,
        image=options.image or options.first_frame,
        seed=options.base_seed,
        device=options.device,
    )
    sys.stderr.write(f"prompt: {extended}\n")
    return extended


# A full device in the words of the driver, of NCCL and of CUDA's libraries, which ask past torch's allocator.
_ON_DEVICE = re.compile(
    r"\bCUDA(?: driver)? error: out of memory|\bCuda failure (?:\d+ )?'out of memory'|\bFailed to CUDA [mc]alloc"
    r"|\bCU[A-Z]{3,7}_STATUS_ALLOC_FAILED\b|\bTriton Error \[CUDA\]: out of memory"
)


def _exhausted(error: RuntimeError | MemoryError, where: str, options: Options) -> DeviceMemoryError | None:
    """The error to report for `error`, or None if it is not about memory."""
    import torch

    reason = str(error).partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError) or _ON_DEVICE.search(str(error)):
        return DeviceMemoryError(
            f"the device ran out of memory in {where}: {reason}", hint=_less_memory(options)
        )
    if not isinstance(error, MemoryError):
        # The CPU allocator of torch has no error class of its own; its message begins with a place in the C++ source.
        _, name, reason = reason.partition("DefaultCPUAllocator: ")
        if not name:
            return None
    reason = reason or type(error).__name__
    return DeviceMemoryError(f"host memory ran out in {where}: {reason}", hint=_less_host_memory(options))


def _less_host_memory(options: Options) -> str:
    """The settings that would still save host memory, the strongest first."""
    unused = [] if options.load_strategy == "block" else ["--load_strategy block"]
    if not options.device.startswith("cpu"):
        unused += ["--t5_cpu False"] if options.t5_cpu else []
        return "try " + ", ".join([*unused, "a smaller --size or --frame_num"])
    if not options.offload_model:
        unused.append("--offload_model True")
    if options.precision == "fp32":
        unused.append("--precision bf16")
    if not options.levers.attention_slicing:
        unused.append("--attention_slicing True")
    unused.append(f"--vae_slabs {2 * options.levers.vae_slabs or 8}")
    return "try " + ", ".join([*unused, "a smaller --size or --frame_num"])


def _less_memory(options: Options) -> str:
    """The levers that would still save memory, the strongest first."""
    levers, unused = options.levers, []
    num_ranks = Place.of(os.environ).num_ranks
    if num_ranks > 1 and not options.dit_fsdp and options.load_strategy != "stream":
        unused.append("--dit_fsdp")
    if num_ranks > 1 and not (options.t5_fsdp or options.t5_cpu):
        unused.append("--t5_fsdp")
    # Streaming and dit_fsdp exclude one another.
    if options.load_strategy != "stream" and not options.dit_fsdp:
        unused.append("--load_strategy stream")
    if not options.offload_model:
        unused.append("--offload_model True")
    if options.cfg_size > 1:
        # All ranks then share the tokens of one pass.
        flag, degree = "--ulysses_size", 2 * options.ulysses_size
        if TASKS[options.task].dit.num_heads % degree:
            flag, degree = "--ring_size", 2 * options.ring_size
        unused.append(f"--cfg_size 1 {flag} {degree}")
    if not levers.attention_slicing:
        unused.append("--attention_slicing True")
    unused.append(f"--ffn_chunks {2 * levers.ffn_chunks or 16}")
    unused.append(f"--vae_slabs {2 * levers.vae_slabs or 8}")
    if options.weights_dtype == "precision" and options.precision != "fp32":
        unused.append("--weights_dtype fp8 (inexact)")
    return "try " + ", ".join(unused)


if __name__ == "__main__":
    sys.exit(main())
