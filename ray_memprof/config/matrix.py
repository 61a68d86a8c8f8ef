"""A table of runs in one file: a configuration, and rows that each change a few of its keys.

    matrix:
      - name: baseline
      - name: slicing
        set: {optimization.attention_slicing: true}

    expanded = expand("configs/matrix_1gpu.yaml", ["generation.sample_steps=4"])
    expanded.runs, expanded.page         # one configuration a row; where the page goes that sets them side by side

Every row is checked before any runs. All share one seed, so that only what the rows change tells them apart.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_memprof.config import yaml_file
from ray_memprof.config.keys import MatrixRun
from ray_memprof.config.load import from_mapping
from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Expanded:
    """What a file asks for."""

    runs: list[RunConfig]
    """Named <name>-<row>; without a matrix, the one that the file describes."""
    page: Path | None
    """Where the page goes that sets them side by side, beside their folders; None: there is one run."""


def expand(path: str | Path, overrides: Sequence[str] = ()) -> Expanded:
    """The runs of a file, each checked."""
    source = str(path)
    mapping = yaml_file.read(path)
    overridden = yaml_file.override(mapping, overrides)
    base = from_mapping(mapping, source=source, overridden=overridden)
    if base.matrix is None:
        return Expanded([base], None)
    del mapping["matrix"]
    yaml_file.put(mapping, "generation.base_seed", base.generation.base_seed, source=source)
    runs = [_run(mapping, row, source=source, overridden=overridden) for row in base.matrix]
    _refuse_shared_files(runs, source)
    page = runs[0].logging.output_dir / f"{mapping['name']}-matrix.html"
    return Expanded(runs, page if len(runs) > 1 else None)


def _run(mapping: dict[str, Any], row: MatrixRun, *, source: str, overridden: Sequence[str]) -> RunConfig:
    source = f"{source}, matrix run {row.name}"
    changed = copy.deepcopy(mapping)
    for key, value in row.set.items():
        _refuse_hidden(key, overridden, source)
        yaml_file.put(changed, key, value, source=source)
    # Last, so that a row cannot take the name of another.
    changed["name"] = f"{mapping['name']}-{row.name}"
    return from_mapping(changed, source=source, overridden=overridden)


def _refuse_shared_files(runs: Sequence[RunConfig], source: str) -> None:
    """A later run would write over what an earlier one left."""
    writers: dict[tuple[str, Path], str] = {}
    for run in runs:
        traces = run.logging.trace_path if run.logging.level == "torch_profiler" else None
        for key, path in (("generation.save_file", run.generation.save_file), ("logging.trace_path", traces)):
            if path is not None and (first := writers.setdefault((key, path), run.name)) != run.name:
                raise ConfigError(
                    f"{source}: {key} {path} is where both {first} and {run.name} write",
                    hint=f"set {key} in the rows, or leave it out",
                )


def _refuse_hidden(key: str, overridden: Sequence[str], source: str) -> None:
    """One of the two values would be lost, whichever is laid on top."""
    if key.partition(".")[0] in ("name", "matrix"):
        raise ConfigError(f"{source}: a row cannot set {key}", hint="its name is that of the row")
    for given in overridden:
        if f"{given}.".startswith(f"{key}.") or f"{key}.".startswith(f"{given}."):
            raise ConfigError(
                f"--set {given} is also set by {source}", hint="leave it out, or take it from the row"
            )
