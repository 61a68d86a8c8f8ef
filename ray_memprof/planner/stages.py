"""A choice as the sum of its stages: which parts of it a stage depends on, and what the whole run is at least.

    stage_key(choice, "denoise")                 # choices with the same key share a probe
    bound = bound_of(asked, choice, measured)    # Bound: floor, estimate, host memory, seconds

Networks are given back after their stage, so a stage has the device for itself; without offload, those of the stages
before stay, and are added.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ray_memprof.planner.probe import STAGES, Measured, Stage
from ray_memprof.planner.space import Asked, Choice
from wan.config import TASKS, TextConfig

PROCESS_BYTES = 2**30
"""Host memory of a rank besides its tensors: python with torch and CUDA takes 0.8 to 1 GiB (docs/benchmarks.md)."""
CPU_FLOPS = 5e11
"""Of a desktop CPU in bf16, an estimate: a prediction gives no time to what runs on the host."""

_OF_STAGE: dict[Stage, tuple[str, ...]] = {
    "text": ("t5_fsdp", "t5_cpu", "load_strategy"),
    "denoise": (
        "ulysses", "ring", "cfg", "dit_fsdp", "load_strategy", "weights_dtype", "matmul", "attention_slicing",
        "ffn_chunks", "fused_kernels",
    ),
    "decode": ("vae", "vae_slabs", "fused_kernels"),
}  # fmt: skip
_OF_WEIGHTS = ("ulysses", "ring", "cfg", "dit_fsdp", "load_strategy", "weights_dtype")

Key = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """A choice before it is predicted."""

    floor_bytes: int
    """The device used of the first rank is not less: proven, see probe.py."""
    stage_used_bytes: Mapping[Stage, int]
    """An estimate of it by stage."""
    host_bytes: int
    """Of all ranks together: tensors in host memory, pinned ones too, and the processes."""
    cpu_s: float
    """What a prediction leaves out: the time of the text encoder where it is on the CPU."""
    step_s: float
    run_s: float
    """An estimate of the whole run."""

    @property
    def used_bytes(self) -> int:
        """An estimate of the device used."""
        return max(self.stage_used_bytes.values())

    @property
    def stage(self) -> Stage:
        """The one with the highest estimate."""
        return max(self.stage_used_bytes, key=lambda stage: self.stage_used_bytes[stage])


def _read_by_block(choice: Choice) -> Choice:
    """The same under `block`: `full` differs only in how weights are read."""
    return replace(choice, load_strategy="block") if choice.load_strategy == "full" else choice


def stage_key(choice: Choice, stage: Stage) -> Key:
    """What the stage depends on."""
    plain = _read_by_block(choice)
    if stage == "text" and (choice.t5_fsdp or choice.t5_cpu):
        plain = replace(plain, load_strategy="block")
    return (stage, *(getattr(plain, name) for name in _OF_STAGE[stage]))


def weights_key(choice: Choice) -> Key:
    """What the weights on the device depend on while denoising."""
    plain = _read_by_block(choice)
    return tuple(getattr(plain, name) for name in _OF_WEIGHTS)


def representative(choice: Choice, stage: Stage) -> Choice:
    """A legal choice with the same key, for the probe."""
    return _read_by_block(replace(choice, offload=True, expandable_segments=True))


def bound_of(asked: Asked, choice: Choice, measured: Mapping[Key, Measured], steps: int) -> Bound:
    """The sum of the stages of a choice; each of them is in `measured`."""
    text, denoise, decode = (measured[stage_key(choice, stage)] for stage in STAGES)
    stays = 0 if choice.offload else 1
    kept = {"text": 0, "denoise": stays * text.resident_bytes}
    kept["decode"] = kept["denoise"] + stays * denoise.resident_bytes
    stages: dict[Stage, Measured] = {"text": text, "denoise": denoise, "decode": decode}
    used = {name: one.used_bytes + kept[name] for name, one in stages.items()}
    cpu_s = _cpu_seconds(TASKS[asked.task].text) if choice.t5_cpu else 0.0
    return Bound(
        floor_bytes=max(one.floor_bytes + kept[name] for name, one in stages.items()),
        stage_used_bytes=used,
        host_bytes=host_bytes_of(asked, choice, stages),
        cpu_s=cpu_s,
        step_s=denoise.seconds,
        run_s=text.seconds + cpu_s + denoise.load_seconds + steps * denoise.seconds + decode.seconds,
    )


def host_bytes_of(asked: Asked, choice: Choice, stages: Mapping[Stage, Measured]) -> int:
    """Host memory of all ranks, as if all were on one host: what `full` and `stream` keep there, and the video."""
    text, denoise, decode = (stages[stage] for stage in STAGES)
    of_text, of_dit = text.kept_host_bytes, denoise.kept_host_bytes
    if choice.load_strategy == "full":
        of_text += 0 if choice.t5_fsdp or choice.t5_cpu else text.resident_bytes
        of_dit += 0 if choice.dit_fsdp else denoise.resident_bytes
    of_text = max(of_text, text.host_bytes) if choice.t5_cpu else of_text
    return asked.num_gpus * (PROCESS_BYTES + of_dit) + of_text + decode.host_bytes


def _cpu_seconds(text: TextConfig) -> float:
    """Two prompts through the text encoder, two operations for each number of its blocks and token."""
    inner = text.num_heads * text.d_kv
    block = 4 * text.d_model * inner + 3 * text.d_model * text.d_ff
    return 2 * 2 * text.text_len * text.num_layers * block / CPU_FLOPS
