"""What all commands share on a terminal: an error of the user as one line and a hint, and pipes that close early.

    with errors_as_lines():
        ...                               # an error here ends in "error: ...", "hint: ..." and its exit code

Answers go to the standard output, all other messages to the standard error.
"""

import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ray_memprof.errors import ConfigError, DiskFull, RunError
from ray_memprof.wording import visible

_Form = TypeVar("_Form")
RUN = "A run: <name>, <name>/<run_id>, <run_id>, its folder, a file in it, or latest."
RUNS = "Several runs: a pattern in quotes, such as 'profiler_logs/*/latest'."
OUT = "File to write instead of the standard output."
BY_SUFFIX = "Default: as the suffix of --out says, else"
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        metavar="DIR",
        help="Where runs are kept. Default: $RAY_MEMPROF_DIR, else profiler_logs.",
    ),
]

Sample = Annotated[bool, typer.Option("--sample", help="The run that comes with this package, two H200s.")]


def run_named(run: str, sample: bool, output_dir: Path | None, *, begun: bool = False) -> Path:
    """The folder of the run that a person means: by name, or the sample, which is copied among the runs at first.

    Raises:
        ConfigError: there is no such run, or both are named.
    """
    from ray_memprof.store.find_run import find_run, runs_folder
    from ray_memprof.store.run_files import LATEST_LINK

    if not sample:
        return find_run(run, output_dir, begun=begun)
    if run != LATEST_LINK:
        raise ConfigError(f"{run} and --sample both name a run", hint="leave one out")
    from ray_memprof.store.sample import NAME, sample_run

    folder = runs_folder(output_dir)
    is_new = not (folder / NAME).exists()
    run_dir = sample_run(folder)
    if is_new:
        say(f"note: the sample run is in {run_dir} now; every command takes it as {NAME}\n")
    return run_dir


def run_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of runs that begin so, for a shell; behind a slash, the ids of the runs of that name."""
    from ray_memprof.store.find_run import list_runs
    from ray_memprof.store.run_files import LATEST_LINK

    runs = list(reversed(list_runs(ctx.params.get("output_dir"))))
    names = (
        [f"{run.parent.name}/{run.name}" for run in runs]
        if "/" in incomplete
        else dict.fromkeys([*(run.parent.name for run in runs), *([LATEST_LINK] if runs else [])])
    )
    return [name for name in names if name.startswith(incomplete)]


def by_suffix(out: Path | None, forms: Mapping[str, _Form], otherwise: _Form) -> _Form:
    """The form that the suffix of a file asks for; any other file, and none, is `otherwise`."""
    return otherwise if out is None else forms.get(out.suffix, otherwise)


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Print an error of the user, or a full disk, as one line and a hint; a reader that left early is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # for names with characters that the terminal cannot show
    try:
        with unread_is_fine():
            yield
            flush()
    except RunError as error:
        _say_error(error)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        from ray_memprof.store.whole_file import is_full

        if not is_full(error):
            raise
        full = _unwritten(error)
        _say_error(full)
        raise typer.Exit(full.exit_code) from error


def _say_error(error: RunError) -> None:
    say(error.lines())


def say(text: str) -> None:
    """Write to the standard error; if nobody reads it, the exit code stays the same."""
    with suppress(BrokenPipeError):
        sys.stderr.write(visible(text))


def say_standing(run_dirs: Iterable[Path]) -> None:
    """Name the runs that have not ended, since an answer covers only what their ranks have sealed until now."""
    from ray_memprof.store.standing import standing_note

    for note in filter(None, map(standing_note, run_dirs)):
        say(f"{note}\n")


@contextmanager
def unread_is_fine() -> Iterator[None]:
    """Ignore that the reader of the standard output leaves before the end, as head does."""
    try:
        yield
    except BrokenPipeError:
        _drop_stdout()


def flush() -> None:
    """Write out the standard output now, while an error in doing so can still be reported.

    Raises:
        BrokenPipeError: nobody reads the standard output any longer.
        DiskFull: the standard output cannot be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritten(error) from error


def _unwritten(error: OSError) -> DiskFull:
    _drop_stdout()
    reason = os.strerror(error.errno) if error.errno else str(error)
    return DiskFull(f"cannot write the standard output: {reason}", hint="make room on that disk")


def _drop_stdout() -> None:
    """Redirect the standard output to /dev/null: Python flushes it again at exit, and would fail again."""
    with suppress(io.UnsupportedOperation):  # a stream in memory
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, sys.stdout.fileno())
        finally:
            os.close(nothing)
