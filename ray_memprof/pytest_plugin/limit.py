"""Checks the arguments of limit_gpu_peak: the limit, its rank and measure, and the configuration to launch, if any."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeGuard

from ray_memprof.errors import ConfigError
from ray_memprof.wording import parse_size

if TYPE_CHECKING:
    from ray_memprof.config.run_config import RunConfig

MEASURES = ("device_used", "reserved", "allocated")
"""device_used: what nvidia-smi shows, CUDA context included; reserved: what torch's allocator reserved; allocated: what
tensors take."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A configuration to run before the test."""

    path: str
    overrides: tuple[str, ...]
    timeout_s: float
    config: "RunConfig" = field(compare=False)  # not compared: its seed may be a new random one each time


@dataclass(frozen=True, slots=True)
class Limit:
    """The checked arguments of one mark."""

    bytes: int
    rank: str | int
    measure: str
    launch: Launch | None
    """None: the limit is for what the test function does in its own process."""


def limit_gpu_peak(
    limit: str | int,
    *,
    rank: str | int = "max",
    measure: str | None = None,
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    timeout_s: float = 3600.0,
) -> Limit:
    """Check the arguments of a mark. The path of a configuration is relative to the current directory.

    Args:
        limit: "30 GiB", or a number of bytes; a peak that is equal to the limit passes.
        rank: of the run: "max" (the highest peak), "mean" of all, or a number. Without `config` only "max" is allowed.
        measure: one of MEASURES; None: device_used, or allocated if the configuration runs on the CPU.
        config: the YAML file to launch; None: the test itself is measured.
        overrides: "section.key=value", each replaces a value of the file.
        timeout_s: time limit of the whole launched run.

    Raises:
        ConfigError: an argument that cannot be used, or a configuration that is refused.
    """
    num_bytes = limit if _is_count(limit) else parse_size(limit) if isinstance(limit, str) else None
    if num_bytes is None:
        raise ConfigError(f"limit is {limit!r}", hint='a size such as "30 GiB", or a number of bytes')
    if rank not in ("max", "mean") and not _is_count(rank):
        raise ConfigError(f"rank is {rank!r}", hint='"max", "mean" or the number of a rank')
    if measure is not None and measure not in MEASURES:
        raise ConfigError(f"measure is {measure!r}", hint=f"one of {', '.join(MEASURES)}")
    if config is not None:
        launch = _launch(os.fspath(config), overrides, timeout_s)
        return Limit(num_bytes, rank, _measure_of(launch, rank, measure), launch)
    if overrides or rank != "max":
        key, value = ("overrides", overrides) if overrides else ("rank", rank)
        raise ConfigError(
            f"{key} is {value!r}, but a test by itself is one process", hint="name the configuration: config="
        )
    return Limit(num_bytes, rank, measure or "device_used", None)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _launch(path: str, overrides: Sequence[str], timeout_s: float) -> Launch:
    """The configuration to launch, checked. Raises ConfigError."""
    from ray_memprof.config.matrix import expand

    if isinstance(overrides, str) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(f"overrides is {overrides!r}", hint='a list: ["generation.sample_steps=4"]')
    if any(one.startswith("logging.output_dir=") for one in overrides):
        raise ConfigError(f"overrides is {overrides!r}: the run is kept in a temporary folder of pytest's")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not timeout_s > 0:
        raise ConfigError(f"timeout_s is {timeout_s!r}", hint="seconds, above 0")
    runs = expand(path, overrides).runs
    if len(runs) > 1:
        raise ConfigError(f"{path} is a table of {len(runs)} runs, and a limit is for one", hint="no matrix")
    if not runs[0].logging.profile_memory:
        raise ConfigError(f"{path} records nothing", hint="logging.profile_memory: true")
    return Launch(path, tuple(overrides), float(timeout_s), runs[0])


def _measure_of(launch: Launch, rank: str | int, measure: str | None) -> str:
    """The measure of a limit on a launched run. Raises ConfigError if the run has no such rank or measure."""
    num_ranks = launch.config.num_ranks
    if isinstance(rank, int) and rank >= num_ranks:
        raise ConfigError(f"rank is {rank}, and {launch.path} has {num_ranks}", hint="ranks count from 0")
    if launch.config.model.device == "cuda":
        return measure or "device_used"
    if measure not in (None, "allocated"):
        raise ConfigError(f"measure is {measure!r}, and {launch.path} runs on the CPU", hint="allocated")
    return "allocated"
