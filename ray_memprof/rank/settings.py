"""What is recorded of a program that starts without the launcher, and where it goes.

    settings = Settings(name="nanogpt", level="event")
    settings.config_text(Program(path=Path("train.py"), args=("--steps", "9")), start, device="cuda")

Needs neither torch nor Ray.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from ray_memprof.errors import ConfigError
from ray_memprof.rank.starters import Start
from ray_memprof.store.find_run import runs_folder
from ray_memprof.store.level import Level
from ray_memprof.store.run_files import trouble_with_name

RANGES = ("nvtx", "record_function")
"""Ranges that a program has named for other tools."""
_LEVELS = tuple(level for level in get_args(Level) if level != "torch_profiler")
"""A trace needs a schedule of steps, which only a configuration has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What is run: a file or a module, and its arguments."""

    path: Path | None = None
    module: str = ""
    args: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name without folders and suffix: "train" for a file train.py in any folder, "demo" for -m pkg.demo."""
        if self.module:
            return self.module.removesuffix(".__main__").rpartition(".")[2]
        return "python" if self.path is None else self.path.stem


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is recorded, and where it goes."""

    name: str = ""
    """Of the run; "": the program's."""
    level: Level = "event"
    output_dir: Path | None = None
    """None: RAY_MEMPROF_DIR of the environment, else profiler_logs."""
    sample_interval_s: float = 0.1
    module_spans: tuple[str, ...] = ()
    components: Mapping[str, str] = field(default_factory=dict)
    """Names of components, by the class of a module; see workload/module_names.py."""
    ranges: tuple[str, ...] = ()
    """Of RANGES: these become spans, see workload/named_ranges.py."""
    device: str = ""
    """cpu or cuda; "": cuda where torch sees a device."""

    @classmethod
    def of(cls, values: Any) -> "Settings":
        """Settings from the content of a YAML file.

        Raises:
            ConfigError: it is no mapping, or a key or a value cannot be used.
        """
        if not isinstance(values, dict):
            raise ConfigError("the file of settings is no mapping", hint="name: run1")
        known = {one.name for one in fields(cls)}
        if unknown := [key for key in values if key not in known]:
            raise ConfigError(
                f"there is no setting {unknown[0]!r}", hint=f"there are {', '.join(sorted(known))}"
            )
        given = {key: value for key, value in values.items() if value is not None}
        for key in ("name", "level", "device", "output_dir"):
            if not isinstance(given.get(key, ""), str):
                raise ConfigError(f"{key} {given[key]!r} is no text")
        interval = given.get("sample_interval_s", 0.1)
        lists = {key: given.get(key, ()) for key in ("module_spans", "ranges")}
        for key, value in lists.items():
            if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
                raise ConfigError(f"{key} {value!r} is no list of texts")
            given[key] = tuple(value)
        if isinstance(interval, bool) or not isinstance(interval, int | float):
            raise ConfigError(f"sample_interval_s {interval!r} is no number")
        components = given.get("components", {})
        if not isinstance(components, dict) or not all(
            isinstance(one, str) and one for pair in components.items() for one in pair
        ):
            raise ConfigError(
                f"components {components!r} is no mapping of classes to names", hint="WanModel: dit"
            )
        if "output_dir" in given:
            given["output_dir"] = Path(given["output_dir"])
        return cls(**given | {"sample_interval_s": float(interval)}).checked()

    def checked(self) -> "Settings":
        """The same settings.

        Raises:
            ConfigError: one of them cannot be used.
        """
        if self.name and (why := trouble_with_name(self.name)):
            raise ConfigError(f"name {self.name!r} {why}")
        if self.level not in _LEVELS:
            raise ConfigError(f"level {self.level!r} is none of {', '.join(_LEVELS)}")
        if wrong := [kind for kind in self.ranges if kind not in RANGES]:
            raise ConfigError(f"ranges {wrong[0]!r} is none of {', '.join(RANGES)}")
        if self.device not in ("", "cpu", "cuda"):
            raise ConfigError(f"device {self.device!r} is neither cpu nor cuda")
        if not 0.001 <= self.sample_interval_s <= 3600:
            raise ConfigError(
                f"sample_interval_s {self.sample_interval_s} is not between 0.001 and 3600 seconds"
            )
        return self

    def folder(self, environ: Mapping[str, str] = os.environ) -> Path:
        """Where the folders of runs lie."""
        return runs_folder(self.output_dir, environ).absolute()

    def run_name(self, program: Program) -> str:
        """The name of the run: what the user gave, else the program's, as far as a folder may have that name."""
        if self.name:
            return self.name
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", program.name).strip("-._")
        return "program" if trouble_with_name(name) else name

    def config(self, program: Program, start: Start, device: str) -> dict[str, Any]:
        """The run as a configuration of the launcher would have it, for config.yaml."""
        return {
            "name": self.run_name(program),
            "workload": "script",
            "ranks": start.num_ranks,
            "script": {
                **({"module": program.module} if program.module else {"path": str(program.path or "-")}),
                "args": list(program.args),
                "module_spans": list(self.module_spans),
                "components": dict(self.components),
                "ranges": list(self.ranges),
            },
            "model_config": {"device": device},
            "logging": {
                "level": self.level,
                "output_dir": str(self.folder()),
                "sample_interval_s": self.sample_interval_s,
            },
        }
