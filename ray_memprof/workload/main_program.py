"""Run a file or a module as the main program of this process, as `python FILE` or `python -m MODULE` does.

    run_path(Path("train.py"), ("--steps", "9"))

Nothing is taken back at the end: threads and atexit handlers of the program still run then, and find their __main__,
sys.argv and sys.path as they know them. So this is for a process that ends with the program.
"""

import io
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType

from ray_memprof.errors import EXIT_INTERRUPTED

_callers: list[ModuleType | None] = []
"""The main modules before: their code still runs, and needs its names."""


def run_path(path: Path, args: Sequence[str]) -> None:
    """Run a Python file, or a folder that has a main program, to its end; its exceptions pass through."""
    file = os.path.abspath(path)
    main = _fresh_main()
    sys.argv = [str(path), *args]
    _put_first(file if os.path.isdir(file) else os.path.dirname(os.path.realpath(file)))
    if os.path.isdir(file):
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined] # what Python itself calls
        return
    main.__file__, main.__loader__ = file, SourceFileLoader("__main__", file)
    with io.open_code(file) as source:
        code = compile(source.read(), file, "exec")
    exec(code, main.__dict__)


def run_module(module: str, args: Sequence[str]) -> None:
    """Run a module, or a package's __main__, to its end; its exceptions pass through.

    One that is not there ends in Python's own line and exit code.
    """
    _fresh_main()
    sys.argv = [module, *args]
    runpy._run_module_as_main(module)  # type: ignore[attr-defined] # what `python -m` itself calls


def _fresh_main() -> ModuleType:
    _callers.append(sys.modules.get("__main__"))
    main = ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __annotations__={}, __cached__=None)
    sys.modules["__main__"] = main
    return main


def _put_first(folder: str) -> None:
    """Put `folder` in the place of the working folder, which `python -m` has put first on sys.path."""
    if not sys.flags.safe_path:
        sys.path[:1] = [folder]


def without_our_frames(trace: TracebackType | None, ours: Path) -> TracebackType | None:
    """The traceback as the program alone would have it: what called the program is left out.

    Args:
        trace: of the exception.
        ours: the folder of the code that called the program.
    """
    while trace is not None and _is_of_caller(trace, ours):
        trace = trace.tb_next
    return trace


def _is_of_caller(trace: TracebackType, ours: Path) -> bool:
    file = trace.tb_frame.f_code.co_filename
    return file.startswith(("<frozen runpy>", f"{ours}{os.sep}")) or file == runpy.__file__


def exit_code_of(error: BaseException) -> int:
    """The exit code of a process that this exception ends."""
    if isinstance(error, SystemExit):
        return code_of(error.code)
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def code_of(status: object) -> int:
    """The exit code that Python ends with for sys.exit(status): a text or another object means 1."""
    return 0 if status is None else status & 0xFF if isinstance(status, int) else 1
