"""What a rank runs under the recorder: Wan2.1, or any torch.distributed script as torchrun would run it.

    with recording(options) as recorder:
        dispatch.run(config, place, recorder, ...)       # on this thread; returns when the workload has ended

The environment must be set already. Leaves what the workload writes, and at level torch_profiler a trace. Errors pass
through, those of wan as a WorkloadError: rank/outcome.py turns them into an Outcome. For a script, nothing of our
package wan is imported but what the configuration is made of, wan.config, wan.levers and wan.parallel.layout, and
wan.errors: none of them imports torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_memprof.config.keys import Logging
from ray_memprof.config.run_config import RunConfig
from ray_memprof.store.run_files import TRACE_DIR, TRACE_FILE
from ray_memprof.workload.listener import StepListener
from ray_memprof.workload.place import Place
from ray_memprof.workload.wan_errors import translated


def run(config: RunConfig, place: Place, recorder: StepListener, *, device: str, run_dir: Path) -> None:
    """Run the workload of `config` to its end, on this thread.

    Args:
        config: of the run.
        place: the rank of this process, and the number of ranks.
        recorder: told when a step is done, and of problems.
        device: of this rank, as torch names it.
        run_dir: where traces go, unless logging.trace_path says otherwise.
    """
    # A script may use wan, too.
    with translated(), _traced(config.logging, trace_file(config.logging, run_dir, place.rank), recorder):
        if config.workload == "script":
            _run_script(config, recorder)
        else:
            from ray_memprof.workload.wan import run_wan

            run_wan(config, place, device, recorder)


def trace_file(logging: Logging, run_dir: Path, rank: int) -> Path:
    """The file for the trace of `rank`."""
    return (logging.trace_path or run_dir / TRACE_DIR) / TRACE_FILE.format(rank=rank)


@contextmanager
def _traced(logging: Logging, path: Path, recorder: StepListener) -> Iterator[None]:
    if logging.level != "torch_profiler" or not logging.profile_memory:
        yield
        return
    from ray_memprof.recorder.torch_trace import TraceSchedule, tracing

    with tracing(TraceSchedule(**logging.profiler.model_dump()), path, recorder.problem):
        yield


def _run_script(config: RunConfig, recorder: StepListener) -> None:
    from ray_memprof.workload.script import run_script

    script = config.script
    assert script is not None  # config/rules.py refuses workload: script without one
    run_script(script.path, script.args, script.module_spans, lambda text: recorder.problem(text))
