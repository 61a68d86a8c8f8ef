"""Whether the driver can begin: the run folder can be written, and its disk has room for what will be recorded.

    notes = check_driver(config, run_dir)        # lines to show; raises PreflightFailed or DiskFull

It runs before Ray is started or joined, so that a run that cannot succeed ends at once.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ray_memprof.config.rules import warnings
from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.ray_metrics import missing_readers
from ray_memprof.errors import ConfigError, DiskFull, PreflightFailed
from ray_memprof.formats.trackers.services import Service, check_service
from ray_memprof.wording import MIB, size_text
from wan.config import TASKS

# For the estimate of disk space. The tiny task on the CPU, where no operations are fused, makes 1,100 per block.
_ALLOCS_PER_BLOCK = 1_200
_EVENTS_PER_ALLOC = 3  # allocated, free requested, freed
_BYTES_PER_EVENT = {"event": 12, "stack": 16, "torch_profiler": 12}
_OPEN_BYTES = (
    64 * MIB
)  # segments that are not sealed yet are uncompressed; logs, samples and spans are far smaller
_TRACE_BYTES_PER_STEP = 100 * MIB


def check_driver(config: RunConfig, run_dir: Path) -> list[str]:
    """Make sure that the run folder can take what will be written; returns warnings about the configuration."""
    _check_writable(run_dir)
    needed = needed_bytes(config)
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise DiskFull(
            f"{run_dir}: {size_text(free)} are free, about {size_text(needed)} will be written",
            hint="set logging.output_dir to another disk, or logging.level to stage",
        )
    return [*warnings(config), *_lacking(config)]


def _lacking(config: RunConfig) -> Iterator[str]:
    """A line for each package without which the run is told less to others, although it asks for that."""
    for name in config.logging.export:
        try:
            check_service(Service(name))
        except ConfigError as error:
            yield f"logging.export: {error} ({error.hint})"
    if config.logging.ray_metrics and (line := missing_readers()):
        yield line


def _check_writable(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir):
            pass
    except OSError as error:
        raise PreflightFailed(
            f"logging.output_dir: {run_dir} cannot be written: {error.strerror or error}",
            hint="set logging.output_dir to a folder of yours",
        ) from error


def needed_bytes(config: RunConfig) -> int:
    """About how large the run folder becomes, rather too high than too low: tables and traces of all ranks.

    Tables: blocks * passes * steps * videos * allocations per block * events per allocation * bytes per event. The
    allocations of a script cannot be predicted: for a script only the open segments (and the trace) are counted.
    """
    per_rank = _OPEN_BYTES
    level = config.logging.level
    if config.logging.profile_memory and level in _BYTES_PER_EVENT and config.workload == "wan":
        num_allocs = _num_block_calls(config) * _ALLOCS_PER_BLOCK * config.optimization.batch_size
        per_rank += num_allocs * _EVENTS_PER_ALLOC * _BYTES_PER_EVENT[level]
    if config.logging.profile_memory and level == "torch_profiler":
        per_rank += config.logging.profiler.active * _TRACE_BYTES_PER_STEP
    return per_rank * config.num_ranks


def _num_block_calls(config: RunConfig) -> int:
    """How many times a transformer block runs for one video."""
    task, scale = TASKS[config.model.task], config.generation.sample_guide_scale
    num_blocks = task.dit.num_layers + len(task.dit.vace_layers)
    return num_blocks * (1 if scale == 1.0 else 2) * _num_steps(config)


def _num_steps(config: RunConfig) -> int:
    steps = config.generation.sample_steps
    assert steps is not None  # filled in when the configuration was loaded
    return steps
