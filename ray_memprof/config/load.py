"""Reads and writes configurations: YAML to a checked value, and the value to YAML.

    config = load_config("configs/baseline.yaml", ["generation.sample_steps=4"])
    effective_yaml(config)                # loads again into an equal value

check_files checks later whether the files exist that a configuration names: a dry run needs none. Imports no torch and
no Ray.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ray_memprof.config import faults, rules, wan_keys, yaml_file
from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import ConfigError
from wan.options import drawn_seed


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The file with `section.key=value` overrides laid over it, checked. Raises ConfigError."""
    mapping = yaml_file.read(path)
    keys = yaml_file.override(mapping, overrides)
    return from_mapping(mapping, source=str(path), overridden=keys, folder=Path(path).parent)


def from_mapping(
    mapping: Mapping[str, Any], *, source: str, overridden: Sequence[str] = (), folder: Path | None = None
) -> RunConfig:
    """The content of a file as a checked value, with all defaults filled in.

    Args:
        mapping: its content.
        source: names the file in errors.
        overridden: keys that were given beside the file.
        folder: of the file, for script.path; None: there is no file.
    """
    try:
        config = RunConfig.model_validate(yaml_file.without_nulls(mapping))
        rules.check(config)
        return _resolved(_with_script(config, folder))
    except RecursionError as error:
        raise ConfigError(f"{source}: a section holds itself", hint="check the aliases (*name)") from error
    except ValidationError as error:
        refused = faults.explained(error, RunConfig, source=source, overridden=overridden)
    except ConfigError as error:
        origin = faults.origin(str(error), source, overridden)
        refused = ConfigError(f"{origin}: {error}", hint=error.hint)
    # Not above: there it would keep pydantic's error, which Python cannot clear away, and all that the call refers to.
    raise refused


def _with_script(config: RunConfig, folder: Path | None) -> RunConfig:
    """The configuration with the full path of its script, if there is such a file: every node looks for that one."""
    script = config.script
    if script is None or script.path is None:
        return config
    places = [Path.cwd(), *([] if folder is None else [folder.resolve()])]
    found = next((full for place in places if (full := place / script.path).exists()), script.path)
    return config.model_copy(update={"script": script.model_copy(update={"path": found})})


def _resolved(config: RunConfig) -> RunConfig:
    """The configuration with all defaults filled in that depend on other keys, and with the seed drawn."""
    parallel, ray = config.parallel, config.ray
    if parallel.vae is None:
        parallel = parallel.model_copy(update={"vae": "split" if config.num_ranks > 1 else "rank0"})
    if config.model.device == "cpu" and ray.num_gpus is None and "gpus_per_rank" not in ray.model_fields_set:
        ray = ray.model_copy(update={"gpus_per_rank": 0})
    generation = config.generation
    if config.workload == "wan":
        options = wan_keys.wan_options(config)
        names = ("size", "frame_num", "prompt", "sample_steps", "sample_shift", "sample_guide_scale")
        values = {name: getattr(options, name) for name in names}
        if generation.base_seed < 0:
            values["base_seed"] = drawn_seed()
        generation = generation.model_copy(update=values)
    return config.model_copy(
        update={"ranks": config.num_ranks, "generation": generation, "parallel": parallel, "ray": ray}
    )


def effective_yaml(config: RunConfig) -> str:
    """The configuration with every default written out; load_config reads it back as an equal value."""
    values = config.model_dump(mode="json", by_alias=True)
    # One line per value, however long the prompt is.
    text = yaml.safe_dump(values, sort_keys=False, width=float("inf"))
    return f"# Every key of this run. Relative paths start at the folder that it was launched from.\n{text}"
