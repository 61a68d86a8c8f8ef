"""A run as one frozen value: YAML in, checked, with nothing left open.

    config = load_config("configs/baseline.yaml", ["generation.sample_steps=4"])
    config.model.precision, config.num_ranks
    effective_yaml(config)                # loads again into an equal value

What each key means is in config_sections.py, what may stand together in config_check.py. Whether the files that a
configuration names exist is asked later (config_check.check_files): a dry run needs none. Imports no torch, no Ray.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from ray_memprof import config_check, config_faults, config_file, wan_options
from ray_memprof.config_sections import (
    Count,
    Generation,
    Logging,
    MatrixRun,
    Model,
    Name,
    Optimization,
    Parallel,
    Profiler,
    Ray,
    Script,
    Section,
    Timeouts,
)
from ray_memprof.errors import ConfigError

__all__ = [
    "Generation",
    "Logging",
    "MatrixRun",
    "Model",
    "Optimization",
    "Parallel",
    "Profiler",
    "Ray",
    "RunConfig",
    "Script",
    "Timeouts",
    "effective_yaml",
    "from_mapping",
    "load_config",
]


class RunConfig(Section):
    """Everything a run depends on, by section."""

    name: Name
    """Folder of the runs below logging.output_dir."""
    description: str = ""
    workload: Literal["wan", "script"] = "wan"
    ranks: Count | None = None
    """Processes; None: optimization.parallel_degree, else parallel.ulysses x parallel.ring, or 1 for a script."""
    script: Script | None = None
    # pydantic keeps the name model_config for itself.
    model: Model = Field(default_factory=Model, alias="model_config")
    generation: Generation = Field(default_factory=Generation)
    parallel: Parallel = Field(default_factory=Parallel)
    optimization: Optimization = Field(default_factory=Optimization)
    logging: Logging = Field(default_factory=Logging)
    ray: Ray = Field(default_factory=Ray)
    matrix: Annotated[tuple[MatrixRun, ...], Field(strict=False, min_length=1)] | None = None
    """Runs that differ from this one in a few keys; see matrix.py."""

    @property
    def num_ranks(self) -> int:
        """`ranks`, resolved."""
        shared = self.parallel.group_size if self.workload == "wan" else 1
        return self.ranks or self.optimization.parallel_degree or shared

    def warnings(self) -> list[str]:
        """What will have no effect, or is easily forgotten; a line each."""
        return config_check.warnings(self)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The file with `section.key=value` overrides laid over it, checked. Raises ConfigError."""
    mapping = config_file.read(path)
    keys = config_file.override(mapping, overrides)
    return from_mapping(mapping, source=str(path), overridden=keys)


def from_mapping(mapping: Mapping[str, Any], *, source: str, overridden: Sequence[str] = ()) -> RunConfig:
    """What a file says, as a checked value without open defaults. `source` names it in errors."""
    try:
        given = config_file.without_nulls(mapping)
        config_check.check_sections(given)
        config = RunConfig.model_validate(given)
        config_check.check(config)
        return _resolved(config)
    except RecursionError as error:
        raise ConfigError(f"{source}: a section holds itself", hint="check the aliases (*name)") from error
    except ValidationError as error:
        raise config_faults.explained(error, RunConfig, source=source, overridden=overridden) from None
    except ConfigError as error:
        origin = config_faults.origin(str(error), source, overridden)
        raise ConfigError(f"{origin}: {error}", hint=error.hint) from None


def _resolved(config: RunConfig) -> RunConfig:
    """With every default filled in that depends on another key, and with the seed drawn."""
    parallel, ray = config.parallel, config.ray
    if parallel.vae is None:
        parallel = parallel.model_copy(update={"vae": "split" if config.num_ranks > 1 else "rank0"})
    if config.model.device == "cpu" and ray.num_gpus is None and "gpus_per_rank" not in ray.model_fields_set:
        ray = ray.model_copy(update={"gpus_per_rank": 0})
    generation = config.generation
    if config.workload == "wan":
        options = wan_options.wan_options(config)
        names = (
            "size",
            "frame_num",
            "prompt",
            "sample_steps",
            "sample_shift",
            "sample_guide_scale",
            "base_seed",
        )
        generation = generation.model_copy(update={name: getattr(options, name) for name in names})
    return config.model_copy(
        update={"ranks": config.num_ranks, "generation": generation, "parallel": parallel, "ray": ray}
    )


def effective_yaml(config: RunConfig) -> str:
    """The configuration with every default written out; load_config reads it back as an equal value."""
    values = config.model_dump(mode="json", by_alias=True)
    # One line per value, however long the prompt.
    text = yaml.safe_dump(values, sort_keys=False, width=float("inf"))
    return f"# Every key of this run. Relative paths start at the folder that it was launched from.\n{text}"
