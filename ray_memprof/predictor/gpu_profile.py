"""What is known of a GPU model, from gpus/NAME.yaml: its memory, what libraries take of it, and its speed.

profile = gpu_profile("H200")
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ray_memprof.errors import ConfigError
from ray_memprof.wording import first_line

_FOLDER, _SUFFIX = files("ray_memprof.predictor") / "gpus", ".yaml"


_SAME_MEMORY = 0.05
"""How far the memory of two GPUs of one model may differ: the driver keeps some, and not always the same."""
_PLAIN = r"nvidia|geforce|tesla|gpu|pcie|sxm\d?|hbm\d?e?|\d+gb"
"""Words of a name that make no other model of it; of these, a size must be that of the profile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProfile:
    """One GPU model; where each number comes from is written in its file."""

    name: str
    source: str
    """Where the numbers come from: measured, with date and versions, or a data sheet."""
    total_bytes: int
    """As the driver reports it."""
    capability: tuple[int, int]
    num_sms: int
    context_bytes: int
    """Outside the allocator once the process has a CUDA context."""
    kernels_bytes: int
    """The code of torch's own kernels, loaded with the first of them."""
    libraries_bytes: int
    """What cuBLAS and cuDNN keep, from the first product on."""
    more_kernels_bytes: int
    """Kernels that are loaded later, with the first network."""
    first_page_locked_bytes: int
    """With the first host memory that is page-locked, and the first stream besides torch's own."""
    nccl_communicator_bytes: int
    """When NCCL makes a communicator."""
    nccl_rings_bytes: int
    """When it connects its rings, with the first collective that is not point to point."""
    memory_bytes_per_s: float
    """Of kernels that read and write many bytes at a time."""
    product_flops: Mapping[str, float]
    """FLOP/s of matrix products, by dtype; and by dtype and shape of the weight, inputs x outputs, where that was
    measured: bfloat16, bfloat16_5120x13824."""
    convolution_flops: Mapping[str, float]
    """The same of convolutions; the shape is the number of output channels: float32, float32_96."""
    attention_flops: Mapping[str, float]
    """The same of torch's attention, by the width of a head, and of kernels of other packages: bfloat16, float32_384,
    fa3, fa3_float8_e4m3fn."""
    page_locked_bytes_per_s: float
    """Between the device and host memory that is page-locked, and other host memory."""
    pageable_bytes_per_s: float
    link_bytes_per_s: float
    """Between two GPUs of one host, in each direction, as NCCL reaches it."""
    launch_ns: int
    """What the host takes for an operation of a network that runs a kernel, with the Python around it."""
    mixed_bytes_per_s: float = 0.0
    """As memory_bytes_per_s, of torch's own kernels on tensors that differ in dtype, shape or order in memory; 0: the
    same."""
    view_ns: int = 3_000
    """The same of an operation that runs none, such as a view: where it was not measured, so much is assumed."""
    exchange_ns: int = 30_000
    """What an exchange between GPUs takes besides its bytes: where it was not measured, so much is assumed."""
    cublas_workspace_bytes: int = 32 * 2**20
    cublas_lt_workspace_bytes: int = 2**20
    cudnn_workspaces: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    """By input channels, output channels, side of the kernel, height and width of the input."""


_NUMBERS = {
    one.name: int if one.type is int else (int, float)
    for one in fields(GpuProfile)
    if one.type in (int, float)
}
"""The types of what is a plain number."""
_ABOVE_0 = (
    "total_bytes", "num_sms", "memory_bytes_per_s", "page_locked_bytes_per_s", "pageable_bytes_per_s",
    "link_bytes_per_s",
)  # fmt: skip
"""Numbers of which a GPU has some; by a rate of 0 nothing would ever end."""
_MOST = 2**62
"""What a column of a table can hold, sums of a few included."""
_WORKSPACE_COLUMNS = 6
_FLOPS = ("product_flops", "convolution_flops", "attention_flops")


def profile_names() -> list[str]:
    """The names by which profiles are asked for."""
    return sorted(
        entry.name.removesuffix(_SUFFIX) for entry in _FOLDER.iterdir() if entry.name.endswith(_SUFFIX)
    )


def gpu_profile(name: str) -> GpuProfile:
    """The profile of a GPU model: "H200", "RTX 4090", "NVIDIA GeForce RTX 4090"; or that of a file, by its path.

    Raises:
        ConfigError: there is none, or the file is none.
    """
    if name.endswith((_SUFFIX, ".yml")):
        return _of_file(Path(name))
    key = name.strip().lower().replace(" ", "_").replace("-", "_")
    if key not in profile_names() and not (key := profile_of(name)):
        raise ConfigError(
            f"--gpu {name}: there is no profile of it", hint=f"there are: {', '.join(profile_names())}"
        )
    return _profile(yaml.safe_load((_FOLDER / f"{key}{_SUFFIX}").read_text(encoding="utf-8")))


def _of_file(path: Path) -> GpuProfile:
    hint = "ray-memprof calibrate writes one on a machine with such a GPU"
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--gpu {path} cannot be read: {first_line(error)}", hint=hint) from error
    names = {one.name: one for one in fields(GpuProfile)}
    given = facts.keys() if isinstance(facts, dict) else set()
    needed = {name for name, one in names.items() if one.default is one.default_factory is MISSING}
    if missing := sorted(needed - given):
        raise ConfigError(f"--gpu {path} is no profile: {', '.join(missing)} is missing", hint=hint)
    if unknown := sorted(given - names.keys()):
        raise ConfigError(f"--gpu {path} has unknown keys: {', '.join(unknown)}", hint=hint)
    try:
        return _profile(facts)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--gpu {path}: {first_line(error)}", hint=hint) from error


def _profile(facts: dict[str, Any]) -> GpuProfile:
    """Raises ValueError for a value that cannot be."""
    for name in ("name", "source"):
        if not isinstance(facts[name], str) or not facts[name].strip():
            raise ValueError(f"{name} is {facts[name]!r}, and must be text")
    for name, kind in _NUMBERS.items():
        value = facts.get(name, 0)
        if not _is_number(value, kind) or value < 0:
            raise ValueError(f"{name} is {value!r}, and must be a number")
    for name in _ABOVE_0:
        if not facts[name]:
            raise ValueError(f"{name} is 0, and must be above it")
    for name in _FLOPS:
        _check_flops(name, facts[name])
    for rows, length, name in (
        ([facts["capability"]], 2, "capability"),
        (facts.get("cudnn_workspaces", []), _WORKSPACE_COLUMNS, "cudnn_workspaces"),
    ):
        if not isinstance(rows, list) or not all(_is_row(row, length) for row in rows):
            raise ValueError(f"{name} is {facts[name]!r}, and must have {length} whole numbers in a row")
    facts["capability"] = tuple(facts["capability"])
    facts["cudnn_workspaces"] = {tuple(key): size for *key, size in facts.get("cudnn_workspaces", ())}
    return GpuProfile(**facts)


def _check_flops(name: str, rates: Any) -> None:
    if not isinstance(rates, dict) or "float32" not in rates:
        raise ValueError(f"{name} must have a rate for float32, by which dtypes without one go")
    for key, value in rates.items():
        if not isinstance(key, str) or not _is_number(value, (int, float)) or value <= 0:
            hint = ": YAML takes 7e14 for a text, and 7.0e+14 for a number" if isinstance(value, str) else ""
            raise ValueError(f"{name}.{key} is {value!r}, and must be a number above 0{hint}")


def _is_number(value: Any, kind: type | tuple[type, ...]) -> bool:
    # No comparison holds for NaN.
    return not isinstance(value, bool) and isinstance(value, kind) and -_MOST < value < _MOST  # type: ignore[operator]


def _is_row(row: Any, length: int) -> bool:
    return (
        isinstance(row, list) and len(row) == length and all(_is_number(one, int) and one >= 0 for one in row)
    )


def gpu_at_hand() -> str:
    """The profile of the first GPU of this machine; "": there is none, or none of it."""
    from ray_memprof.recorder.meters.nvml import open_device

    with open_device(index=0) as device:
        facts = {} if device is None else device.facts()
    return profile_of(str(facts.get("gpu_name", "")), facts.get("device_total_bytes"))


def profile_of(gpu_name: str, total_bytes: int | None = None) -> str:
    """The profile of a GPU by the name that its driver or a person gives it; "": there is none.

    A model that has another memory is another model: an A100 of 40 GB, an RTX 4090 of a laptop.

    profile_of("NVIDIA H200")       # "h200"
    profile_of("RTX4090")           # "rtx_4090"
    profile_of("NVIDIA A100-SXM4-40GB"), profile_of("NVIDIA GeForce RTX 4090 Laptop GPU")       # "", ""

    Args:
        gpu_name: in any spelling.
        total_bytes: its memory; None: not known, so no word of the name may be strange.
    """
    words = set(re.split(r"[^a-z0-9]+", re.sub(r"\brtx(?=\d)", "rtx ", gpu_name.lower()))) - {""}
    for key in profile_names():
        own = set(key.split("_"))
        if own <= words:
            total = gpu_profile(key).total_bytes
            sizes = [int(word[:-2]) for word in words - own if re.fullmatch(r"\d+gb", word)]
            if total_bytes is not None:
                is_same = abs(total_bytes - total) <= _SAME_MEMORY * total
            else:
                is_same = all(re.fullmatch(_PLAIN, word) for word in words - own)
            return key if is_same and all(abs(size - total / 1e9) <= size / 10 for size in sizes) else ""
    return ""
