"""Run a file or a module as the main program of this process, as `python FILE` or `python -m MODULE` does.

    code, error = run_main(path=Path("train.py"), args=("--steps", "9"))

The program is __main__, with its arguments in sys.argv, and its folder (or for a module the working folder) first on
sys.path.
"""

import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType


@contextmanager
def as_main_program(argv: Sequence[str], first: str) -> Iterator[None]:
    """Inside the block sys.argv is `argv`, and `first` is first on sys.path."""
    before = sys.argv, sys.path
    sys.argv, sys.path = list(argv), [first, *sys.path]
    try:
        yield
    finally:
        sys.argv, sys.path = before


def run_path(path: Path, args: Sequence[str]) -> None:
    """Run a Python file to its end; its exceptions pass through."""
    # As `python script.py` does, links are resolved for the search path only.
    with as_main_program([str(path), *args], str(path.resolve().parent)):
        runpy.run_path(str(path), run_name="__main__")


def run_module(module: str, args: Sequence[str]) -> None:
    """Run a module, or a package's __main__, to its end; its exceptions pass through."""
    with as_main_program([module, *args], os.getcwd()):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def without_our_frames(trace: TracebackType | None, ours: Path) -> TracebackType | None:
    """The traceback as the program alone would have it: what called the program is left out.

    Args:
        trace: of the exception.
        ours: the folder of the code that called the program.
    """
    left = trace
    while left is not None and _is_of_caller(left, ours):
        left = left.tb_next
    return left or trace


def _is_of_caller(trace: TracebackType, ours: Path) -> bool:
    file = trace.tb_frame.f_code.co_filename
    return file.startswith(("<frozen runpy>", f"{ours}{os.sep}")) or file == runpy.__file__
