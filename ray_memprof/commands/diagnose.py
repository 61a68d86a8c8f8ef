"""ray-memprof diagnose: says what makes the peak of a run so high, and what to change.

$ ray-memprof diagnose baseline
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import OUT, RUN, RUNS, OutputDir, errors_as_lines, say_standing
from ray_memprof.query.answers import Form, write_answer, write_text


class FindingsForm(StrEnum):
    """How findings are written."""

    TEXT = "text"
    CSV = "csv"
    JSON = "json"


def diagnose(
    run: Annotated[str | None, typer.Argument(help=f"{RUN} Default: latest.")] = None,
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    format: Annotated[FindingsForm, typer.Option(help="How to write the findings.")] = FindingsForm.TEXT,  # noqa: A002 - the option's name
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
    output_dir: OutputDir = None,
) -> None:
    """Say in sentences what makes the peak of a run so high, and what to change."""
    with errors_as_lines():
        from ray_memprof.analysis.diagnosis.findings import diagnosed, found_rows, found_text
        from ray_memprof.query.ask import find_runs
        from ray_memprof.store.whole_file import check_target

        check_target(out)
        run_dirs = find_runs(run, runs, output_dir)
        if format is not FindingsForm.TEXT:  # the text says it itself
            say_standing(run_dirs)
        found = [diagnosed(run_dir) for run_dir in run_dirs]
        if format is FindingsForm.TEXT:
            write_text(found_text(found, is_named=runs is not None), out)
        else:
            write_answer(found_rows(found), Form(format.value), out)
