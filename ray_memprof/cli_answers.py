"""The commands that answer questions to recorded runs: query, diagnose, report and compare; cli.py lists them.

    $ ray-memprof query imbalance latest
    $ ray-memprof diagnose baseline
    $ ray-memprof compare before after --fail-if 'peak_device_used > +2%' --html side_by_side.html

Answers go to the standard output or into --out; what else there is to say, to the standard error.
"""

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_memprof.errors import ConfigError, DiskFull, LimitExceeded, RunError
from ray_memprof.rows import Form, write, write_text
from ray_memprof.wording import visible

if TYPE_CHECKING:
    from ray_memprof.compare import Comparison

RUN = "A run folder, <name>, <name>/<run_id>, <run_id> or latest."
RUNS = "Several runs: a pattern in quotes, as 'profiler_logs/*/latest'."
OUT = "File to write instead of the standard output."


class Told(StrEnum):
    """How findings are written."""

    TEXT = "text"
    CSV = "csv"
    JSON = "json"


@contextmanager
def told() -> Iterator[None]:
    """An error of the user's, or of the disk, as one line and a hint; a reader that left early is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal has no letters for
    try:
        with _unread_is_fine():
            yield
            _flush()
    except RunError as error:
        _tell(error)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        from ray_memprof.exporters.whole_file import is_full

        if not is_full(error):
            raise
        full = _unwritten(error)
        _tell(full)
        raise typer.Exit(full.exit_code) from error


def _tell(error: RunError) -> None:
    _say(f"error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))


def _say(text: str) -> None:
    """To the standard error; that nobody reads it changes no exit code."""
    with suppress(BrokenPipeError):
        sys.stderr.write(visible(text))


def _say_standing(run_dirs: Iterable[Path]) -> None:
    """Of runs that have not ended: an answer is of what their ranks have sealed so far."""
    from ray_memprof.standing import standing

    for run_dir in run_dirs:
        found = standing(run_dir)
        if found is not None:
            _say(
                f"note: {run_dir.parent.name}/{run_dir.name}: {found.text}; this is of what was recorded until now\n"
            )


@contextmanager
def _unread_is_fine() -> Iterator[None]:
    """For what is written to a pipe: its reader may leave before the end, as head does."""
    try:
        yield
    except BrokenPipeError:
        _drop_stdout()


def _flush() -> None:
    """See that the standard output is written while an error of it can still be told.

    Raises:
        BrokenPipeError: nobody reads it any longer.
        DiskFull: it cannot be written.
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
    """Point the standard output at nothing: Python flushes it once more at the end, and would fail again."""
    with suppress(io.UnsupportedOperation):  # a stream in memory
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, sys.stdout.fileno())
        finally:
            os.close(nothing)


def query(
    question: Annotated[str | None, typer.Argument(help="The name of a question or a table, or SQL.")] = None,
    run: Annotated[str | None, typer.Argument(help=f"{RUN} Default: latest.")] = None,
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    format: Annotated[Form, typer.Option(help="How to write the rows.")] = Form.TABLE,  # noqa: A002 - the option's name
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the questions and tables.")] = False,
    show_sql: Annotated[bool, typer.Option("--sql", help="Show the SQL of the question.")] = False,
) -> None:
    """Ask a run, or several, a question by its name or in SQL."""
    with told():
        from ray_memprof.exporters.whole_file import check_target
        from ray_memprof.query import ask, find_runs, question_lines, sql_of

        check_target(out)
        if show_list:
            write_text("\n".join(question_lines()) + "\n", out)
        elif question is None:
            raise ConfigError("there is no question", hint="ray-memprof query --list has those with a name")
        elif show_sql:
            write_text(sql_of(question), out)
        else:
            run_dirs = find_runs(run, runs)
            _say_standing(run_dirs)
            write(ask(question, run_dirs, is_named=runs is not None), format, out)


def diagnose(
    run: Annotated[str | None, typer.Argument(help=f"{RUN} Default: latest.")] = None,
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    format: Annotated[Told, typer.Option(help="How to write the findings.")] = Told.TEXT,  # noqa: A002 - as above
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
) -> None:
    """Say in sentences what holds the peak of a run back, and what to change."""
    with told():
        from ray_memprof.exporters.whole_file import check_target
        from ray_memprof.findings import diagnosed, found_rows, found_text
        from ray_memprof.query import find_runs

        check_target(out)
        run_dirs = find_runs(run, runs)
        if format is not Told.TEXT:  # the text says it itself
            _say_standing(run_dirs)
        found = [diagnosed(run_dir) for run_dir in run_dirs]
        if format is Told.TEXT:
            write_text(found_text(found, is_named=runs is not None), out)
        else:
            write(found_rows(found), Form(format.value), out)


def report(
    run: Annotated[str, typer.Argument(help=RUN)] = "latest",
    beside: Annotated[
        str | None, typer.Option(help="A run of the same configuration from another source, a prediction.")
    ] = None,
) -> None:
    """Write report.html of a run anew."""
    with told():
        from ray_memprof import report as reporting
        from ray_memprof.exporters.whole_file import check_target
        from ray_memprof.find_run import find_run
        from ray_memprof.store import REPORT_FILE

        run_dir = find_run(run)
        check_target(run_dir / REPORT_FILE)
        _say_standing([run_dir])
        other = None if beside is None else find_run(beside)
        path = reporting.write(run_dir, _problems(run_dir), beside=other)
        sys.stdout.write(f"report: {path}\n")


def _problems(run_dir: Path) -> list[str]:
    """What the driver noted of records that are not whole; a run that it never ended has no note."""
    from ray_memprof.store import RUN_FILE

    path = run_dir / RUN_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="if it is a copy, copy it again") from error
    return list(facts.get("problems", []))


def compare(
    runs: Annotated[list[str], typer.Argument(help=f"The base, then the others. {RUN}")],
    fail_if: Annotated[
        list[str],
        typer.Option(help="A limit: 'peak_device_used > +2%', 'decode.duration > 3 s' ... May be repeated."),
    ] = [],  # noqa: B006 - typer copies it
    rank: Annotated[int | None, typer.Option(min=0, help="Look at this rank alone.")] = None,
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Hold limits against failed runs too.")
    ] = False,
    most: Annotated[int, typer.Option(min=1, help="table: rows of a kind to list at most.")] = 20,
    format: Annotated[Form, typer.Option(help="How to write what moved.")] = Form.TABLE,  # noqa: A002 - as above
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with figures too, one file that opens offline.")
    ] = None,
) -> None:
    """Compare runs with the first of them: the whole run, every rank and every span.

    With --fail-if: exit code 30 where a limit is exceeded. A limit is [PLACE.]MEASURE > [+]AMOUNT, or with <: it
    is exceeded where this holds. The measures are those of `ray-memprof query measures`, a place is rankN, mean, or a
    span as the table has it. A sign or % makes it a change against the base.
    """
    with told():
        from ray_memprof import compare as comparing
        from ray_memprof.compare_text import check_lines, warnings
        from ray_memprof.exporters.whole_file import check_target
        from ray_memprof.find_run import find_run

        for path in (out, html):
            check_target(path)
        if html is not None and rank is not None:
            raise ConfigError("--html shows all ranks", hint="leave out --rank, or --html")
        folders = [find_run(one) for one in runs]
        compared = comparing.compare(folders, fail_if, rank=rank, allow_failed=allow_failed)
        for line in (*warnings(compared), *check_lines(compared)):
            _say(f"{line}\n")
        if html is not None:
            from ray_memprof import compare_report

            with suppress(BrokenPipeError):  # of a FIFO
                _say(f"comparison: {compare_report.write(compared, html)}\n")
        # Last, and apart: the verdict stands whether or not the table is read to its end.
        with _unread_is_fine():
            _write_compared(compared, format, out, most)
            _flush()
        exceeded = sum(one.is_exceeded for one in compared.checks)
        if exceeded:
            raise LimitExceeded(f"{exceeded} of {len(compared.checks)} limits exceeded")


def _write_compared(compared: "Comparison", format: Form, out: Path | None, most: int) -> None:  # noqa: A002 - as above
    from ray_memprof.compare import as_facts
    from ray_memprof.compare_text import comparison_text

    if format is Form.TABLE:
        write_text(comparison_text(compared, most), out)
    elif format is Form.JSON:
        write_text(json.dumps(as_facts(compared), indent=1) + "\n", out)
    else:
        write(compared.moves, format, out)
