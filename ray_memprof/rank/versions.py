"""The versions of all software that decides where memory goes.

checks = versions()          # {"host": "gpu7", "torch": "2.13.0", "nccl": "2.29.7", ...}
"""

import platform
import socket
from importlib import metadata

Checks = dict[str, str | int]
ATTENTION_PACKAGES = ("fa3-fwd", "flash-attn-4")
"""Packages with kernels that attention_kernel auto takes where they are installed."""


def versions() -> Checks:
    """The versions of all software that decides where memory goes; "" for software that is not there.

    Packages of attention kernels are named only where they are.
    """
    import torch

    found: Checks = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        # Its own class would make the driver, which unpickles this, import torch.
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda or "",
        "cudnn": "",
        "nccl": "",
        "ray": _installed("ray"),
    }
    if torch.version.cuda is not None:
        # Not torch.backends.cudnn.version(): it starts CUDA, before the recorder runs.
        found["cudnn"] = ".".join(map(str, torch._C._cudnn.getRuntimeVersion()))
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    kernels = {name: _installed(name) for name in ATTENTION_PACKAGES}
    return found | {name: version for name, version in kernels.items() if version}


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
