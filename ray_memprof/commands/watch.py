"""ray-memprof watch: shows how a run gets on, from any terminal.

$ ray-memprof watch
$ ray-memprof watch --address 10.0.0.1:6379     # a run of that Ray cluster, from any of its nodes
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
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Of the Ray cluster that the run has joined, if its folder is on another node; auto: of this node's. "
            "Default, where no such run is found here: RAY_ADDRESS.",
        ),
    ] = None,
    output_dir: OutputDir = None,
) -> None:
    """Show how a run gets on, until it has ended; Ctrl-C ends only the watching."""
    with errors_as_lines(), suppress(KeyboardInterrupt):
        from rich.console import Console

        from ray_memprof.driver import watching

        with watching.watched_run(run, output_dir, address) as watched:
            watching.follow(watched, Console(highlight=False, markup=False, emoji=False), once=once)
