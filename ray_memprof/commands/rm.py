"""ray-memprof rm: removes runs from the disk.

$ ray-memprof rm baseline/20260102-030405-ab12
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import RUN, OutputDir, errors_as_lines, run_names
from ray_memprof.errors import ConfigError


def rm(
    runs: Annotated[
        list[str], typer.Argument(help=f"{RUN} A name means its newest run.", autocompletion=run_names)
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    output_dir: OutputDir = None,
) -> None:
    """Remove runs with all their files; a run that goes on is refused, and then none is removed."""
    with errors_as_lines():
        from ray_memprof.store.find_run import find_run
        from ray_memprof.store.remove_run import check_removable, removed_lines

        run_dirs = list(dict.fromkeys(_whole(run, find_run(run, output_dir, begun=True)) for run in runs))
        for run_dir in run_dirs:
            check_removable(run_dir)
        for line in removed_lines(run_dirs, dry_run=dry_run):
            sys.stdout.write(f"{line}\n")


def _whole(named: str, run_dir: Path) -> Path:
    """The run, unless a file in it was named: who names a file may mean only that."""
    if run_dir in Path(named).resolve().parents:
        raise ConfigError(
            f"{named} lies in the run {run_dir.parent.name}/{run_dir.name}, which would go as a whole",
            hint=f"ray-memprof rm {run_dir.parent.name}/{run_dir.name}, or remove the file yourself",
        )
    return run_dir
