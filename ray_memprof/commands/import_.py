"""ray-memprof import: makes a run from memory snapshots that torch wrote.

$ ray-memprof import dump/rank*.pickle --name theirs
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import OutputDir, errors_as_lines, say
from ray_memprof.errors import ConfigError


def import_(
    files: Annotated[list[Path], typer.Argument(help="Snapshots of torch's allocator, one for each rank.")],
    name: Annotated[str, typer.Option(help="Name of the run to make.")],
    output_dir: OutputDir = None,
) -> None:
    """Make a run from memory snapshots that torch.cuda.memory._dump_snapshot wrote."""
    from ray_memprof.formats.torch_snapshot.read import import_snapshots
    from ray_memprof.report.derive import derive
    from ray_memprof.store.find_run import runs_folder
    from ray_memprof.store.run_files import LATEST_LINK, REPORT_FILE, trouble_with_name
    from ray_memprof.store.run_folder import new_run_id, point

    with errors_as_lines():
        if trouble := trouble_with_name(name):
            raise ConfigError(f"--name {name!r}: {trouble}")
        run_dir = (runs_folder(output_dir) / name / new_run_id()).absolute()
        for line in import_snapshots(files, run_dir, name, say=_say_line, derive=derive):
            _say_line(f"warning: {line}")
        point(run_dir.parent / LATEST_LINK, run_dir.name)
        sys.stdout.write(f"report: {run_dir / REPORT_FILE}\n")


def _say_line(line: str) -> None:
    # The name of a file may contain line ends, but each message must be one line.
    say(line.replace("\n", "\\n") + "\n")
