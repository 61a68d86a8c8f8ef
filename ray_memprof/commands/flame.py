"""ray-memprof flame: writes flame graphs of what was alive at the peak of each rank.

$ ray-memprof flame latest --out flame.html
$ ray-memprof flame latest --base baseline       # each frame against that of another run
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import RUN, OutputDir, errors_as_lines, run_names, say_standing


def flame(
    run: Annotated[str, typer.Argument(help=RUN, autocompletion=run_names)] = "latest",
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default flame.html in the run folder.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Show only this rank.")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="A run against which each frame is shown.", autocompletion=run_names),
    ] = None,
    output_dir: OutputDir = None,
) -> None:
    """Write a flame graph of what was alive at the peak, by Python stack."""
    with errors_as_lines():
        from ray_memprof.report.flame_page import write_flame_page
        from ray_memprof.store.find_run import find_run
        from ray_memprof.store.run_files import FLAME_FILE
        from ray_memprof.store.whole_file import check_target

        run_dir = find_run(run, output_dir)
        path = run_dir / FLAME_FILE if out is None else out
        check_target(path)
        say_standing([run_dir])
        against = None if base is None else find_run(base, output_dir)
        sys.stdout.write(f"flame graph: {write_flame_page(run_dir, path, rank, against)}\n")
