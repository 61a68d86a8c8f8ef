"""ray-memprof compare: compares runs, and checks limits that must hold.

$ ray-memprof compare before after --fail-if 'peak_device_used > +2%' --html side_by_side.html
"""

import json
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_memprof.commands.terminal import (
    BY_SUFFIX,
    OUT,
    RUN,
    OutputDir,
    by_suffix,
    errors_as_lines,
    flush,
    run_names,
    say,
    unread_is_fine,
)
from ray_memprof.errors import ConfigError, LimitExceeded
from ray_memprof.query.answers import Form, write_answer, write_text

if TYPE_CHECKING:
    from ray_memprof.analysis.comparison.compare import Comparison


class CompareForm(StrEnum):
    """How a comparison is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"
    MARKDOWN = "markdown"
    JUNIT = "junit"


_BY_SUFFIX = {
    **{f".{form.value}": form for form in (CompareForm.CSV, CompareForm.JSON, CompareForm.PARQUET)},
    ".md": CompareForm.MARKDOWN,
    ".xml": CompareForm.JUNIT,
}


def compare(
    runs: Annotated[
        list[str], typer.Argument(help=f"The base, then the other runs. {RUN}", autocompletion=run_names)
    ],
    fail_if: Annotated[
        list[str],
        typer.Option(help="A limit: 'peak_device_used > +2%', 'decode.duration > 3 s' ... Can be repeated."),
    ] = [],  # noqa: B006 - typer copies it
    rank: Annotated[int | None, typer.Option(min=0, help="Compare only this rank.")] = None,
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Check the limits also if a run failed.")
    ] = False,
    most: Annotated[int, typer.Option(min=1, help="table, markdown: most rows of each kind.")] = 20,
    format: Annotated[  # noqa: A002 - the option's name
        CompareForm | None,
        typer.Option(
            help=f"How to write what moved; markdown and junit are for pull requests. {BY_SUFFIX} table."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with figures to this file; it works offline.")
    ] = None,
    output_dir: OutputDir = None,
) -> None:
    """Compare runs with the first of them: the whole run, every rank and every span.

    With --fail-if: exit code 30 if a limit is exceeded, or if the figures are too rough to tell. A limit is
    [WHERE.]MEASURE > [+]AMOUNT, or the same with <; it is exceeded if that is true. `ray-memprof query measures` lists
    the measures. WHERE is rankN, mean, or a span as the table names it. With a sign or % the amount is a change against
    the base.
    """
    with errors_as_lines():
        from ray_memprof.analysis.comparison import compare as comparing
        from ray_memprof.analysis.comparison.limits import verdict_text
        from ray_memprof.analysis.comparison.text import check_lines, warnings
        from ray_memprof.store.find_run import find_run
        from ray_memprof.store.whole_file import check_target

        for path in (out, html):
            check_target(path)
        if html is not None and rank is not None:
            raise ConfigError("--html shows all ranks", hint="leave out --rank, or --html")
        folders = [find_run(one, output_dir) for one in runs]
        compared = comparing.compare(folders, fail_if, rank=rank, allow_failed=allow_failed)
        for line in (*warnings(compared), *check_lines(compared)):
            say(f"{line}\n")
        if html is not None:
            _write_page(compared, html)
        # The table comes last and by itself: the exit code must not depend on whether it is read to its end.
        with unread_is_fine():
            _write_compared(compared, format or by_suffix(out, _BY_SUFFIX, CompareForm.TABLE), out, most)
            flush()
        if verdict := verdict_text(compared.checks):
            raise LimitExceeded(verdict)


def _write_page(compared: "Comparison", path: Path) -> None:
    from ray_memprof.report.comparison_page import write_comparison_page

    with suppress(BrokenPipeError):  # of a FIFO
        say(f"comparison: {write_comparison_page(compared, path)}\n")


def _write_compared(compared: "Comparison", form: CompareForm, out: Path | None, most: int) -> None:
    from ray_memprof.analysis.comparison import pull_request
    from ray_memprof.analysis.comparison.compare import as_facts
    from ray_memprof.analysis.comparison.text import comparison_text

    if form is CompareForm.TABLE:
        write_text(comparison_text(compared, most), out)
    elif form is CompareForm.JSON:
        write_text(json.dumps(as_facts(compared), indent=1) + "\n", out)
    elif form is CompareForm.MARKDOWN:
        write_text(pull_request.comparison_markdown(compared, most), out)
    elif form is CompareForm.JUNIT:
        write_text(pull_request.comparison_junit(compared), out)
    else:
        write_answer(compared.moves, Form(form.value), out)
