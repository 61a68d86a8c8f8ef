"""Measures the profile of a GPU model on a machine that has one, in about two minutes.

    text = calibrated(print)            # a file like those of gpus/, for --gpu FILE of predict and audit

Takes GPU 0, which should be free, and for NCCL a second one where there is one. What cannot be measured here is taken
from a profile of this package, and marked in the text as not measured.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ray_memprof.predictor.gpu_profile import GpuProfile, gpu_profile, profile_of
from ray_memprof.wording import first_line

_LIKE = "H200"
"""The profile whose NCCL is taken where there is no second GPU, and no profile of this model."""
_TABLES_BYTES = 2 * 2**20
"""Tables for a page of host memory, which predictor/outside.py counts by themselves."""
_HOPPER, _ADA = (9, 0), (8, 9)
_WORKSPACE_BYTES, _SMALL_WORKSPACE_BYTES = 32 * 2**20, 8_519_680
"""What torch gives cuBLAS as a workspace: from Hopper on, and before."""
_NCCL = ("nccl_communicator_bytes", "nccl_rings_bytes", "link_bytes_per_s", "exchange_ns")
_TOLD = {
    "memory_bytes_per_s": "rates that the GPU reaches: a copy on the device, torch's kernels on tensors that differ, "
    "products, convolutions, attention",
    "launch_ns": "the host: an operation of a network",
    "context_bytes": "outside the allocator, by NVML before and after each",
    "nccl_communicator_bytes": "NCCL, two GPUs",
}


def calibrated(say: Callable[[str], None]) -> str:
    """Measure GPU 0; returns the text of a profile.

    Args:
        say: is told how far it is, a line each.

    Raises:
        ConfigError: there is no GPU.
    """
    import torch

    from ray_memprof.predictor.rates import Stopwatch, rates, rounded
    from ray_memprof.predictor.takes import TorchGpu, outside

    with TorchGpu.opened(0) as gpu:
        name = gpu.device.name()
        if used := gpu.used_bytes():
            say(
                f"{name}: {used / 2**20:,.0f} MiB are in use before; what changes meanwhile spoils the figures"
            )
        say("outside the allocator")
        taken = outside(gpu)
        properties = torch.cuda.get_device_properties(0)
        capability = (properties.major, properties.minor)
        say("rates of kernels and copies, about 40 s")
        with torch.no_grad():
            rate = rounded(
                rates(Stopwatch(torch.cuda.synchronize), device="cuda", has_fp8=capability >= _ADA)
            )
        torch.cuda.empty_cache()
        num_gpus = torch.cuda.device_count()
    nccl: dict[str, Any] = {}
    if num_gpus > 1:
        say("two GPUs: NCCL")
        nccl = _link(say)
    versions = {
        "torch": torch.__version__,
        "cuDNN": _dotted(torch.backends.cudnn.version()),
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
    }
    facts = {
        "name": name,
        "total_bytes": int(properties.total_memory),
        "capability": list(capability),
        "num_sms": int(properties.multi_processor_count),
        **taken,
        **rate,
    }
    return profile_text(facts, rounded(nccl), versions, date=time.strftime("%Y-%m-%d"))


def _link(say: Callable[[str], None]) -> dict[str, Any]:
    from ray_memprof.predictor.link import measured_link

    try:
        return measured_link()
    except Exception as error:  # NCCL has many ways to fail, and all else is measured
        say(f"NCCL could not be measured: {type(error).__name__}: {first_line(error)}")
        return {}


def profile_text(
    facts: Mapping[str, Any], nccl: Mapping[str, Any], versions: Mapping[str, str], *, date: str
) -> str:
    """The profile as a YAML file.

    Args:
        facts: what was measured of one GPU, by the keys of a profile.
        nccl: what was measured of two; empty: there are not two.
        versions: of the libraries, by name.
        date: of the measurement.
    """
    own = profile_of(str(facts["name"]))
    like = gpu_profile(own or _LIKE)
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    borrowed = {} if nccl else {name: getattr(like, name) for name in _NCCL}
    source = f"measured on one {facts['name']}, {told} ({date})"
    if borrowed:
        source += f"; NCCL estimated from {like.name}"
    values: dict[str, Any] = {"name": facts["name"], "source": source}
    values |= {name: value for name, value in facts.items() if name != "name"}
    values |= {**nccl, **borrowed}
    values["first_page_locked_bytes"] = max(0, values["first_page_locked_bytes"] - _TABLES_BYTES)
    is_hopper = tuple(facts["capability"]) >= _HOPPER
    values["cublas_workspace_bytes"] = _WORKSPACE_BYTES if is_hopper else _SMALL_WORKSPACE_BYTES
    comments = dict(_TOLD)
    if borrowed:
        comments["nccl_communicator_bytes"] = (
            f"not measured, for there is no second GPU: those of {like.name}"
        )
    lines = [f"# {facts['name']}, by ray-memprof calibrate."]
    for name, value in values.items():
        if name in comments:
            lines.append(f"# {comments[name][0].upper()}{comments[name][1:]}.")
        lines.append(f"{name}: {_written(value)}")
    return "\n".join([*lines, *(_workspaces(like) if own else [])]) + "\n"


def _written(value: Any) -> str:
    """A value in YAML, in which a number with an exponent needs a dot."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_written(one)}' for name, one in value.items())}}}"
    return f"{value:.2e}" if isinstance(value, float) else json.dumps(value)


def _workspaces(like: GpuProfile) -> list[str]:
    """Workspaces of cuDNN, which only recorded runs tell."""
    found = asdict(like)["cudnn_workspaces"]
    if not found:
        return []
    rows = [f"  - {[*shape, size]}" for shape, size in found.items()]
    return [
        f"# Not measured: workspaces of cuDNN as in the profile of {like.name}.",
        "cudnn_workspaces:",
        *rows,
    ]


def _dotted(version: int | None) -> str:
    """cuDNN's number as its version: 91900 -> 9.19.0."""
    if not version:
        return "none"
    large = 10_000 if version >= 10_000 else 1_000
    return f"{version // large}.{version % large // 100}.{version % 100}"
