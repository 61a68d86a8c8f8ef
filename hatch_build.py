"""Packs plotly.js and the sample run into the wheel: a report needs no plotly, which takes 70 MB, when it is written.

hatchling runs it for every build. The wheel gets ray_memprof/report/plotly/ with plotly.min.js.gz and its licence, both
taken from the plotly of the build; an editable install takes them from the plotly that is installed beside it.
"""

import gzip
from importlib import metadata
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "ray_memprof/report/plotly"
SAMPLE = {"docs/sample/ulysses2": "ray_memprof/store/sample"}
"""The sample run: where it lies in the repository, and where ray_memprof/store/sample.py looks for it in a wheel."""


class PlotlyHook(BuildHookInterface[Any]):
    """Adds the two files and the sample run to a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the files, and say where they go.

        Args:
            version: of the target: standard, or editable, which gets none.
            build_data: what hatchling is told; it gets `force_include`.
        """
        if version == "editable":
            return
        folder = Path(self.directory) / "plotly"
        for path in pack(folder):
            build_data["force_include"][str(path)] = f"{FOLDER}/{path.name}"
        build_data["force_include"].update(SAMPLE)


def pack(folder: Path) -> list[Path]:
    """Write plotly.js, compressed, and its licence into `folder`; returns their paths."""
    from plotly.offline import get_plotlyjs

    folder.mkdir(parents=True, exist_ok=True)
    script, licence = folder / "plotly.min.js.gz", folder / "LICENSE"
    # A fixed time in the header, so that the same version makes the same file.
    script.write_bytes(gzip.compress(get_plotlyjs().encode(), 9, mtime=0))
    (found,) = [path for path in metadata.files("plotly") or [] if path.name.startswith("LICENSE")]
    licence.write_text(found.read_text(encoding="utf-8"), encoding="utf-8")
    return [script, licence]
