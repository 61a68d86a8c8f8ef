"""A table of runs in one file: a configuration, and rows that each change a few of its keys.

    matrix:
      - name: baseline
      - name: slicing
        set: {optimization.attention_slicing: true}

    expanded = expand("configs/matrix_1gpu.yaml", ["generation.sample_steps=4"])
    expanded.runs, expanded.page         # a configuration for each row; the file for the page that compares the runs

Every row is checked before the first run. All runs share one seed, so that they differ only in what the rows change.
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
    """The runs that a file describes."""

    runs: list[RunConfig]
    """Each is named <name>-<row>; without a matrix there is one run, with the name in the file."""
    page: Path | None
    """The file for the page that compares the runs, beside their folders; None: there is only one run."""


def expand(path: str | Path, overrides: Sequence[str] = (), *, output_dir: Path | None = None) -> Expanded:
    """The runs of a file, each checked.

    Args:
        path: of the file.
        overrides: `section.key=value`, each replaces the value in the file.
        output_dir: logging.output_dir if the file has none; None: the default of the key.
    """
    return expand_mapping(
        yaml_file.read(path),
        overrides,
        source=str(path),
        folder=Path(path).parent,
        output_dir=output_dir,
    )


def expand_mapping(
    mapping: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str,
    folder: Path | None = None,
    output_dir: Path | None = None,
) -> Expanded:
    """The runs of what would be the content of a file, each checked.

    Args:
        mapping: the content; it is changed.
        overrides: as for expand().
        source: names the content in errors.
        folder: of the file, for script.path; None: there is no file.
        output_dir: as for expand().
    """
    overridden = yaml_file.override(mapping, overrides)
    if output_dir is not None:
        yaml_file.put_default(mapping, "logging", "output_dir", str(output_dir))
    base = from_mapping(mapping, source=source, overridden=overridden, folder=folder)
    if base.matrix is None:
        return Expanded([base], None)
    del mapping["matrix"]
    yaml_file.put(mapping, "generation.base_seed", base.generation.base_seed, source=source)
    runs = [_run(mapping, row, source=source, overridden=overridden, folder=folder) for row in base.matrix]
    _refuse_shared_files(runs, source)
    page = runs[0].logging.output_dir / f"{mapping['name']}-matrix.html"
    return Expanded(runs, page if len(runs) > 1 else None)


def _run(
    mapping: dict[str, Any], row: MatrixRun, *, source: str, overridden: Sequence[str], folder: Path | None
) -> RunConfig:
    source = f"{source}, matrix run {row.name}"
    changed = copy.deepcopy(mapping)
    for key, value in row.set.items():
        _refuse_hidden(key, overridden, source)
        yaml_file.put(changed, key, value, source=source)
    # The name is set last, so that a row cannot take the name of another row.
    changed["name"] = f"{mapping['name']}-{row.name}"
    return from_mapping(changed, source=source, overridden=overridden, folder=folder)


def _refuse_shared_files(runs: Sequence[RunConfig], source: str) -> None:
    """Refuse runs that write to the same file or folder: a later run would overwrite the output of an earlier one."""
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
    """Refuse a row's key that --set gives, too, since one value would be lost; also refuse name and matrix."""
    if key.partition(".")[0] in ("name", "matrix"):
        raise ConfigError(f"{source}: a row cannot set {key}", hint="its name is that of the row")
    for given in overridden:
        if f"{given}.".startswith(f"{key}.") or f"{key}.".startswith(f"{given}."):
            raise ConfigError(
                f"--set {given} is also set by {source}", hint="leave it out, or take it from the row"
            )
