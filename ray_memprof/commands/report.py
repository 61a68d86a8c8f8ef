"""ray-memprof report: writes report.html of a run again.

$ ray-memprof report latest
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import RUN, errors_as_lines, say_standing
from ray_memprof.errors import ConfigError


def report(
    run: Annotated[str, typer.Argument(help=RUN)] = "latest",
    beside: Annotated[
        str | None, typer.Option(help="Another run of the same configuration, such as a prediction.")
    ] = None,
) -> None:
    """Write report.html of a run again."""
    with errors_as_lines():
        from ray_memprof.report.run_page import write_run_page
        from ray_memprof.store.find_run import find_run
        from ray_memprof.store.run_files import REPORT_FILE
        from ray_memprof.store.whole_file import check_target

        run_dir = find_run(run)
        check_target(run_dir / REPORT_FILE)
        say_standing([run_dir])
        other = None if beside is None else find_run(beside)
        path = write_run_page(run_dir, _problems(run_dir), beside=other)
        sys.stdout.write(f"report: {path}\n")


def _problems(run_dir: Path) -> list[str]:
    """What the driver noted about incomplete records; empty for a folder without run.json."""
    from ray_memprof.store.run_files import RUN_FILE

    path = run_dir / RUN_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="if it is a copy, copy it again") from error
    return list(facts.get("problems", []))
