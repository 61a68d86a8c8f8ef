"""ray-memprof report: writes report.html of a run again.

$ ray-memprof report latest
$ ray-memprof report latest --base baseline      # each number against that of another run
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
    base: Annotated[
        str | None, typer.Option(help="A run whose numbers stand beside those of this run, everywhere.")
    ] = None,
    sample: Sample = False,
    output_dir: OutputDir = None,
) -> None:
    """Write report.html of a run again."""
    with errors_as_lines():
        from ray_memprof.query.database import build
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
        against = None if base is None else find_run(base, output_dir)
        # The SQL that the report offers must find its views there, also in a run of an older version.
        build(run_dir)
        path = write_run_page(run_dir, problems, beside=other, base=against)
        sys.stdout.write(f"report: {path}\n")
