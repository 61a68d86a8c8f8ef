"""Which variables of the environment affect where memory goes: those that ranks get, and that a run's record keeps.

    in_force(os.environ)         # {"NCCL_BUFFSIZE": "1048576", "HF_TOKEN": "(set, not recorded)"}

Pure: takes and gives plain mappings.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

FORWARDED = (
    "NCCL_*",
    "TORCH_*",
    "PYTORCH_*",
    "GLOO_*",
    "CUDA_*",
    "CUDNN_*",
    "CUBLAS_*",
    "HF_*",
    "DASH_*",
    "TOKENIZERS_PARALLELISM",
    "OMP_NUM_THREADS",
)
"""Names of variables that ranks get from the driver. DASH_*: for the service that extends prompts."""
NEVER_FORWARDED = ("CUDA_VISIBLE_DEVICES",)
"""Ray decides about these GPUs, and each node has its own list."""

_SECRET = frozenset(("TOKEN", "KEY", "SECRET", "PASSWORD"))


def forwarded(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of the driver's environment that the ranks get."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if name not in NEVER_FORWARDED and any(fnmatchcase(name, pattern) for pattern in FORWARDED)
    }


def in_force(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that affect the memory of a rank, whether the node, the driver or the workload has set them.

    The values of secrets are left out, so the result may be written into a run folder.
    """
    return shown(forwarded(environ))


def shown(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` as it may be written into a run folder: values of secrets left out."""
    return {
        name: "(set, not recorded)" if _SECRET & set(name.upper().split("_")) else value
        for name, value in sorted(environ.items())
    }
