"""Wan2.1 as a rank runs it: from a configuration to the saved videos, in spans that name every stage.

    run_wan(config, place, device, recorder)             # on this thread; returns when all videos are made

Takes a configuration and a place; the environment must be set already. Leaves the videos that generation.save_file
names.
"""

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ray_memprof.config.run_config import RunConfig
from ray_memprof.recorder.spans import Relay
from ray_memprof.workload.listener import StepListener
from ray_memprof.workload.place import Place
from wan.config import TASKS
from wan.options import Options, describe
from wan.parallel.environment import Place as WanPlace
from wan.spans import listening, span

if TYPE_CHECKING:
    import torch

_WARM_UP_SIDE = 64


def run_wan(config: RunConfig, place: Place, device: str, recorder: StepListener) -> None:
    """Make the videos of `config` on this thread.

    Args:
        config: of the run.
        place: the rank of this process, and the number of ranks.
        device: of this rank, as torch names it.
        recorder: told when a step is done.
    """
    # wan has spans of its own, since it knows nothing of the profiler.
    with listening(Relay()):
        _make_videos(config, place, device, recorder)


def _make_videos(config: RunConfig, place: Place, device: str, recorder: StepListener) -> None:
    import torch

    from ray_memprof.config.wan_keys import KEYS, wan_options
    from wan.generate import agreed, make_pipeline, make_request, other_than_asked, told_levers
    from wan.parallel.group import joined

    options = replace(wan_options(config), device=device)
    num_videos = config.optimization.batch_size
    sys.stderr.write(describe(options, place.num_ranks) + "\n")
    if place.rank == 0:
        _check_outputs(options, num_videos)
    start_device(options.device)
    timeout = timedelta(seconds=config.ray.timeouts.process_group_s)
    wan_place = WanPlace(rank=place.rank, local_rank=place.local_rank, num_ranks=place.num_ranks)
    with joined(wan_place, torch.device(device), timeout=timeout):
        warm_up(options)
        # First: this reads only headers, and refuses a wrong folder before a prompt model or an input is loaded.
        pipeline = make_pipeline(options, num_ranks=place.num_ranks, names=KEYS)
        sys.stderr.writelines(f"{line}\n" for line in told_levers(options))
        # The seed is the configuration's, so the ranks only have to agree on a prompt that is extended.
        if options.use_prompt_extend:
            options = agreed(options, wan_place)
        request = make_request(options)
        if difference := other_than_asked(request, options):
            sys.stderr.write(difference + "\n")
        for index in range(num_videos):
            video = pipeline.generate(replace(request, seed=request.seed + index), on_step=recorder.on_step)
            if video is not None and options.save_file is not None:
                _save(video, save_path(options.save_file, index, num_videos), options)


def start_device(device: str) -> None:
    """Make the CUDA context in a span of its own, so that its memory is not counted in another span."""
    import torch

    with span("device.init"):
        if device != "cpu":
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
        if device != "cpu":
            torch.cuda.synchronize()


def warm_up(options: Options) -> None:
    """Run a matrix product in every dtype and a convolution: cuBLAS and cuDNN make handles and workspaces here."""
    import torch
    from torch.nn import functional

    with span("warmup"), torch.no_grad():
        for dtype in _dtypes(options):
            matrix = torch.zeros(_WARM_UP_SIDE, _WARM_UP_SIDE, dtype=dtype, device=options.device)
            functional.linear(matrix, matrix, matrix[0])
        if options.levers.matmul == "fp8":
            from ray_memprof.config.wan_keys import KEYS
            from wan.networks.linear import Fp8Linear, check_matmul

            # make_pipeline() checks it, too, but comes later.
            check_matmul("fp8", torch.device(options.device), KEYS)
            # Not initialised: that would draw from the generator, and a recorded run from other noise.
            plain = torch.nn.utils.skip_init(
                torch.nn.Linear, *matrix.shape, dtype=torch.bfloat16, device=options.device
            )
            Fp8Linear(plain, options.levers)(matrix.to(torch.bfloat16))
        cube = torch.zeros(1, 1, 3, 16, 16, device=options.device)
        functional.conv3d(cube, cube[..., :3, :3])  # fp32: the VAE runs in it whatever the precision is
        if options.device != "cpu":
            torch.cuda.synchronize()


def _dtypes(options: Options) -> "tuple[torch.dtype, ...]":
    """The dtypes in which the networks of the task compute, without repeats."""
    import torch

    from wan.networks.dtypes import DTYPES

    used = [torch.float32, DTYPES[options.precision]]
    if options.precision != "fp32":
        used.append(torch.bfloat16)  # UMT5
        if TASKS[options.task].clip is not None:
            used.append(torch.float16)
    return tuple(dict.fromkeys(used))


def _check_outputs(options: Options, num_videos: int) -> None:
    """Refuse a file that cannot be written, before any time is spent on the videos."""
    from wan.inputs import media

    if options.save_file is not None:
        for index in range(num_videos):
            media.check_output(save_path(options.save_file, index, num_videos), num_frames=options.frame_num)


def _save(video: "torch.Tensor", path: Path, options: Options) -> None:
    from wan.inputs import media

    with span("save"):
        media.save(video, path, fps=TASKS[options.task].fps)


def save_path(path: Path, index: int, num_videos: int) -> Path:
    """The file for video `index`: the path itself if there is one video, else with the number before the suffix."""
    return path if num_videos == 1 else path.with_name(f"{path.stem}-{index}{path.suffix}")
