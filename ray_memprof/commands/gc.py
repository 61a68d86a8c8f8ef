"""ray-memprof gc: removes all but the newest runs.

$ ray-memprof gc --keep 20 --dry-run
"""

import sys
from typing import Annotated

import typer

from ray_memprof.commands.terminal import OutputDir, errors_as_lines


def gc(
    keep: Annotated[
        int, typer.Option(min=0, help="How many of the newest runs stay, of all names together.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    output_dir: OutputDir = None,
) -> None:
    """Remove all runs but the newest; a run that goes on stays, however old it is."""
    with errors_as_lines():
        from ray_memprof.store.find_run import runs_folder
        from ray_memprof.store.remove_run import removed_lines, surplus

        for line in removed_lines(surplus(runs_folder(output_dir), keep=keep), dry_run=dry_run):
            sys.stdout.write(f"{line}\n")
