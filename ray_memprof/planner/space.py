"""What may be tried: every legal layout and every value of the levers, as plain data.

    asked = Asked(task="t2v-14B", gpu="RTX 4090", num_gpus=2, limit_bytes=22 * 2**30)
    found = choices(asked)                       # legal by wan's own rules
    config_of(asked, found[0])                   # a RunConfig

A key that the user sets stays as it is. The attention kernel and the precision are not varied: which kernels are
installed is not known here, and another precision is another result.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ray_memprof.config import yaml_file
from ray_memprof.config.load import from_mapping
from ray_memprof.config.run_config import RunConfig
from ray_memprof.config.wan_keys import KEYS, wan_options
from ray_memprof.errors import ConfigError
from ray_memprof.predictor.gpu_profile import gpu_at_hand, profile_names
from ray_memprof.predictor.sizes import chosen_slabs, latent_shape
from ray_memprof.wording import did_you_mean
from wan.config import TASKS
from wan.errors import InputError
from wan.levers import Levers
from wan.options import Options
from wan.options_check import check
from wan.parallel.layout import legal_degrees


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a plan is for."""

    task: str
    gpu: str
    """A GPU model that has a profile."""
    num_gpus: int = 1
    limit_bytes: int
    """The most of the device that each rank may use."""
    host_limit_bytes: int | None = None
    """The most host memory of all ranks together; None: it does not matter."""
    allows_inexact: bool = False
    """Whether levers that change the result may be proposed."""
    size: str | None = None
    frame_num: int | None = None
    sample_steps: int | None = None
    overrides: tuple[str, ...] = ()
    """section.key=value of the user."""
    folder: Path = Path("profiler_logs")
    """Below it are the runs that are predicted."""
    keeps_runs: bool = False
    """Whether somebody looks at them: then each has its report, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One configuration: a layout, and a value of each lever. The values here are those of the least saving."""

    ulysses: int = 1
    ring: int = 1
    cfg: int = 1
    dit_fsdp: bool = False
    t5_fsdp: bool = False
    vae: str = "split"
    load_strategy: str = "block"
    offload: bool = True
    t5_cpu: bool = False
    weights_dtype: str = "precision"
    matmul: str = "precision"
    attention_slicing: bool = False
    ffn_chunks: int = 0
    vae_slabs: int = 0
    fused_kernels: bool = True
    expandable_segments: bool = True

    @property
    def way(self) -> tuple[Any, ...]:
        """What makes two configurations different ways to share the work and to keep weights, and no mere levers."""
        return (self.load_strategy == "stream", *(getattr(self, name) for name in _WAY))

    @property
    def is_inexact(self) -> bool:
        """Whether it changes the result."""
        return self.weights_dtype == "fp8" or self.matmul == "fp8"

    def settings(self) -> dict[str, Any]:
        """Its values by the keys of a configuration, those at which a configuration stands by itself left out."""
        return {KEY_OF[name]: getattr(self, name) for name in self.changed()}

    def flags(self) -> dict[str, Any]:
        """The same by the flags of wan.generate, all of them: its defaults are not those of a configuration."""
        return {_FLAG_OF[KEY_OF[one.name]]: getattr(self, one.name) for one in fields(self)}

    def changed(self) -> tuple[str, ...]:
        """The fields that are not at their defaults."""
        return tuple(one.name for one in fields(self) if getattr(self, one.name) != one.default)

    def differences(self, other: "Choice") -> tuple[str, ...]:
        """The fields in which they differ."""
        return tuple(one.name for one in fields(self) if getattr(self, one.name) != getattr(other, one.name))


_WAY = ("ulysses", "ring", "cfg", "dit_fsdp", "weights_dtype", "matmul")
_FLAG_OF = {key: flag for flag, key in KEYS.items()}
KEY_OF = {key.rpartition(".")[2]: key for key in KEYS.values()}
"""The key of a configuration for each field of a Choice."""


def config_of(asked: Asked, choice: Choice, name: str = "plan") -> RunConfig:
    """The configuration of a choice. Raises ConfigError for what the user sets that cannot be."""
    return from_mapping(mapping_of(asked, choice, name), source="plan", folder=Path.cwd())


def mapping_of(asked: Asked, choice: Choice, name: str) -> dict[str, Any]:
    """The same as a YAML file has it: only what is not at its default."""
    mapping: dict[str, Any] = {"name": name, "model_config": {"task": asked.task}}
    asked_for = {"size": asked.size, "frame_num": asked.frame_num, "sample_steps": asked.sample_steps}
    for key, value in asked_for.items():
        if value is not None:
            yaml_file.put(mapping, f"generation.{key}", value, source=f"--{key}")
    if asked.num_gpus > 1:
        mapping["ranks"] = asked.num_gpus
    for key, value in choice.settings().items():
        if key != "parallel.vae" or asked.num_gpus > 1:
            yaml_file.put(mapping, key, value, source=key)
    yaml_file.override(mapping, asked.overrides)
    return mapping


def choices(asked: Asked, *, inexact: bool | None = None) -> list[Choice]:
    """Every legal choice.

    Args:
        asked: what for.
        inexact: whether levers that change the result are tried; None: as asked.

    Raises:
        ConfigError: what the user sets cannot be, whatever the levers are.
    """
    _refuse_doubled(asked)
    base = _legal_config(asked)
    options, fixed = wan_options(base), _fixed(asked, base)
    degrees = _degrees(asked, is_guided=options.sample_guide_scale != 1.0)
    values = _values(asked, base, asked.allows_inexact if inexact is None else inexact)
    found = []
    for ulysses, ring, cfg in degrees:
        for levers in _products(values):
            choice = replace(Choice(ulysses=ulysses, ring=ring, cfg=cfg, **levers), **fixed)
            if _is_legal(options, choice, asked.num_gpus):
                found.append(choice)
    return list(dict.fromkeys(found))


_BY_FLAG = {
    "model_config.task": ("--task", "task"),
    "generation.size": ("--size", "size"),
    "generation.frame_num": ("--frames", "frame_num"),
    "generation.sample_steps": ("--steps", "sample_steps"),
    "ranks": ("--gpus", "num_gpus"),
}
"""Keys that have a flag of their own, with the field that has its value."""


def _refuse_doubled(asked: Asked) -> None:
    """Refuse a key of which a flag says something else: the plan would be of one, and its rows of the other."""
    for text in asked.overrides:
        key, _, value = text.partition("=")
        flag, name = _BY_FLAG.get(key, ("", ""))
        if flag and getattr(asked, name) is not None:
            given = getattr(asked, name)
            raise ConfigError(
                f"--set {key}={value} and {flag} {given}: they set the same", hint=f"only {flag}"
            )


def _degrees(asked: Asked, *, is_guided: bool = True) -> list[tuple[int, int, int]]:
    """Every (ulysses, ring, cfg) that may be legal; the last shares only weights."""
    degrees = legal_degrees(asked.num_gpus, TASKS[asked.task].dit.num_heads, is_guided=is_guided)
    return [*degrees, (1, 1, 1)] if asked.num_gpus > 1 else degrees


def _legal_config(asked: Asked) -> RunConfig:
    """A configuration that fits to what the user sets. Raises ConfigError where there is none."""
    if asked.task not in TASKS:
        return config_of(asked, Choice())
    refused = ConfigError("nothing was tried")
    sharded = (False, True) if asked.num_gpus > 1 else (False,)
    for (ulysses, ring, cfg), dit_fsdp in itertools.product(_degrees(asked), sharded):
        try:
            return config_of(asked, Choice(ulysses=ulysses, ring=ring, cfg=cfg, dit_fsdp=dit_fsdp))
        except ConfigError as error:
            refused = error
    raise refused


def _values(asked: Asked, base: RunConfig, inexact: bool) -> dict[str, tuple[Any, ...]]:
    """What each field may be."""
    several = asked.num_gpus > 1
    _, latents, rows, columns = latent_shape(base)
    slabs, num_tokens = chosen_slabs(base), latents * rows * columns // 4
    either = (False, True)
    return {
        "dit_fsdp": either if several else (False,),
        "t5_fsdp": either if several else (False,),
        "vae": ("split", "rank0") if several else ("split",),
        "load_strategy": ("block", "full", "stream"),
        "offload": (True, False),
        "t5_cpu": either,
        "weights_dtype": ("precision", "fp8")
        if inexact and base.model.precision != "fp32"
        else ("precision",),
        "matmul": ("precision", "fp8") if inexact and base.model.precision == "bf16" else ("precision",),
        "attention_slicing": either,
        # One GPU has few other ways.
        "ffn_chunks": (0, 4) if num_tokens <= 4096 else (0, 16, 32) if several else (0, 1, 4, 8, 16, 32),
        "vae_slabs": (0, 2 * slabs, 4 * slabs) if several else (0, 1, 2 * slabs, 4 * slabs),
        "fused_kernels": (True,),
        "expandable_segments": (True, False),
    }


def _products(values: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for row in itertools.product(*values.values()):
        yield dict(zip(values, row, strict=True))


def _fixed(asked: Asked, base: RunConfig) -> dict[str, Any]:
    """The fields that the user sets."""
    keys = {text.partition("=")[0] for text in asked.overrides}
    sections = {"model_config": base.model, "parallel": base.parallel, "optimization": base.optimization}
    found = {}
    for one in fields(Choice):
        section, _, key = KEY_OF[one.name].rpartition(".")
        if KEY_OF[one.name] in keys:
            found[one.name] = getattr(sections[section], key)
    return found


_HERE, _DEFAULT_GPU = "here", "H200"
_LEVERS = {one.name for one in fields(Levers)}


def _is_legal(options: Options, choice: Choice, num_ranks: int) -> bool:
    values = choice.flags()
    levers = {name: values.pop(name) for name in list(values) if name in _LEVERS}
    try:
        check(
            replace(options, **values, levers=replace(options.levers, **levers)),
            here=False,
            num_ranks=num_ranks,
            names=KEYS,
        )
    except InputError:
        return False
    return True


def model_of(gpu: str) -> str:
    """The profile that --gpu means; "": the one at hand, else that of a prediction. Raises ConfigError."""
    if gpu != _HERE:
        return gpu or gpu_at_hand() or _DEFAULT_GPU
    if not (found := gpu_at_hand()):
        raise ConfigError(
            "--gpu here: this machine has no GPU of which there is a profile",
            hint=f"there are: {', '.join(profile_names())}",
        )
    return found


def key_of_flag(text: str) -> str:
    """section.key=value for a flag of wan.generate with its value. Raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--flag {text}: not of the form flag=value", hint="--flag ffn_chunks=16")
    if name not in KEYS:
        hint = did_you_mean(name, KEYS, "python -m wan.generate --help lists the flags")
        raise ConfigError(f"--flag {text}: {name} is no flag of wan.generate that a plan takes", hint=hint)
    return f"{KEYS[name]}={value}"
