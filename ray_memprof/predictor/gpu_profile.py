"""What is known of a GPU model, from gpus/NAME.yaml: its memory, what libraries take of it, and its speed.

profile = gpu_profile("H200")
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml

from ray_memprof.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProfile:
    """One GPU model; where each number comes from is written in its file."""

    name: str
    total_bytes: int
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
    launch_ns: int = 5000
    cublas_workspace_bytes: int = 32 * 2**20
    cublas_lt_workspace_bytes: int = 2**20
    cudnn_workspaces: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    """By input channels, output channels, side of the kernel, height and width of the input."""


def gpu_profile(name: str) -> GpuProfile:
    """The profile of that name.

    Raises:
        ConfigError: there is none.
    """
    folder = files("ray_memprof.predictor") / "gpus"
    known = {
        entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")
    }
    found = known.get(name.lower().replace(" ", "_"))
    if found is None:
        raise ConfigError(
            f"--gpu {name}: there is no profile of it", hint=f"there are: {', '.join(sorted(known))}"
        )
    facts: dict[str, Any] = yaml.safe_load(found.read_text(encoding="utf-8"))
    facts["capability"] = tuple(facts["capability"])
    facts["cudnn_workspaces"] = {tuple(key): size for *key, size in facts.get("cudnn_workspaces", ())}
    return GpuProfile(**facts)
