"""ray-memprof query: answers a question about one or several runs, given by its name or in SQL.

$ ray-memprof query imbalance latest
"""

from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import (
    BY_SUFFIX,
    OUT,
    RUN,
    RUNS,
    OutputDir,
    errors_as_lines,
    run_names,
    say_standing,
)
from ray_memprof.errors import ConfigError
from ray_memprof.query.answers import Form, form_of, has_moments, write_answer, write_text


def question_names(incomplete: str) -> list[str]:
    """The questions and tables whose name begins so, for a shell."""
    from ray_memprof.query.questions import QUESTIONS
    from ray_memprof.store.schema import TABLES

    return [name for name in (*QUESTIONS, *TABLES) if name.startswith(incomplete)]


def query(
    question: Annotated[
        str | None,
        typer.Argument(help="The name of a question or a table, or SQL.", autocompletion=question_names),
    ] = None,
    run: Annotated[
        str | None, typer.Argument(help=f"{RUN} Default: latest.", autocompletion=run_names)
    ] = None,
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    format: Annotated[Form | None, typer.Option(help=f"How to write the rows. {BY_SUFFIX} table.")] = None,  # noqa: A002 - the option's name
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the questions and tables.")] = False,
    show_sql: Annotated[bool, typer.Option("--sql", help="Show the SQL of the question.")] = False,
    output_dir: OutputDir = None,
) -> None:
    """Answer a question about one or several runs, given by its name or in SQL."""
    with errors_as_lines():
        from ray_memprof.query.ask import ask, began_ns, find_runs, question_lines, sql_of
        from ray_memprof.store.whole_file import check_target

        check_target(out)
        if show_list:
            write_text("\n".join(question_lines()) + "\n", out)
        elif question is None:
            raise ConfigError("there is no question", hint="ray-memprof query --list lists named questions")
        elif show_sql:
            write_text(sql_of(question), out)
        else:
            run_dirs = find_runs(run, runs, output_dir)
            say_standing(run_dirs)
            rows, form = ask(question, run_dirs, is_named=runs is not None), format or form_of(out)
            is_told = form is Form.TABLE and has_moments(rows)
            write_answer(rows, form, out, began_ns=began_ns(run_dirs) if is_told else None)
