"""ray-memprof show: prints the last lines of a run again.

$ ray-memprof show baseline
"""

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
from ray_memprof.query.answers import write_text


def show(
    run: Annotated[str, typer.Argument(help=RUN, autocompletion=run_names)] = "latest",
    sample: Sample = False,
    output_dir: OutputDir = None,
) -> None:
    """Print the last lines of a run again: how it ended, its peaks, what was checked, what was found."""
    with errors_as_lines():
        from ray_memprof.report.last_lines import last_lines

        run_dir = run_named(run, sample, output_dir, begun=True)
        say_standing([run_dir])
        write_text("".join(f"{line}\n" for line in last_lines(run_dir)), None)
