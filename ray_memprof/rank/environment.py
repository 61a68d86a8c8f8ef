"""The environment of a rank: what torchrun would set, what the driver passes on, and what NCCL's flight recorder needs.

    environ = rank_environment(plan, os.environ, num_cores=16)      # pure: takes and gives plain mappings

A rank inherits the environment of its own node. From the driver's environment it gets only what variables.FORWARDED
names, and only if the node has no value of its own: a host may need another NCCL_SOCKET_IFNAME, and its own PATH and
LD_LIBRARY_PATH. Variables that wan.generate would set itself under torchrun are set here too, so that they are recorded
like the others.
"""

from collections.abc import Mapping

from ray_memprof.rank.network import GLOO, NCCL, socket_variables
from ray_memprof.rank.plan import RankPlan
from ray_memprof.store.run_files import flight_record_name
from wan.parallel.environment import growing_segments, set_defaults

_FLIGHT_RECORDS = 2000
"""How many collectives NCCL's flight recorder keeps: torch's own default, set here so that it cannot become 0."""
_LOOPBACK = "lo"
_THREADS = "OMP_NUM_THREADS"
_BREAKPOINT = "PYTHONBREAKPOINT"
_OF_RAY = (
    *("RAY_RAYLET_PID", "RAY_JOB_ID", "RAY_CLIENT_MODE", "RAY_LD_PRELOAD_ON_WORKERS", "SPT_NOENV"),
    *("RAY_DEDUP_LOGS", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"),
)
"""What Ray 2.60 sets in a worker, and driver/cluster.py before it imports Ray."""
_OF_OWN_RAY = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
"""What driver/own_ray.py sets."""


def rank_environment(
    plan: RankPlan, environ: Mapping[str, str], *, num_cores: int, interface: str = ""
) -> dict[str, str]:
    """The variables to set in a rank whose process has `environ` already; MASTER_* come once the store is open.

    Args:
        plan: of the rank.
        environ: of its process.
        num_cores: number of cores that its process may run on.
        interface: the interface of its host that has the address by which Ray knows the host; "": not known.
    """
    defaults = _of_wan(plan, environ) | plan.environment | _defaults(plan, interface)
    # Ray sets OMP_NUM_THREADS to the number of CPUs that it booked, 1 by default, so the value in `environ` says
    # nothing about what the user wants.
    threads = plan.environment.get(_THREADS) or str(max(1, num_cores // plan.local_world_size))
    return {
        **{name: value for name, value in defaults.items() if name not in environ},
        _THREADS: threads,
        **_mask(plan),
        **_torchrun(plan),
    }


def _defaults(plan: RankPlan, interface: str) -> dict[str, str]:
    """Variables that are set only if neither the driver nor the node sets them."""
    # Between hosts, use the interface that has the host's address in Ray, since it is known to work.
    sockets = socket_variables(interface) if plan.num_nodes > 1 else {}
    records = (plan.run_dir / flight_record_name()).as_posix()
    wanted = {
        "TORCH_FR_BUFFER_SIZE": str(_FLIGHT_RECORDS),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        # torch appends the rank.
        "TORCH_FR_DUMP_TEMP_FILE": records,
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": records,
        # The ranks of one node meet on loopback, which other hosts cannot reach; their data still use shared memory and
        # NVLink.
        **(dict.fromkeys((GLOO, NCCL), _LOOPBACK) if plan.num_nodes == 1 else {}),
        # Without this CUDA puts the fastest GPU first, and its index 0 may be another GPU than index 0 of NVML and Ray.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **sockets,
    }
    return {name: value for name, value in wanted.items() if name not in plan.environment}


def _of_wan(plan: RankPlan, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that make the wan workload hold less memory; a script gets only what torchrun would give it."""
    config = plan.config
    wanted: dict[str, str] = {}
    if config.workload != "wan" or config.model.device == "cpu":
        return wanted
    if plan.world_size > 1:
        set_defaults(wanted)
    if config.optimization.expandable_segments:
        wanted |= growing_segments({**environ, **plan.environment})
    return wanted


def _mask(plan: RankPlan) -> dict[str, str]:
    """All GPUs of the node, as under torchrun, so that a script that calls set_device(LOCAL_RANK) gets its own GPU."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(plan.visible_devices)} if plan.visible_devices else {}


def _torchrun(plan: RankPlan) -> dict[str, str]:
    """The variables that torchrun sets."""
    return {
        "RANK": str(plan.rank),
        "LOCAL_RANK": str(plan.local_rank),
        "WORLD_SIZE": str(plan.world_size),
        "LOCAL_WORLD_SIZE": str(plan.local_world_size),
        "GROUP_RANK": str(plan.node),
        "GROUP_WORLD_SIZE": str(plan.num_nodes),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(plan.rank),
        "ROLE_WORLD_SIZE": str(plan.world_size),
        "TORCHELASTIC_RUN_ID": plan.run_id,
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        # Wan runs in the actor of rank 0, which holds the store itself, and torch's rendezvous joins it there. A script
        # is a process of its own, and the actor has the place of torchrun's agent.
        "TORCHELASTIC_USE_AGENT_STORE": str(plan.config.workload == "script"),
    }


def script_environment(environ: Mapping[str, str], *, is_own_ray: bool) -> dict[str, str]:
    """The environment of a script's process: that of the actor, less what Ray and the launcher set for Ray's workers.

    With it a script's own ray.init() would take itself for a part of this Ray, and breakpoint() would import Ray.

    Args:
        environ: of the actor.
        is_own_ray: whether the launcher has started this Ray, and so has made its token.
    """
    left_out = {*_OF_RAY, *(_OF_OWN_RAY if is_own_ray else ())}
    if environ.get(_BREAKPOINT, "").startswith("ray."):
        left_out.add(_BREAKPOINT)
    return {name: value for name, value in environ.items() if name not in left_out}
