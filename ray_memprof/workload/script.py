"""A program of the user's own as the main program of this process, and what its end means.

    run_script(Path("generate.py"), "", ("--task", "t2v-1.3B"))      # or a module, as python -m does
    explained(error, "generate.py")          # the error as the rank reports it; None: the program has ended well

main_program.py says how it runs. Imports nothing of wan, of the configuration and of torch: the program has its own.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ray_memprof.errors import EXIT_WORKLOAD, RunError, WorkloadError
from ray_memprof.workload import main_program
from ray_memprof.workload.main_program import code_of


class ScriptFailed(RunError):
    """A script that cannot be read, or that ended itself with an exit code other than 0 (exit 16)."""

    exit_code = EXIT_WORKLOAD


def run_script(path: Path | None, module: str, args: Sequence[str]) -> None:
    """Run a program to its end; its exceptions pass through as they are.

    Args:
        path: of a Python file, or of a folder that has a main program; None: `module` says what runs.
        module: a module, or a package that has a main program, in the working folder or among the installed ones.
        args: sys.argv[1:] of the program.

    Raises:
        ScriptFailed: there is no such file on this host.
    """
    if path is None:
        # As `python -m` does, so that the packages of the working folder are found.
        if not sys.flags.safe_path:
            sys.path.insert(0, os.getcwd())
        main_program.run_module(module, args)
        return
    if not path.exists():
        raise ScriptFailed(
            f"script.path {path}: there is no such file on {os.uname().nodename}",
            hint="every node must see the script under the same path",
        )
    if not sys.flags.safe_path:
        sys.path.insert(0, "")  # the folder of the script takes this place
    main_program.run_path(path, args)


def explained(error: BaseException, name: str) -> BaseException | None:
    """The error as its rank reports it; None: it means that the program has ended well.

    Args:
        error: left the program.
        name: of the program, for the message.
    """
    if isinstance(error, SystemExit):
        return _of_exit(error.code, name)
    # Not imported here: a script's own package may be called wan, and a script need not use one at all.
    wan_error = getattr(sys.modules.get("wan.errors"), "WanError", None)
    if not (isinstance(wan_error, type) and isinstance(error, wan_error)):
        return error
    hint, code = getattr(error, "hint", None), getattr(error, "exit_code", None)
    if not (isinstance(hint, str) and isinstance(code, int)):  # another package's class of that name
        return error
    found = WorkloadError(str(error), hint=hint, exit_code=code)
    found.__cause__ = error
    return found


def _of_exit(code: object, name: str) -> ScriptFailed | None:
    """None and 0 mean success; a text means exit code 1."""
    status = code_of(code)
    if status == 0:
        return None
    text = f": {code}" if code and not isinstance(code, int) else ""
    return ScriptFailed(f"{name} ended with exit code {status}{text}", hint="its output is in the rank's log")
