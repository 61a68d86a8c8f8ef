"""Wan2.1 as a rank runs it under the recorder: traced where that is asked for, and with its errors as ours.

    with recording(options) as recorder:
        wan_rank.run(config, place, recorder, ...)       # on this thread; returns when all videos are made

The environment must be set already. Leaves what the workload writes, and at level torch_profiler a trace. Errors pass
through, those of wan as a WorkloadError: rank/outcome.py turns them into an Outcome.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray_memprof.config.keys import Logging
from ray_memprof.config.run_config import RunConfig
from ray_memprof.store.run_files import TRACE_DIR, TRACE_FILE
from ray_memprof.workload.listener import StepListener
from ray_memprof.workload.place import Place
from ray_memprof.workload.wan_errors import translated

COMPONENTS = {"WanDit": "dit", "TextEncoder": "t5", "ImageEncoder": "clip", "WanVae": "vae"}
"""The networks of wan, by class."""


def run(config: RunConfig, place: Place, recorder: StepListener, *, device: str, run_dir: Path) -> None:
    """Make the videos of `config`, on this thread.

    Args:
        config: of the run.
        place: the rank of this process, and the number of ranks.
        recorder: told when a step is done, and of problems.
        device: of this rank, as torch names it.
        run_dir: where traces go, unless logging.trace_path says otherwise.
    """
    from ray_memprof.workload.observed import owned
    from ray_memprof.workload.wan import run_wan

    traced = _traced(config.logging, trace_file(config.logging, run_dir, place.rank), recorder)
    with translated(), traced, owned(recorder, COMPONENTS):
        run_wan(config, place, device, recorder)


def trace_file(logging: Logging, run_dir: Path, rank: int) -> Path:
    """The file for the trace of `rank`."""
    return (logging.trace_path or run_dir / TRACE_DIR) / TRACE_FILE.format(rank=rank)


def trace_schedule(logging: Logging) -> dict[str, Any] | None:
    """The fields of the TraceSchedule that is asked for; None: no trace."""
    is_asked = logging.level == "torch_profiler" and logging.profile_memory
    return logging.profiler.model_dump() if is_asked else None


@contextmanager
def _traced(logging: Logging, path: Path, recorder: StepListener) -> Iterator[None]:
    schedule = trace_schedule(logging)
    if schedule is None:
        yield
        return
    from ray_memprof.recorder.torch_trace import TraceSchedule, tracing

    with tracing(TraceSchedule(**schedule), path, recorder.problem):
        yield
