"""ray-memprof open: opens the report of a run in the browser.

$ ray-memprof open baseline
"""

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ray_memprof.commands.terminal import RUN, OutputDir, Sample, errors_as_lines, run_named, run_names, say
from ray_memprof.errors import ConfigError

_OF_TEXT = ("www-browser", "links", "elinks", "lynx", "w3m", "browsh")
"""Browsers that would take the terminal, and cannot draw the figures of a report."""


def open_(
    run: Annotated[str, typer.Argument(help=RUN, autocompletion=run_names)] = "latest",
    sample: Sample = False,
    output_dir: OutputDir = None,
) -> None:
    """Open report.html of a run in the browser, and print its path; without a browser only print it."""
    with errors_as_lines():
        from ray_memprof.store.run_files import REPORT_FILE

        run_dir = run_named(run, sample, output_dir)
        path = run_dir / REPORT_FILE
        if sample and not path.is_file():
            from ray_memprof.report.run_page import write_run_page

            write_run_page(run_dir)
        if not path.is_file():
            raise ConfigError(
                f"{run_dir.parent.name}/{run_dir.name} has no {REPORT_FILE}",
                hint=f"ray-memprof report {run_dir.parent.name}/{run_dir.name} writes it",
            )
        sys.stdout.write(f"{path}\n")
        if not _is_shown(path):
            say("note: there is no browser here: copy the file to where one is, it works offline\n")


def _is_shown(page: Path) -> bool:
    """Open a page in the browser of this desktop; whether there is one."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    return getattr(browser, "name", "") not in _OF_TEXT and browser.open(page.as_uri())
