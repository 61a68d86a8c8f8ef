"""Record a program that something else starts: torchrun, srun, mpirun or a person. No Ray, no configuration file.

    torchrun --nproc_per_node 8 -m ray_memprof.record train.py --steps 100
    python -m ray_memprof.record --level stack -m pkg.train
    with ray_memprof.recording("evaluation"): ...               # from inside a program

All ranks of one start leave one run folder, profiler_logs/<name>/<run_id>/, with the same tables as a launched run;
rank 0 completes it when the program ends. The exit code is the program's own; an option that cannot be used is exit 2.
"""

import argparse
import atexit
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_memprof.errors import EXIT_CONFIG, ConfigError
from ray_memprof.rank.settings import OUTPUT_DIR, Program, Settings
from ray_memprof.rank.starters import start_of
from ray_memprof.wording import visible

if TYPE_CHECKING:
    from ray_memprof.rank.session import Session

_FOLDER = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run a program and record it; returns the program's exit code."""
    try:
        settings, program = _parsed(sys.argv[1:] if argv is None else argv)
        start = start_of(os.environ)
    except ConfigError as error:
        sys.stderr.write(visible(f"error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else "")))
        return EXIT_CONFIG
    from ray_memprof.rank.session import Session

    return _run(Session(settings, start, program), program)


def _run(session: "Session", program: Program) -> int:
    from ray_memprof.workload import main_program
    from ray_memprof.workload.after_import import after_import

    ended: dict[str, Any] = {}
    # Registered before the program's own: they run in the reverse order, when its other threads have ended.
    atexit.register(lambda: session.end(**ended))
    with _sealed_at_exit(session), after_import("torch", session.begin):
        try:
            if program.module:
                main_program.run_module(program.module, program.args)
            else:
                assert program.path is not None
                main_program.run_path(program.path, program.args)
        except SystemExit as error:
            ended["exit_code"] = main_program.ends_with(error)
            raise
        except BaseException as error:
            ended |= {"error": error, "exit_code": 130 if isinstance(error, KeyboardInterrupt) else 1}
            trace = main_program.without_our_frames(error.__traceback__, _FOLDER)
            sys.excepthook(type(error), error.with_traceback(trace), trace)
            return int(ended["exit_code"])
    return 0


@contextmanager
def _sealed_at_exit(session: "Session") -> Iterator[None]:
    """Let os._exit, which ends a process without another word, end the recording first; also after the block."""
    leave = os._exit

    def sealing(status: int) -> None:
        with suppress(Exception):
            if threading.current_thread() is threading.main_thread():
                session.end(exit_code=status)
            else:
                session.seal()
        leave(status)

    os._exit = sealing  # type: ignore[assignment]
    yield


def _parsed(argv: Sequence[str]) -> tuple[Settings, Program]:
    parser = argparse.ArgumentParser(
        prog="python -m ray_memprof.record",
        description="Run a program and record its memory.",
        usage="%(prog)s [options] (FILE | -m MODULE) [arguments of the program]",
        allow_abbrev=False,
    )
    parser.add_argument("--name", default="", help="of the run; default: the program's name")
    parser.add_argument("--level", default="event", help="stage, event or stack; default: event")
    parser.add_argument(
        "--output-dir", type=Path, help=f"folder for runs; default: ${OUTPUT_DIR}, else profiler_logs"
    )
    parser.add_argument(
        "--module-spans",
        action="append",
        default=[],
        metavar="PATTERN",
        help="a span for each module whose name matches, such as 'blocks.*'; may be repeated",
    )
    parser.add_argument("--sample-interval-s", type=float, default=0.1, help="seconds between two samples")
    parser.add_argument("--device", default="", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="a module, and its arguments")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="a Python file, and its arguments")
    found = parser.parse_args(argv)
    settings = Settings(
        name=found.name,
        level=found.level,
        output_dir=found.output_dir,
        module_spans=tuple(found.module_spans),
        sample_interval_s=found.sample_interval_s,
        device=found.device,
    ).checked()
    return settings, _program(found.module, found.program)


def _program(module: list[str] | None, rest: list[str]) -> Program:
    if module:
        return Program(module=module[0], args=tuple(module[1:]))
    if not rest:
        raise ConfigError(
            "no program is named", hint="python -m ray_memprof.record [options] train.py [arguments]"
        )
    path = Path(rest[0])
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file", hint="a module is named with -m")
    return Program(path=path, args=tuple(rest[1:]))


if __name__ == "__main__":
    sys.exit(main())
