"""A configuration as the options of wan.generate, so that both share one set of rules and defaults.

    options = wan_options(config)         # wan.options.Options, with the task's defaults filled in
    check_wan(config)                     # applies wan's own rules; messages name the configuration's keys

Takes a RunConfig, writes no file; imports no torch.
"""

from dataclasses import fields
from typing import Any

from ray_memprof.config.run_config import RunConfig
from ray_memprof.errors import ConfigError
from wan.config import TASKS
from wan.errors import InputError
from wan.levers import Levers
from wan.options import Options, defaults_of
from wan.options_check import check

# Flags of wan.generate whose key has another name; all other keys have the name of their flag.
_RENAMED = {
    "offload_model": "offload", "ulysses_size": "ulysses", "ring_size": "ring", "cfg_size": "cfg",
    "vae_parallel": "vae", "sp_backend": "backend",
}  # fmt: skip
_SECTIONS = {
    "model_config": (
        "task", "ckpt_dir", "weights", "load_strategy", "precision", "weights_dtype", "device",
        "offload_model", "t5_cpu",
    ),
    "generation": (
        "size", "frame_num", "prompt", "negative_prompt", "image", "first_frame", "last_frame", "src_video",
        "src_mask", "src_ref_images", "sample_solver", "sample_steps", "sample_shift", "sample_guide_scale",
        "base_seed", "use_prompt_extend", "prompt_extend_method", "prompt_extend_model",
        "prompt_extend_target_lang", "save_file",
    ),
    "parallel": ("ulysses_size", "ring_size", "cfg_size", "dit_fsdp", "t5_fsdp", "vae_parallel", "sp_backend"),
    "optimization": ("expandable_segments", *(lever.name for lever in fields(Levers))),
}  # fmt: skip
KEYS = {"ranks": "ranks"} | {
    flag: f"{section}.{_RENAMED.get(flag, flag)}" for section, flags in _SECTIONS.items() for flag in flags
}


def wan_options(config: RunConfig) -> Options:
    """The options that the wan workload runs with, the task's defaults filled in; pure.

    A base_seed below 0 stays: load_config draws the seed of a run, once.
    """
    # load_config fills in parallel.vae only after the rules have been checked; no rule depends on it.
    defaults = defaults_of(TASKS[config.model.task], config.generation.size, config.num_ranks)
    defaults["vae_parallel"] = "split"
    values: dict[str, Any] = {
        flag: defaults.get(flag) if value is None else value for flag, value in _values(config).items()
    }
    levers = Levers(**{lever.name: values.pop(lever.name) for lever in fields(Levers)})
    return Options(**values, levers=levers)


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
