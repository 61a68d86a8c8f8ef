"""ray-memprof watch: shows how a run gets on, from any terminal.

$ ray-memprof watch
"""

from contextlib import suppress
from typing import Annotated

import typer

from ray_memprof.commands.terminal import RUN, OutputDir, errors_as_lines, run_names


def watch(
    run: Annotated[
        str | None,
        typer.Argument(help=f"{RUN} Default: the newest that goes on.", autocompletion=run_names),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show the run as it is now, and end.")] = False,
    output_dir: OutputDir = None,
) -> None:
    """Show how a run gets on, until it has ended; Ctrl-C ends only the watching."""
    with errors_as_lines(), suppress(KeyboardInterrupt):
        from rich.console import Console

        from ray_memprof.driver import watching

        run_dir = watching.run_to_watch(run, output_dir)
        watching.watch(run_dir, Console(highlight=False, markup=False, emoji=False), once=once)
