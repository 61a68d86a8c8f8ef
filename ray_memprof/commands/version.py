"""ray-memprof --version: prints the version, and what else the command line takes before the name of a command.

$ ray-memprof --version
"""

import sys
from typing import Annotated

import typer


def _print_version(is_asked: bool) -> None:
    if not is_asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("ray-memprof")
    except PackageNotFoundError:
        found = "of its folder, which is not installed"
    sys.stdout.write(f"ray-memprof {found}\n")
    raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""
