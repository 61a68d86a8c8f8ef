"""A run as one frozen value: everything that it depends on.

    config.model.precision, config.num_ranks

load_config makes such a value from a YAML file, with all defaults filled in. keys.py says what each key means, rules.py
which values may be combined. Imports no torch and no Ray.
"""

from typing import Annotated, Literal

from pydantic import Field

from ray_memprof.config.keys import (
    Count,
    Generation,
    Logging,
    MatrixRun,
    Model,
    Name,
    Optimization,
    Parallel,
    Ray,
    Script,
    Section,
)


class RunConfig(Section):
    """Everything a run depends on, by section."""

    name: Name
    """Name of the folder below logging.output_dir that holds the runs."""
    description: str = ""
    workload: Literal["wan", "script"] = "wan"
    ranks: Count | None = None
    """Processes; None: optimization.parallel_degree, else parallel.ulysses x ring x cfg, or 1 for a script."""
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
    def recorded_ranks(self) -> range:
        """The ranks that leave records."""
        return range(self.num_ranks if self.logging.profile_memory else 0)

    @property
    def num_ranks(self) -> int:
        """The number of ranks; if `ranks` is not given, it comes from other keys."""
        shared = self.parallel.group_size if self.workload == "wan" else 1
        return self.ranks or self.optimization.parallel_degree or shared
