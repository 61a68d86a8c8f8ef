"""Flags that change a configuration, as launch and predict take them."""

from pathlib import Path
from typing import Annotated

import typer

Set = Annotated[list[str], typer.Option("--set", help="section.key=value, replaces the value in the file.")]
OutputDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Short for --set logging.output_dir=DIR.")
]
