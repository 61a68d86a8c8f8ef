"""Which values may be combined in a configuration: rules about several keys, whose errors name the full keys.

    check(config)                         # raises ConfigError; does not look for files
    check_files(config)                   # checks the files that it names; before a run, not in a dry run
    check_packages(config)                # checks that what it imports is installed; before a run, not in a dry run
    warnings(config)                      # lines about keys that have no effect or are easily forgotten

Bounds of single keys are in keys.py; rules that wan.generate shares are in wan.options (see wan_keys.py).
"""

import re
from pathlib import Path

from ray_memprof.config.keys import Profiler, Script
from ray_memprof.config.run_config import RunConfig
from ray_memprof.config.wan_keys import check_wan
from ray_memprof.errors import ConfigError
from ray_memprof.installed import need
from ray_memprof.wording import did_you_mean, profiler_text
from wan.config import LARGEST_SEED, TASKS
from wan.options_here import packages_of

ADDRESS = re.compile(r"auto|[^\s/:]+:\d+")
"""Of a Ray that runs already."""


def check(config: RunConfig) -> None:
    """Refuse values that cannot be combined. Raises ConfigError."""
    _check_ranks(config)
    _check_ray(config)
    _check_matrix(config)
    _check_predict(config)
    if config.workload == "script":
        _check_script(config.script)
        return
    if config.script is not None:
        raise ConfigError("script is given, but workload is wan", hint="workload: script")
    _check_task(config)
    _check_batch(config)
    _check_profiler(config)
    check_wan(config)


def _check_predict(config: RunConfig) -> None:
    if not config.logging.predict:
        return
    for key, value, is_wrong in (
        ("workload", config.workload, config.workload != "wan"),
        ("model_config.device", config.model.device, config.model.device == "cpu"),
        ("logging.profile_memory", "false", not config.logging.profile_memory),
    ):
        if is_wrong:
            raise ConfigError(
                f"logging.predict is true, and {key} is {value}: only measured runs of wan on GPUs are predicted",
                hint="leave logging.predict out: then a run is predicted where it can be",
            )


def _check_script(script: Script | None) -> None:
    path, module = (None, None) if script is None else (script.path, script.module)
    if path is None and module is None:
        raise ConfigError(
            "script.path is missing, or script.module",
            hint="script: {path: train.py, args: []}",
        )
    if path is not None and module is not None:
        raise ConfigError(
            f"script.path ({path}) and script.module ({module}) both say what runs", hint="leave one out"
        )


def check_files(config: RunConfig) -> None:
    """Refuse a configuration that names files which do not exist on the driver's host. Raises ConfigError."""
    if config.workload == "wan":
        check_wan(config, files=True)
    elif config.script is not None and (path := config.script.path) is not None and not _can_run(path):
        raise ConfigError(
            f"script.path {path}: there is no such file",
            hint="check the path; relative ones start at the working folder, or else at that of the YAML file",
        )


def check_packages(config: RunConfig) -> None:
    """Refuse a run whose packages are not installed, before one of them is imported.

    Ranks on a cluster that is joined have the packages of their hosts: there only Ray is needed here.

    Raises:
        ConfigError: a package is missing.
    """
    of_ranks: tuple[str, ...] = ("torch",)
    if config.workload == "wan":
        of_ranks = packages_of(config.generation, config.generation.save_file)
    need(("ray", *of_ranks) if config.ray.address is None else ("ray",), "a launch")


def _can_run(path: Path) -> bool:
    return path.is_file() or (path / "__main__.py").is_file()


def _check_ranks(config: RunConfig) -> None:
    degree = config.optimization.parallel_degree
    if config.ranks is not None and degree is not None and config.ranks != degree:
        raise ConfigError(
            f"ranks ({config.ranks}) and optimization.parallel_degree ({degree}) name the same number and differ",
            hint="leave one out",
        )


def _check_ray(config: RunConfig) -> None:
    ray = config.ray
    if ray.address is not None and not ADDRESS.fullmatch(ray.address):
        raise ConfigError(
            f"ray.address {ray.address!r}: must be auto or host:port",
            hint="start the launcher on a node of the cluster; leave ray.address out for a Ray of its own",
        )
    if ray.address is not None and ray.num_gpus is not None:
        raise ConfigError(
            f"ray.num_gpus ({ray.num_gpus}) cannot be told to the running Ray of ray.address {ray.address}",
            hint="leave one out",
        )
    if config.model.device == "cuda" and ray.gpus_per_rank == 0:
        raise ConfigError(
            "ray.gpus_per_rank (0): ranks on model_config.device cuda need a GPU each",
            hint="leave it out, or set model_config.device: cpu",
        )
    # As under torchrun, each rank sees one GPU for every rank of its node: further GPUs would be booked but stay idle.
    if ray.gpus_per_rank > 1:
        raise ConfigError(
            f"ray.gpus_per_rank ({ray.gpus_per_rank}): a rank uses one GPU", hint="raise ranks instead"
        )


def _check_matrix(config: RunConfig) -> None:
    names = [row.name for row in config.matrix or ()]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(
                f"matrix[{index}].name {name} is taken by matrix[{names.index(name)}]",
                hint="give each run a name of its own",
            )


def _check_task(config: RunConfig) -> None:
    if (task := config.model.task) not in TASKS:
        raise ConfigError(
            f"model_config.task {task!r} is not a task",
            hint=did_you_mean(task, TASKS, otherwise=f"use one of {', '.join(TASKS)}"),
        )


def _check_batch(config: RunConfig) -> None:
    if (micro := config.optimization.micro_batch_size) != 1:
        raise ConfigError(
            f"optimization.micro_batch_size ({micro}) must be 1: one video is made at a time",
            hint="optimization.batch_size makes several, one after the other",
        )
    seed, num_videos = config.generation.base_seed, config.optimization.batch_size
    if num_videos > 1 and seed + num_videos - 1 > LARGEST_SEED:
        raise ConfigError(
            f"generation.base_seed {seed}: each of the {num_videos} videos takes the next seed, the largest is "
            f"{LARGEST_SEED}",
            hint=f"use at most {LARGEST_SEED - num_videos + 1}",
        )


def _check_profiler(config: RunConfig) -> None:
    """Refuse a schedule in which no step is kept, since its trace would be empty."""
    steps, profiler = _num_steps(config), config.logging.profiler
    if _is_traced(config) and profiler.wait + profiler.warmup >= steps:
        raise ConfigError(
            f"logging.profiler.wait ({profiler.wait}) + logging.profiler.warmup ({profiler.warmup}) leave none of "
            f"the {steps} denoise steps to trace",
            hint="lower them, or raise generation.sample_steps",
        )


def _num_steps(config: RunConfig) -> int:
    """Denoise steps of all videos."""
    steps = config.generation.sample_steps or TASKS[config.model.task].sample_steps
    return steps * config.optimization.batch_size


def _is_traced(config: RunConfig) -> bool:
    return config.logging.profile_memory and config.logging.level == "torch_profiler"


def warnings(config: RunConfig) -> list[str]:
    """One line for each key that has no effect or is easily forgotten."""
    found = []
    logging = config.logging
    if logging.trace_path is not None and logging.level != "torch_profiler":
        found.append(
            f"logging.trace_path {logging.trace_path} has no effect: traces are written with "
            "logging.level torch_profiler"
        )
    if logging.profiler != Profiler() and logging.level != "torch_profiler":
        found.append("logging.profiler has no effect: it is for logging.level torch_profiler")
    if not logging.profile_memory and logging.level != "event":
        found.append(f"logging.level {logging.level} has no effect: logging.profile_memory is false")
    if not logging.profile_memory and logging.export:
        found.append("logging.export has no effect: logging.profile_memory is false")
    return found + (_script_warnings(config) if config.workload == "script" else _wan_warnings(config))


def _wan_warnings(config: RunConfig) -> list[str]:
    found = []
    if config.optimization.gradient_checkpointing:
        found.append("optimization.gradient_checkpointing has no effect here: inference records no gradients")
    if config.model.weights == "checkpoint" and config.generation.save_file is None:
        found.append("generation.save_file is not given: the video is made and not kept")
    if config.num_ranks == 1 and config.parallel.vae == "split":
        found.append("parallel.vae split has no effect with one rank")
    if config.num_ranks == 1 and config.parallel.backend == "xfuser":
        found.append("parallel.backend xfuser has no effect with one rank")
    asked, made = config.logging.profiler, _num_steps(config)
    if _is_traced(config) and asked.wait + asked.warmup + asked.active > made:
        text = profiler_text(wait=asked.wait, warmup=asked.warmup, active=asked.active)
        found.append(f"{text}, the run makes {made}: traces will be short")
    return found


def _script_warnings(config: RunConfig) -> list[str]:
    """A script has its own model: of these sections only the device and the number of ranks have an effect on it."""
    sections = {
        "model_config": config.model.model_dump(exclude_defaults=True, exclude={"device", "weights"}),
        "generation": config.generation.model_dump(exclude_defaults=True),
        "parallel": config.parallel.model_dump(exclude_defaults=True, exclude={"vae"}),
        "optimization": config.optimization.model_dump(exclude_defaults=True, exclude={"parallel_degree"}),
    }
    keys = [f"{section}.{key}" for section, values in sections.items() for key in values]
    return [f"{', '.join(keys)}: no effect with workload script"] if keys else []
