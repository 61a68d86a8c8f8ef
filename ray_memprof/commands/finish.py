"""ray-memprof finish: completes a run whose launcher was killed, or whose records are still on other hosts.

$ ray-memprof finish nano /mnt/host2/profiler_logs/nano
$ ray-memprof finish ulysses8 --from 20260102-030405-ab12
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import RUN, OutputDir, errors_as_lines, run_names
from ray_memprof.wording import visible


def finish(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [FOLDER]...",
            help=f"{RUN} Of a recorded program also the folders that its other hosts have left.",
            autocompletion=run_names,
            show_default=False,
        ),
    ],
    copies: Annotated[
        list[Path],
        typer.Option("--from", metavar="FOLDER", help="A copy of a host's scratch folder of this run."),
    ] = [],  # noqa: B006 - typer copies it
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray on its hosts. Default: the Ray that it had joined.")
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="How long to wait for ranks of a recorded program that still run."
        ),
    ] = 0.0,
    output_dir: OutputDir = None,
) -> None:
    """Complete a run whose launcher was killed, or whose records are still on other hosts, and write its report."""
    from ray_memprof.store.find_run import find_run

    with errors_as_lines():
        from ray_memprof.driver import recorded
        from ray_memprof.driver.finish import finish as make_whole
        from ray_memprof.driver.joining import joined

        run_dir, notes = joined([find_run(run, output_dir) for run in runs], wait_s=wait)
        is_recorded = recorded.is_recorded(run_dir)
        for line in (
            notes + recorded.complete(run_dir, wait_s=wait)
            if is_recorded
            else make_whole(run_dir, copies, address=address)
        ):
            sys.stdout.write(visible(f"{line}\n"))
