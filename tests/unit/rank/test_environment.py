"""What a rank finds in its environment."""

from pathlib import Path
from typing import Any

from ray_memprof.config.load import from_mapping
from ray_memprof.config.run_config import RunConfig
from ray_memprof.rank.environment import rank_environment, script_environment
from ray_memprof.rank.messages import RankFacts
from ray_memprof.rank.plan import RankPlan
from ray_memprof.rank.variables import forwarded, in_force, shown
from wan.levers import ALLOCATOR_SETTINGS

FACTS = RankFacts(node_id="n1", host="h", node_ip="10.0.0.1", pid=1, gpu_index=3, visible_device="3")
TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_NAME": "default",
    "ROLE_RANK": "3",
    "ROLE_WORLD_SIZE": "4",
    "TORCHELASTIC_RUN_ID": "run",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "0",
    "TORCHELASTIC_USE_AGENT_STORE": "False",
}
DEFAULTS = {
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_FR_DUMP_TEMP_FILE": "/run/logs/nccl_trace_rank",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/run/logs/nccl_trace_rank",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}
OF_WAN = {
    "NCCL_BUFFSIZE": "1048576",
    "NCCL_NVLS_ENABLE": "0",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}


def plan(**changes: Any) -> RankPlan:
    given = {
        "run_id": "run",
        "config": RunConfig(name="test"),
        "rank": 3,
        "world_size": 4,
        "local_rank": 1,
        "local_world_size": 2,
        "node": 1,
        "num_nodes": 2,
        "visible_devices": (),
        "facts": FACTS,
        "run_dir": Path("/run"),
    }
    return RankPlan(**(given | changes))


def test_nothing_is_forwarded_of_nothing() -> None:
    assert forwarded({}) == {}


def test_only_the_allow_list_is_forwarded() -> None:
    environ = {
        "NCCL_DEBUG": "INFO",
        "TORCH_HOME": "/t",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",
        "HF_TOKEN": "x",
        "CUDA_LAUNCH_BLOCKING": "1",
        "CUDA_VISIBLE_DEVICES": "7",
        "OMP_NUM_THREADS": "3",
        "PATH": "/bin",
        "LD_LIBRARY_PATH": "/lib",
        "RAY_ADDRESS": "nowhere",
        "MY_NCCL_DEBUG": "1",
    }

    assert forwarded(environ) == {
        "CUDA_LAUNCH_BLOCKING": "1",
        "HF_TOKEN": "x",
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "3",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",
        "TORCH_HOME": "/t",
    }


def test_rank_without_a_gpu_in_an_empty_environment() -> None:
    found = rank_environment(plan(), {}, num_cores=9)

    assert found == TORCHRUN | DEFAULTS | OF_WAN | {"OMP_NUM_THREADS": "4"}


def test_the_node_keeps_its_own_values_and_ray_does_not_decide_the_threads() -> None:
    own = {"NCCL_SOCKET_IFNAME": "eth1", "TORCH_FR_BUFFER_SIZE": "10", "OMP_NUM_THREADS": "1", "RANK": "0"}
    passed_on = {"NCCL_SOCKET_IFNAME": "eth0", "NCCL_DEBUG": "INFO", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    expected = (
        TORCHRUN
        | DEFAULTS
        | OF_WAN
        | {"OMP_NUM_THREADS": "2", "NCCL_DEBUG": "INFO", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    )
    del expected["TORCH_FR_BUFFER_SIZE"]

    assert rank_environment(plan(environment=passed_on), own, num_cores=4) == expected


def test_threads_that_the_user_asks_for() -> None:
    found = rank_environment(
        plan(environment={"OMP_NUM_THREADS": "7"}), {"OMP_NUM_THREADS": "1"}, num_cores=4
    )

    assert found["OMP_NUM_THREADS"] == "7"


def test_never_less_than_one_thread() -> None:
    assert rank_environment(plan(local_world_size=8), {}, num_cores=2)["OMP_NUM_THREADS"] == "1"


def test_mask_is_the_list_of_the_node() -> None:
    found = rank_environment(plan(visible_devices=("2", "3")), {"CUDA_VISIBLE_DEVICES": "3"}, num_cores=2)

    assert found["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_secrets_are_not_shown() -> None:
    environ = {"HF_TOKEN": "x", "DASH_API_KEY": "y", "TOKENIZERS_PARALLELISM": "false", "RANK": "0"}

    assert shown(environ) == {
        "DASH_API_KEY": "(set, not recorded)",
        "HF_TOKEN": "(set, not recorded)",
        "RANK": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def of_wan(config: RunConfig, environ: dict[str, str] | None = None, **changes: Any) -> dict[str, str]:
    """What is set of the names that wan.generate would set for itself, beside what `environ` has."""
    found = rank_environment(plan(config=config, **changes), environ or {}, num_cores=1)
    return {name: value for name, value in found.items() if name in (*OF_WAN, *ALLOCATOR_SETTINGS)}


def test_wan_holds_less_on_cuda_only_and_nccl_is_told_where_there_are_several_ranks() -> None:
    allocator = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    nccl = {name: value for name, value in OF_WAN.items() if name.startswith("NCCL")}
    plain = {"optimization": {"expandable_segments": False}}
    script = {"workload": "script", "script": {"path": "x.py"}}
    one = {"world_size": 1}

    assert of_wan(from_mapping({"name": "x"}, source="test")) == allocator | nccl
    assert of_wan(from_mapping({"name": "x"}, source="test"), **one) == allocator
    assert of_wan(from_mapping({"name": "x", **plain}, source="test")) == nccl
    assert of_wan(from_mapping({"name": "x", "model_config": {"device": "cpu"}}, source="test")) == {}
    assert of_wan(from_mapping({"name": "x", **script}, source="test")) == {}


def test_what_the_user_set_stays_whoever_passes_it_on() -> None:
    config = from_mapping({"name": "x"}, source="test")
    nvls = {"NCCL_NVLS_ENABLE": "0"}
    for name in ALLOCATOR_SETTINGS:
        own = {name: "max_split_size_mb:64", "NCCL_BUFFSIZE": "4194304"}
        assert of_wan(config, own) == nvls
        assert of_wan(config, environment=own) == nvls | own


def test_what_is_in_force_is_told_whoever_set_it() -> None:
    environ = {
        "NCCL_BUFFSIZE": "4194304",
        "PYTORCH_ALLOC_CONF": "x:1",
        "HF_TOKEN": "x",
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
    }

    assert in_force(environ) == {
        "HF_TOKEN": "(set, not recorded)",
        "NCCL_BUFFSIZE": "4194304",
        "PYTORCH_ALLOC_CONF": "x:1",
    }


def sockets(given: RankPlan, environ: dict[str, str], interface: str) -> dict[str, str]:
    found = rank_environment(given, environ, num_cores=1, interface=interface)
    return {name: value for name, value in found.items() if name.endswith("_SOCKET_IFNAME")}


def test_ranks_of_several_hosts_use_the_interface_that_ray_reaches_them_by() -> None:
    both = {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "=eth1"}
    assert sockets(plan(), {}, "eth1") == both
    assert sockets(plan(), {}, "") == {}
    assert sockets(plan(num_nodes=1), {}, "eth1") == dict.fromkeys(both, "lo")
    # The node's own value stays, and so does the driver's.
    assert sockets(plan(), {"NCCL_SOCKET_IFNAME": "ib0"}, "eth1") == {"GLOO_SOCKET_IFNAME": "eth1"}
    given = plan(environment={"GLOO_SOCKET_IFNAME": "eth7"})
    assert sockets(given, {}, "eth1") == {**both, "GLOO_SOCKET_IFNAME": "eth7"}


def test_a_script_meets_the_others_at_the_store_of_the_actor_as_under_torchrun() -> None:
    script = RunConfig(name="test", workload="script")
    assert rank_environment(plan(config=script), {}, num_cores=1)["TORCHELASTIC_USE_AGENT_STORE"] == "True"


def test_a_script_finds_nothing_of_ray_in_its_environment() -> None:
    assert script_environment({}, is_own_ray=True) == {}
    kept = {"PATH": "/bin", "RAY_ADDRESS": "10.0.0.1:6379", "RANK": "0"}
    ray = {
        "RAY_JOB_ID": "01",
        "RAY_RAYLET_PID": "7",
        "SPT_NOENV": "1",
        "PYTHONBREAKPOINT": "ray.util.rpdb.set_trace",
    }
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}
    assert script_environment(kept | ray | token, is_own_ray=True) == kept
    # A cluster that runs already may ask for it.
    assert script_environment(kept | ray | token, is_own_ray=False) == kept | token
    own = {"PYTHONBREAKPOINT": "ipdb.set_trace"}
    assert script_environment(own, is_own_ray=True) == own
