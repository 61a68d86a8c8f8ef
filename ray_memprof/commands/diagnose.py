"""ray-memprof diagnose: says what makes the peak of a run so high, and what to change.

$ ray-memprof diagnose baseline
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import (
    BY_SUFFIX,
    OUT,
    RUN,
    RUNS,
    OutputDir,
    by_suffix,
    errors_as_lines,
    run_names,
    say_standing,
)
from ray_memprof.query.answers import Form, write_answer, write_text


class FindingsForm(StrEnum):
    """How findings are written."""

    TEXT = "text"
    CSV = "csv"
    JSON = "json"
    MARKDOWN = "markdown"


_BY_SUFFIX = {".csv": FindingsForm.CSV, ".json": FindingsForm.JSON, ".md": FindingsForm.MARKDOWN}


def diagnose(
    run: Annotated[
        str | None, typer.Argument(help=f"{RUN} Default: latest.", autocompletion=run_names)
    ] = None,
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    format: Annotated[  # noqa: A002 - the option's name
        FindingsForm | None, typer.Option(help=f"How to write the findings. {BY_SUFFIX} text.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
    output_dir: OutputDir = None,
) -> None:
    """Say in sentences what makes the peak of a run so high, and what to change."""
    with errors_as_lines():
        from ray_memprof.analysis.diagnosis.findings import diagnosed, found_markdown, found_rows, found_text
        from ray_memprof.query.ask import find_runs
        from ray_memprof.store.whole_file import check_target

        check_target(out)
        run_dirs = find_runs(run, runs, output_dir)
        form = format or by_suffix(out, _BY_SUFFIX, FindingsForm.TEXT)
        if form in (FindingsForm.CSV, FindingsForm.JSON):  # the texts say it themselves
            say_standing(run_dirs)
        found = [diagnosed(run_dir) for run_dir in run_dirs]
        if form is FindingsForm.TEXT:
            write_text(found_text(found, is_named=runs is not None), out)
        elif form is FindingsForm.MARKDOWN:
            write_text(found_markdown(found), out)
        else:
            write_answer(found_rows(found), Form(form.value), out)
