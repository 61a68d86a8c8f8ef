"""Run any torch.distributed script in this process, as torchrun would run it in one of its own.

    run_script(Path("generate.py"), ("--task", "t2v-1.3B"), module_spans=("blocks.*",))

The script finds itself as __main__, with its arguments in sys.argv and its folder first on sys.path; RANK and the like
are in the environment already (rank/). What it calls is named by module_spans.py, without any change to it.
"""

import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray_memprof.errors import EXIT_WORKLOAD, RunError
from ray_memprof.store.categories import SCRIPT
from wan.spans import span


class ScriptFailed(RunError):
    """A script that cannot be read, or that ended itself with an exit code other than 0 (exit 16)."""

    exit_code = EXIT_WORKLOAD


def run_script(
    path: Path,
    args: Sequence[str],
    module_spans: Sequence[str] = (),
    problem: Callable[[str], None] = lambda text: None,
) -> None:
    """Run `path` to its end; its own exceptions pass through as they are.

    Args:
        path: of a Python file; relative ones start at the working folder, which is left as it is.
        args: sys.argv[1:] of the script.
        module_spans: patterns over names of modules, see module_spans.py.
        problem: is told what went wrong with the naming of modules.
    """
    path = path.absolute()
    if not path.is_file():
        raise ScriptFailed(
            f"script.path {path}: there is no such file on {os.uname().nodename}",
            hint="every node must see the script under the same path",
        )
    from ray_memprof.workload.module_spans import naming_modules

    naming = naming_modules(module_spans, problem)
    with _as_main_program(path, args), _signals_ignored_off_the_main_thread(), naming:
        with span(SCRIPT):  # around everything: what no module allocates has a span, too
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as ended:
                _judge(path, ended.code)


def _judge(path: Path, code: str | int | None) -> None:
    """What the interpreter would make of SystemExit(code): None and 0 are success, a text is printed and means 1."""
    if code is None or code == 0:
        return
    status, text = (int(code), "") if isinstance(code, int) else (1, f": {code}" if code else "")
    raise ScriptFailed(
        f"{path.name} ended with exit code {status}{text}", hint="its output is in the rank's log"
    )


@contextmanager
def _as_main_program(path: Path, args: Sequence[str]) -> Iterator[None]:
    argv, search = sys.argv, sys.path
    # `python script.py` resolves links for the search path only.
    sys.argv, sys.path = [str(path), *args], [str(path.resolve().parent), *search]
    try:
        yield
    finally:
        sys.argv, sys.path = argv, search


@contextmanager
def _signals_ignored_off_the_main_thread() -> Iterator[None]:
    """Python refuses signal.signal on other threads than the main one, and an actor's methods run on such a one.

    The script's handlers would not be called anyway: signals to a rank are the driver's and Ray's affair.
    """
    original, warned = signal.signal, set[int]()
    if threading.current_thread() is threading.main_thread():
        yield
        return
    signal.signal = _refusing(original, warned)
    try:
        yield
    finally:
        signal.signal = original


def _refusing(original: Callable[..., Any], warned: set[int]) -> Callable[..., Any]:
    def replacement(signalnum: int, handler: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            return original(signalnum, handler)
        if signalnum not in warned:
            warned.add(signalnum)
            name = signal.Signals(signalnum).name
            sys.stderr.write(f"warning: a handler of {name} is ignored: a rank runs off the main thread\n")
        return signal.getsignal(signalnum)

    return replacement
