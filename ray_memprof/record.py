"""Record a program that something else starts: torchrun, srun, mpirun or a person. No Ray, no configuration file.

    torchrun --nproc_per_node 8 -m ray_memprof.record train.py --steps 100
    python -m ray_memprof.record --level stack -m pkg.train
    with ray_memprof.recording("evaluation"): ...               # from inside a program

All ranks of one start leave one run folder, profiler_logs/<name>/<run_id>/, with the same tables as a launched run;
rank 0 completes it when the program ends. The exit code is the program's own; an option that cannot be used is exit 2.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray_memprof.errors import EXIT_CONFIG, ConfigError
from ray_memprof.installed import need
from ray_memprof.rank.command_line import parsed
from ray_memprof.rank.process_end import ProcessEnd
from ray_memprof.rank.session import Session
from ray_memprof.rank.settings import Program, Settings
from ray_memprof.rank.starters import start_of
from ray_memprof.recorder.after_import import after_import
from ray_memprof.store.level import Level
from ray_memprof.wording import visible
from ray_memprof.workload import main_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run a program and record it; returns the program's exit code."""
    try:
        settings, program = parsed(sys.argv[1:] if argv is None else argv)
        start = start_of(os.environ)
        need(("torch",), "ray_memprof.record")
    except ConfigError as error:
        sys.stderr.write(visible(error.lines()))
        return EXIT_CONFIG
    return _run(Session(settings, start, program), program)


def _run(session: Session, program: Program) -> int:
    end = ProcessEnd(session)
    with after_import("torch", session.begin):
        try:
            if program.path is None:
                main_program.run_module(program.module, program.args)
            else:
                main_program.run_path(program.path, program.args)
        except BaseException as error:
            end.note(
                None if isinstance(error, SystemExit) else error, exit_code=main_program.exit_code_of(error)
            )
            ours = Path(__file__).resolve().parent
            hook, trace = sys.excepthook, main_program.without_our_frames(error.__traceback__, ours)
            # Python calls it with the frames of this function, too.
            sys.excepthook = lambda kind, error, _: hook(kind, error.with_traceback(trace), trace)
            raise
        finally:
            session.missed("the program did not import torch")
    return 0


@contextmanager
def recording(
    name: str,
    *,
    level: Level = "event",
    output_dir: str | Path | None = None,
    module_spans: Sequence[str] = (),
    components: Mapping[str, str] | None = None,
    ranges: Sequence[str] = (),
    device: str = "",
) -> Iterator[Session]:
    """Record what this thread does inside the block; under torchrun and the like every rank must do so.

    Allocations of other threads count in the spans of this one. Ray Train runs a loop on a thread of its own: the block
    belongs into that loop.

    Args:
        name: of the run.
        level: stage, event or stack; see docs/profiling.md.
        output_dir: folder for runs; None: RAY_MEMPROF_DIR of the environment, else profiler_logs.
        module_spans: a span for each module whose name matches one of these patterns.
        components: names of components, by the class of a module; None: only those of Wan2.1.
        ranges: nvtx, record_function or both: a span for each range that the program names so.
        device: cpu or cuda; "": cuda where torch sees a device.

    Raises:
        ConfigError: an argument, or what the environment says of the rank, cannot be used; or torch is not installed.
    """
    settings = Settings(
        name=name,
        level=level,
        output_dir=None if output_dir is None else Path(output_dir),
        module_spans=tuple(module_spans),
        components=dict(components or {}),
        ranges=tuple(ranges),
        device=device,
    ).checked()
    need(("torch",), "ray_memprof.recording")
    session = Session(settings, start_of(os.environ), Program(), on_any_thread=True)
    session.begin()
    try:
        yield session
    except BaseException as error:
        session.end(None if isinstance(error, SystemExit) else error, main_program.exit_code_of(error))
        raise
    session.end()


if __name__ == "__main__":
    sys.exit(main())
