"""Failure modes 5, 6, 10 and 11: nodes and clusters that are not ours alone; two raylets stand for two nodes."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from launcher import NODE, Launch, config_of, joining, launch, rows_of, start, two_nodes
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with two_nodes() as made:
        yield made


@pytest.fixture
def cluster(nodes: Cluster) -> Iterator[Cluster]:
    """Two nodes that nobody uses: the same for all tests, because they take seconds to start."""
    yield nodes
    ray.shutdown()
    if len(nodes.worker_nodes) == 0:
        nodes.add_node(**NODE)


def test_5_node_lost(tmp_path: Path, cluster: Cluster) -> None:
    scratch = tmp_path / "scratch"
    config = joining(tmp_path, cluster, ranks=4, args=["--steps", 5000], ray={"scratch_dir": str(scratch)})
    run = start(tmp_path, config)
    run.wait_for(lambda: "first step" in run.text)
    time.sleep(3)
    second = cluster.worker_nodes.copy().pop()
    lost = [rank for rank, facts in enumerate(run.facts["ranks"]) if facts["node_id"] == second.node_id]
    assert len(lost) == 2
    began = time.time()
    cluster.remove_node(second, allow_graceful=False)

    assert run.wait() == 13
    exit_code, status, reason = run.verdict()
    assert (exit_code, status, run.facts["culprits"]) == (13, "lost", lost)
    assert reason.startswith("node ") and f"({second.node_id[:8]})" in reason
    assert reason.endswith(f"lost, with ranks {lost[0]} and {lost[1]}")
    assert run.at("error: node") - began < 25
    assert "Traceback" not in run.text
    # The other node's rows came through Ray; what is missing is listed, and where it would be.
    left = [rank for rank in range(4) if rank not in lost]
    assert {rank: rows > 0 for rank, rows in rows_of(run, "spans").items()} == dict.fromkeys(left, True)
    assert any(second.node_id[:8] in line for line in run.facts["problems"])


def test_6_gpus_are_busy(tmp_path: Path, cluster: Cluster) -> None:
    ray.init(address=cluster.address, log_to_driver=False)
    held = placement_group([{"GPU": 2}] * 2)
    assert held.wait(10)
    code, run = launch(tmp_path, joining(tmp_path, cluster, ranks=4, timeouts={"start_s": 12.0}))

    reason = "waited 12 s for 4 GPUs, 0 free: others hold them"
    assert (code, *run.verdict()) == (21, 21, "never_started", reason)
    assert "test waits for 4 GPUs, 0 free (10 of 12 s)" in run.text
    states = {key: group["state"] for key, group in placement_group_table().items()}
    assert states.pop(held.id.hex()) == "CREATED"
    assert set(states.values()) <= {"REMOVED"}


def test_11_joined_cluster_keeps_what_is_not_ours(tmp_path: Path, cluster: Cluster) -> None:
    ray.init(address=cluster.address, log_to_driver=False, namespace="stranger")

    @ray.remote(num_cpus=1)
    class Stranger:
        def answer(self) -> int:
            return os.getpid()

    stranger, held = Stranger.remote(), placement_group([{"CPU": 1}])
    assert held.wait(20)
    pid = ray.get(stranger.answer.remote(), timeout=20)
    environ = {"NCCL_DEBUG": "VERSION", "HF_TOKEN": "hidden", "STRANGE": "1"}
    code, run = launch(tmp_path, joining(tmp_path, cluster, ranks=4, args=["--steps", 5]), **environ)

    assert (code, *run.verdict()) == (0, 0, "ok", "")
    seen = run.environments()
    assert [(one.get("NCCL_DEBUG"), one.get("HF_TOKEN"), one.get("STRANGE")) for one in seen] == [
        ("VERSION", "hidden", None)
    ] * 4
    assert "hidden" not in (run.run_dir / "run.json").read_text()
    # Contiguous on each node, in the order of its GPUs, under the list of the node.
    places = [(facts["node_id"], facts["gpu_index"]) for facts in run.facts["ranks"]]
    assert places == sorted(places, key=lambda place: (place[0], place[1]))
    assert [(one["LOCAL_RANK"], one["GROUP_RANK"], one["CUDA_VISIBLE_DEVICES"]) for one in seen] == [
        ("0", "0", "0,1"),
        ("1", "0", "0,1"),
        ("0", "1", "0,1"),
        ("1", "1", "0,1"),
    ]
    assert ray.get(stranger.answer.remote(), timeout=20) == pid
    states = {key: group["state"] for key, group in placement_group_table().items()}
    assert states.pop(held.id.hex()) == "CREATED"
    assert set(states.values()) <= {"REMOVED"}


def test_11_foreign_address_is_not_looked_at(tmp_path: Path) -> None:
    code, run = launch(tmp_path, config_of(tmp_path, args=["--steps", 2]), RAY_ADDRESS="192.0.2.1:6379")

    assert (code, *run.verdict()) == (0, 0, "ok", "")


def test_11_address_at_which_nobody_listens(tmp_path: Path) -> None:
    ray_section = {"address": "127.0.0.1:1", "num_gpus": None, "gpus_per_rank": 1}
    code, run = launch(tmp_path, config_of(tmp_path, ray=ray_section))

    exit_code, status, reason = run.verdict()
    assert (code, exit_code, status) == (22, 22, "never_started")
    assert reason.startswith("ray.address 127.0.0.1:1 could not be reached")


def test_10_host_out_of_memory(tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    # Room for the start of all ranks, and not for what the last one then hoards.
    threshold = (memory.total - memory.available + 3 * 2**30) / memory.total
    arguments = ["--steps", 5000, "--fault", "hoard"]
    code, run = launch(
        tmp_path, config_of(tmp_path, args=arguments), RAY_memory_usage_threshold=f"{threshold:.3f}"
    )

    exit_code, status, reason = run.verdict()
    assert (code, exit_code, status) == (14, 14, "host_oom")
    assert " out of host memory: " in reason and " of " in reason
    hoarder = run.rank_pids()[-1]
    assert " in use, most by " in reason
    assert "script_main.py" in reason and f"(pid {hoarder}): " in reason
    assert run.living() == []
    assert run.text.count("runs") == 1  # once: nothing is tried again


def test_11_launcher_leaves_no_process_on_a_joined_cluster(tmp_path: Path, cluster: Cluster) -> None:
    run: Launch = start(tmp_path, joining(tmp_path, cluster, ranks=4, args=["--steps", 5000]))
    run.wait_for(lambda: len(run.rank_pids()) == 4 and "first step" in run.text)
    os.kill(run.process.pid, signal.SIGTERM)

    assert run.wait() == 143
    assert run.living() == []
