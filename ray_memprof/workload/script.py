"""Run any torch.distributed script in this process, as torchrun would run it in a process of its own.

    run_script(Path("generate.py"), ("--task", "t2v-1.3B"), module_spans=("blocks.*",))

The script runs as __main__, with its arguments in sys.argv and its folder first on sys.path; rank/ has set RANK and
similar variables in the environment already. module_spans.py opens spans for its modules, without changing the script.
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
from ray_memprof.recorder.spans import span
from ray_memprof.store.categories import SCRIPT
from ray_memprof.workload.main_program import code_of


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
        path: of a Python file; a relative path starts at the working folder, which stays as it is.
        args: sys.argv[1:] of the script.
        module_spans: patterns for names of modules, see module_spans.py.
        problem: called with a message if a module could not be named.
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
        with span(SCRIPT):  # around everything, so that allocations outside of modules have a span, too
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as ended:
                _judge(path, ended.code)


def _judge(path: Path, code: str | int | None) -> None:
    """Raise ScriptFailed unless `code` of SystemExit means success: None and 0 do, a text means exit code 1."""
    status = code_of(code)
    if status == 0:
        return
    text = f": {code}" if code and not isinstance(code, int) else ""
    raise ScriptFailed(
        f"{path.name} ended with exit code {status}{text}", hint="its output is in the rank's log"
    )


@contextmanager
def _as_main_program(path: Path, args: Sequence[str]) -> Iterator[None]:
    argv, search = sys.argv, sys.path
    # As `python script.py` does, links are resolved for the search path only.
    sys.argv, sys.path = [str(path), *args], [str(path.resolve().parent), *search]
    try:
        yield
    finally:
        sys.argv, sys.path = argv, search


@contextmanager
def _signals_ignored_off_the_main_thread() -> Iterator[None]:
    """Make signal.signal a no-op with a warning: Python allows it on the main thread only, which an actor does not use.

    The script's handlers would not be useful anyway: only the driver and Ray send signals to a rank.
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
