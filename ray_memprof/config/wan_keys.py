"""A configuration as the options of wan.generate, so that both share one set of rules and defaults.

    options = wan_options(config)         # wan.options.Options, with the task's defaults filled in
    check_wan(config)                     # applies wan's own rules; messages name the configuration's keys

Takes a RunConfig, writes no file; imports no torch.
"""

from dataclasses import fields, replace
from typing import Any

from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import ConfigError
from wan.errors import InputError
from wan.levers import Levers
from wan.options import Options, parse
from wan.options_check import check

# Flags of wan.generate whose key has another name; all other keys have the name of their flag.
_RENAMED = {
    "offload_model": "offload", "ulysses_size": "ulysses", "ring_size": "ring", "vae_parallel": "vae",
    "sp_backend": "backend",
}  # fmt: skip
_SECTIONS = {
    "model_config": (
        "task", "ckpt_dir", "weights", "load_strategy", "precision", "device", "offload_model", "t5_cpu",
    ),
    "generation": (
        "size", "frame_num", "prompt", "negative_prompt", "image", "first_frame", "last_frame", "src_video",
        "src_mask", "src_ref_images", "sample_solver", "sample_steps", "sample_shift", "sample_guide_scale",
        "base_seed", "use_prompt_extend", "prompt_extend_method", "prompt_extend_model",
        "prompt_extend_target_lang", "save_file",
    ),
    "parallel": ("ulysses_size", "ring_size", "dit_fsdp", "t5_fsdp", "vae_parallel", "sp_backend"),
    "optimization": ("expandable_segments", *(lever.name for lever in fields(Levers))),
}  # fmt: skip
KEYS = {"ranks": "ranks"} | {
    flag: f"{section}.{_RENAMED.get(flag, flag)}" for section, flags in _SECTIONS.items() for flag in flags
}


def wan_options(config: RunConfig) -> Options:
    """The options that the wan workload runs with; a base_seed below 0 is drawn here."""
    given = {flag: value for flag, value in _values(config).items() if value is not None}
    if given["base_seed"] < 0:
        del given["base_seed"]
    size = config.generation.size
    flags = ["--task", config.model.task, *([f"--size={size}"] if size is not None else [])]
    defaults = parse(flags, num_ranks=config.num_ranks)
    levers = Levers(**{lever.name: given.pop(lever.name) for lever in fields(Levers)})
    return replace(defaults, **given, levers=levers)


def _values(config: RunConfig) -> dict[str, Any]:
    sections = {"model_config": config.model, "generation": config.generation,
                "parallel": config.parallel, "optimization": config.optimization}  # fmt: skip
    return {
        flag: getattr(sections[section], _RENAMED.get(flag, flag))
        for section, flags in _SECTIONS.items()
        for flag in flags
    }


def check_wan(config: RunConfig, *, files: bool = False) -> None:
    """Raise ConfigError for what wan.options refuses; with `files`, also for files that do not exist."""
    try:
        check(wan_options(config), here=files, num_ranks=config.num_ranks, names=KEYS)
    except InputError as error:
        raise ConfigError(str(error), hint=error.hint) from error
