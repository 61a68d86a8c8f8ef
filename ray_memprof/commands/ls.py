"""ray-memprof ls: lists the runs, the newest first.

$ ray-memprof ls
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import OUT, OutputDir, errors_as_lines
from ray_memprof.query.answers import write_text


def ls(
    names: Annotated[
        list[str], typer.Argument(help="Only runs of these names; * stands for any letters.")
    ] = [],  # noqa: B006 - typer copies it
    as_json: Annotated[
        bool, typer.Option("--json", help="Write every run with all that is known of it.")
    ] = False,
    most: Annotated[int, typer.Option(min=1, help="table: most runs.")] = 50,
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
    output_dir: OutputDir = None,
) -> None:
    """List the runs: when each was, how it ended, how much memory it took, how large it is."""
    with errors_as_lines():
        from fnmatch import fnmatchcase

        from ray_memprof.query.answers import columns_text, terminal_width
        from ray_memprof.query.run_table import fitting, run_columns
        from ray_memprof.store.find_run import runs_folder
        from ray_memprof.store.run_list import listed_runs
        from ray_memprof.store.whole_file import check_target

        check_target(out)
        folder = runs_folder(output_dir)
        runs = [
            one
            for one in listed_runs(folder)
            if not names or any(fnmatchcase(one.name, name) for name in names)
        ]
        if as_json:
            write_text(json.dumps([one.facts() for one in runs], indent=1) + "\n", out)
        elif not runs:
            missing = "" if folder.is_dir() else ", for there is no such folder"
            write_text(f"no runs{' of that name' if names else ''} in {folder.absolute()}{missing}\n", out)
        else:
            width = terminal_width() if out is None else None
            columns = fitting(run_columns(runs[:most]), width)
            write_text(columns_text(columns, width) + _more(len(runs) - most), out)


def _more(num_left: int) -> str:
    return f"{num_left:,} older runs: --most, or --json for all\n" if num_left > 0 else ""
