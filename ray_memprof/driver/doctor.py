"""What this machine has for a run, on one screen: Python, torch, CUDA, driver, NCCL, Ray, disk, /dev/shm, packages.

    for line in checks(Path("profiler_logs")):
        line.name, line.text, line.trouble

Starts no run and makes no CUDA context in this process: torch is imported in a process of its own, so that one that
crashes, or hangs, is a line here.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ray_memprof.recorder.meters.nvml import driver_facts
from ray_memprof.wording import GIB, size_text

LEAST_DISK_BYTES = 2 * GIB
"""Less room for runs than this is told: the largest runs of docs/benchmarks.md leave as much."""
LEAST_SHM_BYTES = GIB
"""Less /dev/shm than this is told: containers often have 64 MiB, in which neither NCCL nor Ray's object store fit."""
TORCH_S = 60.0
"""Seconds that the import of torch may take."""
_SHM = Path("/dev/shm")
_INSTALL = "pip install 'ray-memprof[run]'"
_TORCH = """
import json, torch
has_cuda = torch.cuda.is_available()
nccl = torch.cuda.nccl.version() if torch.version.cuda else ()
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "nccl": ".".join(map(str, nccl)),
    "num_devices": torch.cuda.device_count() if has_cuda else 0,
}))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, what was found, and what is wrong with it, if anything is."""

    name: str
    text: str
    trouble: str = ""
    """What to do about it; "": all is well."""


def checks(output_dir: Path) -> list[Check]:
    """Look at everything that a run needs.

    Args:
        output_dir: where runs are kept; it need not exist yet.
    """
    return [
        Check("Python", f"{platform.python_version()}, {sys.executable}"),
        Check("ray-memprof", _version("ray-memprof") or "not installed, run from its folder"),
        *_torch_checks(_torch(), _driver_facts()),
        _package(
            "Ray",
            "ray",
            f"to launch runs: {_INSTALL}; recording and questions work without it",
        ),
        *_disk(output_dir),
        *_shared_memory(),
        _missing(),
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _package(name: str, package: str, trouble: str) -> Check:
    found = _version(package)
    return Check(name, found) if found else Check(name, "not installed", trouble)


def _torch() -> dict[str, Any]:
    """What torch says of itself; "error" where it cannot be imported."""
    if not _version("torch"):
        return {"error": "not installed"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=TORCH_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not imported within {TORCH_S:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its import ended with code {done.returncode}"]
        return {"error": lines[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _driver_facts() -> dict[str, Any] | None:
    try:
        return driver_facts()
    except ModuleNotFoundError:
        return {"version": "not asked, for nvidia-ml-py is not installed", "gpus": []}


def _torch_checks(torch: dict[str, Any], driver: dict[str, Any] | None) -> list[Check]:
    """Lines on torch, CUDA, the driver with its GPUs, and NCCL."""
    gpus = [] if driver is None else driver["gpus"]
    if "error" in torch:
        return [
            Check(
                "torch",
                torch["error"],
                f"to run programs: {_INSTALL}; questions work without it",
            ),
            _driver(driver),
        ]
    built = torch["cuda"]
    seen = f"torch sees {torch['num_devices']} of {len(gpus)} GPUs" if gpus else "no GPU"
    trouble = ""
    if gpus and not built:
        trouble = "this torch is a build for the CPU: install one for CUDA, as PyTorch's install page says"
    elif gpus and not torch["num_devices"]:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        trouble = (
            "torch sees none: the driver may be too old for this CUDA"
            if hidden is None
            else f"torch sees none: CUDA_VISIBLE_DEVICES is {hidden!r}"
        )
    return [
        Check("torch", torch["version"]),
        Check("CUDA", f"{built or 'none, a build for the CPU'}; {seen}", trouble),
        _driver(driver),
        Check("NCCL", torch["nccl"] or "none: ranks on the CPU use gloo"),
    ]


def _driver(driver: dict[str, Any] | None) -> Check:
    if driver is None:
        return Check(
            "driver", "none: this machine has no NVIDIA GPU, or it is not passed on to this container"
        )
    gpus = ", ".join(
        f"{one['gpu_index']}: {one['gpu_name']}, {size_text(one['free_bytes'])} of "
        f"{size_text(one['device_total_bytes'])} free"
        for one in driver["gpus"]
    )
    return Check("driver", f"{driver['version']}; {gpus or 'no GPU'}")


def _disk(output_dir: Path) -> list[Check]:
    folder = next(one for one in (output_dir.absolute(), *output_dir.absolute().parents) if one.exists())
    free = shutil.disk_usage(folder).free
    trouble = ""
    if not os.access(folder, os.W_OK):
        trouble = f"{folder} cannot be written: name another with --output-dir"
    elif free < LEAST_DISK_BYTES:
        trouble = "make room (ray-memprof gc --keep 20), or name another disk with --output-dir"
    return [Check("disk", f"{size_text(free)} free for runs in {output_dir.absolute()}", trouble)]


def _shared_memory() -> list[Check]:
    if not _SHM.is_dir():
        return []
    usage = shutil.disk_usage(_SHM)
    is_small = usage.total < LEAST_SHM_BYTES
    trouble = "start the container with --shm-size=8g or --ipc=host" if is_small else ""
    return [Check("/dev/shm", f"{size_text(usage.free)} of {size_text(usage.total)} free", trouble)]


def _missing() -> Check:
    """The packages that ray-memprof requires, extras left out, and that are not there."""
    try:
        required = metadata.requires("ray-memprof") or []
    except metadata.PackageNotFoundError:
        return Check("packages", "not known: ray-memprof is not installed", "pip install --editable .")
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line]
    missing = [name for name in names if not _version(name)]
    if missing:
        return Check("packages", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", f"all {len(names)} that are required are installed")
