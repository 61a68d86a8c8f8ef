"""ray-memprof report: writes report.html of a run again.

$ ray-memprof report latest
"""

import sys
from typing import Annotated

import typer

from ray_memprof.commands.terminal import (
    RUN,
    OutputDir,
    Sample,
    errors_as_lines,
    run_named,
    run_names,
    say_standing,
)


def report(
    run: Annotated[str, typer.Argument(help=RUN, autocompletion=run_names)] = "latest",
    beside: Annotated[
        str | None, typer.Option(help="Another run of the same configuration, such as a prediction.")
    ] = None,
    sample: Sample = False,
    output_dir: OutputDir = None,
) -> None:
    """Write report.html of a run again."""
    with errors_as_lines():
        from ray_memprof.report.run_page import write_run_page
        from ray_memprof.store.find_run import find_run
        from ray_memprof.store.run_files import REPORT_FILE
        from ray_memprof.store.run_json import run_facts
        from ray_memprof.store.whole_file import check_target

        run_dir = run_named(run, sample, output_dir)
        check_target(run_dir / REPORT_FILE)
        say_standing([run_dir])
        other = None if beside is None else find_run(beside, output_dir)
        problems = list((run_facts(run_dir) or {}).get("problems", ()))
        path = write_run_page(run_dir, problems, beside=other)
        sys.stdout.write(f"report: {path}\n")
