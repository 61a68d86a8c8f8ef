"""The environment variables that torchrun sets, and those that this package sets for NCCL and the allocator.

    place = Place.of(os.environ)                   # Place(rank=0, local_rank=0, num_ranks=1) without torchrun
    set_defaults(os.environ)                       # before the first CUDA or NCCL call
    os.environ.update(growing_segments(os.environ))

The variables are set where the user has not set them, before CUDA starts:

| variable | why |
|---|---|
| NCCL_BUFFSIZE=1048576 | a quarter of the default: 0.2 GiB of device memory less, all_to_all as fast (4 H200s) |
| NCCL_NVLS_ENABLE=0 | multicast buffers cost device memory, serve reductions only, and fail on hosts shared by jobs |

Importing this module imports no torch.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from wan.errors import InputError
from wan.levers import ALLOCATOR_SETTINGS

NCCL_DEFAULTS = {"NCCL_BUFFSIZE": str(2**20), "NCCL_NVLS_ENABLE": "0"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The number of this process, and of how many."""

    rank: int = 0
    local_rank: int = 0
    """Among those of this host: the index of its GPU."""
    num_ranks: int = 1

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Place":
        """As torchrun has set RANK, LOCAL_RANK and WORLD_SIZE.

        Raises:
            InputError: one of them is missing or no number.
        """
        if "WORLD_SIZE" not in environ:
            return cls()
        values = []
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            value = environ.get(name, "")
            if not value.isdecimal():
                raise InputError(
                    f"environment variable {name} is {value!r}, beside WORLD_SIZE={environ['WORLD_SIZE']}",
                    hint="start it with torchrun --nproc_per_node N, or unset WORLD_SIZE",
                )
            values.append(int(value))
        return cls(rank=values[0], local_rank=values[1], num_ranks=values[2])


def set_defaults(environ: MutableMapping[str, str]) -> None:
    """Set the variables with which NCCL needs less device memory; what the user has set stays."""
    for name, value in NCCL_DEFAULTS.items():
        environ.setdefault(name, value)


def growing_segments(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to `environ` so that the CUDA allocator grows its segments; torch reads them once.

    None if the user has set the allocator's settings, under either of their names.
    """
    is_set = any(name in environ for name in ALLOCATOR_SETTINGS)
    return {} if is_set else {ALLOCATOR_SETTINGS[0]: "expandable_segments:True"}
