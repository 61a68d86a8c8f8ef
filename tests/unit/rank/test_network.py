"""Interfaces of a host, and connections between hosts that fail."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_memprof.config.load import from_mapping
from ray_memprof.rank.messages import Outcome, RankFacts
from ray_memprof.rank.network import explained, interface_of, socket_variables
from ray_memprof.rank.plan import RankPlan

REFUSED = (
    "RuntimeError: Gloo connectFullMesh failed with connect: Connection refused, remote=[127.0.1.1]:40001"
)


def plan(num_nodes: int, device: str = "cpu") -> RankPlan:
    return RankPlan(
        run_id="run",
        config=from_mapping(
            {"name": "x", "model_config": {"task": "t2v-tiny", "device": device}}, source="test"
        ),
        rank=1,
        world_size=2,
        local_rank=0,
        local_world_size=1,
        node=1,
        num_nodes=num_nodes,
        visible_devices=(),
        facts=RankFacts(node_id="n", host="host2", node_ip="10.9.0.2", pid=7, gpu_index=-1),
        run_dir=Path("/run"),
        master_addr="10.9.0.1",
        master_port=4321,
    )


def at(*addresses: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(address=address) for address in addresses]


def test_a_host_without_interfaces_has_none() -> None:
    assert interface_of("10.9.0.2", {}) == ""


def test_the_interface_is_the_one_that_has_the_address() -> None:
    interfaces = {
        "lo": at("127.0.0.1", "::1"),
        "eth1": at("10.9.0.21", "fe80::1%eth1"),
        "eth0": at("10.9.0.2", "00:11:22:33:44:55"),
    }
    assert interface_of("10.9.0.2", interfaces) == "eth0"
    assert interface_of("127.0.0.1", interfaces) == "lo"
    assert interface_of("fe80::1", interfaces) == "eth1"
    assert interface_of("10.9.0.3", interfaces) == ""


def test_this_host_has_loopback() -> None:
    assert interface_of("127.0.0.1") == "lo"


def test_gloo_takes_a_name_and_nccl_the_whole_name() -> None:
    assert socket_variables("") == {}
    assert socket_variables("eth1") == {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "=eth1"}


def test_a_connection_that_fails_is_told_with_both_its_ends() -> None:
    failed = Outcome(rank=1, status="failed", exit_code=16, reason=REFUSED)
    found = explained(failed, plan(2), {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "=ib0"})
    ends = "(this rank: host2 at 10.9.0.2, GLOO_SOCKET_IFNAME=eth0; rank 0: 10.9.0.1:4321)"
    assert found.reason == f"{REFUSED} {ends}"
    assert "set GLOO_SOCKET_IFNAME on each host" in found.hint
    found = explained(failed, plan(2, "cuda"), {})
    assert "NCCL_SOCKET_IFNAME=(not set)" in found.reason


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(rank=1, status="ok"),
        Outcome(rank=1, status="oom", reason="device out of memory"),
        Outcome(rank=1, status="failed", reason="ValueError: connect the dots"),
        Outcome(rank=1, status="failed", reason="RuntimeError: shape mismatch"),
    ],
)
def test_other_ends_are_left_as_they_are(outcome: Outcome) -> None:
    assert explained(outcome, plan(2), {}) == outcome


def test_inside_one_host_no_interface_is_at_fault() -> None:
    failed = Outcome(rank=1, status="failed", reason=REFUSED)
    assert explained(failed, plan(1), {}) == failed
