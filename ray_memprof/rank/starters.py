"""Which rank this process is, by the environment of whatever started it: torchrun, srun, mpirun or a person.

    start = start_of(os.environ)          # Start(rank=2, num_ranks=4, local_rank=2, key="5c1d...")

Pure: takes a mapping, and needs neither torch nor Ray.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_memprof.errors import ConfigError

_STARTERS = {
    "RANK": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "OMPI_COMM_WORLD_RANK": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "SLURM_PROCID": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "PMI_RANK": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
}
"""Variables with the number of the rank, how many there are, and its number on its host. The first starter counts.

A program under torchrun inside a SLURM job is torchrun's. PMI_RANK: MPICH and Intel MPI.
"""
_OF_ONE_START = (
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    *("OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE", "PMI_JOBID", "SLURM_JOB_ID", "SLURM_STEP_ID"),
)
"""Variables that all ranks of one start have alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The number of this process among those that were started together."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    """Among those of its host."""
    key: str = ""
    """The same for all ranks of one start, different for another start that runs at the same time; "": one rank."""
    leads_host: bool = False
    """Whether it is the first rank of a host that does not have rank 0, as far as the starter says so."""
    variables: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What the starter calls this start: variables that all its ranks have alike."""


def start_of(environ: Mapping[str, str]) -> Start:
    """What the environment says; without a word of any starter it is rank 0 of 1.

    Raises:
        ConfigError: the number of ranks is missing, or a variable is no number.
    """
    for name, names in _STARTERS.items():
        # A person's shell inside a SLURM allocation has SLURM_PROCID=0 too, but no step of srun's.
        if name not in environ or (name == "SLURM_PROCID" and "SLURM_STEP_ID" not in environ):
            continue
        rank, num_ranks = (_number(environ, one, beside=name) for one in names[:2])
        # Not every starter says it; then each rank sees its own device alone, or there is one rank a host.
        local_rank = _number(environ, names[2], beside=name) if names[2] in environ else 0
        if rank >= num_ranks:
            raise ConfigError(
                f"environment variable {names[0]} is {rank}, and {names[1]} is {num_ranks}",
                hint="ranks are numbered from 0",
            )
        shared = {one: environ[one] for one in _OF_ONE_START if one in environ} if num_ranks > 1 else {}
        return Start(
            rank=rank,
            num_ranks=num_ranks,
            local_rank=local_rank,
            key=_key(shared, num_ranks) if num_ranks > 1 else "",
            leads_host=rank > 0 and local_rank == 0 and names[2] in environ,
            variables=shared,
        )
    return Start()


def _number(environ: Mapping[str, str], name: str, *, beside: str) -> int:
    text = environ.get(name, "")
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(
            f"environment variable {name} is {text!r}, and {beside} is {environ[beside]!r}"
            if name in environ
            else f"environment variable {name} is not set, and {beside} is {environ[beside]!r}",
            hint=f"set it as torchrun, srun or mpirun does, or unset {beside}",
        )
    return int(text)


def _key(shared: Mapping[str, str], num_ranks: int) -> str:
    known = [f"{name}={value}" for name, value in shared.items()]
    return hashlib.sha256("\n".join([str(num_ranks), *known]).encode()).hexdigest()[:16]
