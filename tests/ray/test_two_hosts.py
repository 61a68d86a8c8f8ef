"""Two real hosts, as far as one machine can have them: no common files, no common name, links that can be cut."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest
from hosts import NET, Hosts, two_hosts, why_not

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    with two_hosts() as made:
        made.start_ray(1)
        made.start_ray(2)
        yield made


def num_spans(hosts: Hosts, rank: int) -> int:
    parts = (hosts.run_dir() / "tables" / "spans" / f"rank={rank}").glob("part-*.parquet")
    return sum(pq.read_metadata(part).num_rows for part in parts)


def wait_for(hosts: Hosts, num_ranks: int) -> None:
    """Until that many ranks are in their loop."""
    until = time.monotonic() + 90
    while len(list((hosts.folder / "marker").glob("rank*.pid"))) < num_ranks or not is_looping(hosts):
        assert time.monotonic() < until, "the ranks do not begin"
        time.sleep(0.1)


def is_looping(hosts: Hosts) -> bool:
    log = hosts.run_dir() / "logs" / "rank0.log"
    return log.exists() and "rank 0 of 2 runs" in log.read_text()


@pytest.fixture(autouse=True)
def no_marker(hosts: Hosts) -> None:
    for path in (hosts.folder / "marker").iterdir():
        path.unlink()


def test_a_run_over_both_is_whole(hosts: Hosts) -> None:
    """GIVEN hosts whose own names mean loopback THEN their ranks meet, and the files of both come to the driver."""
    code, text = hosts.run(1, hosts.launch(), 180)

    assert code == 0, text
    facts = hosts.facts()
    assert [(one["host"], one["node_ip"]) for one in facts["ranks"]] == [
        ("host1", f"{NET}.1"),
        ("host2", f"{NET}.2"),
    ]
    assert facts["problems"] == []
    # 40 steps, and what is around them.
    assert num_spans(hosts, 0) == num_spans(hosts, 1) >= 40
    seen = [json.loads((hosts.folder / "marker" / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [(one["GLOO_SOCKET_IFNAME"], one["NCCL_SOCKET_IFNAME"]) for one in seen] == [("eth0", "=eth0")] * 2
    # Nothing of it is left on the other host.
    assert not list((hosts.folder / "tmp2").rglob("part-*.parquet"))


def test_a_connection_that_cannot_be_made_names_its_ends(hosts: Hosts) -> None:
    """GIVEN an interface that reaches nobody else THEN the last line says who could not reach whom, through what."""
    code, text = hosts.run(1, hosts.launch(), 180, GLOO_SOCKET_IFNAME="lo")

    assert code == 16, text
    reason = hosts.facts()["reason"]
    assert "GLOO_SOCKET_IFNAME=lo" in reason
    assert f"{NET}.1:" in reason
    assert "set GLOO_SOCKET_IFNAME on each host" in hosts.facts()["hint"]


def long(hosts: Hosts) -> dict[str, list[str]]:
    return {"args": ["--steps", "5000", "--marker", str(hosts.folder / "marker")]}


def test_a_run_is_watched_from_the_other_host(hosts: Hosts) -> None:
    """GIVEN a run of host1 WHEN host2, which sees none of its files, watches it THEN it is seen to its end."""
    script = {"args": ["--steps", "400", "--marker", str(hosts.folder / "marker")]}
    launcher = hosts.start(1, hosts.launch(script=script))
    wait_for(hosts, 2)
    watch = [sys.executable, "-m", "ray_memprof.cli", "watch", "hosts", "--address", f"{NET}.1:6379"]
    code, seen = hosts.run(2, watch, 180)
    text, _ = launcher.communicate(timeout=60)

    assert (launcher.returncode, code) == (0, 0), text + seen
    lines = seen.splitlines()
    assert any("process memory" in line and "the most of 2" in line for line in lines), seen
    # The last lines are those of the launcher, and where its report is.
    assert "hosts: ok, exit 0" in lines and lines[-1] == "on host1, which is not this host", seen


def test_ctrl_c_keeps_the_records_of_both(hosts: Hosts) -> None:
    launcher = hosts.start(1, hosts.launch(script=long(hosts)))
    wait_for(hosts, 2)
    time.sleep(6)
    os.killpg(launcher.pid, signal.SIGINT)
    text, _ = launcher.communicate(timeout=60)

    assert launcher.returncode == 130, text
    assert min(num_spans(hosts, 0), num_spans(hosts, 1)) > 20
    assert not list((hosts.folder / "tmp2").rglob("part-*.parquet"))


def test_what_a_lost_host_holds_is_taken_in_later(hosts: Hosts) -> None:
    """GIVEN a link that is cut THEN the run names the host, and `finish` brings its records once it is back."""
    launcher = hosts.start(1, hosts.launch(script=long(hosts)))
    wait_for(hosts, 2)
    time.sleep(6)
    hosts.cut(2)
    text, _ = launcher.communicate(timeout=120)

    assert launcher.returncode == 13, text
    facts = hosts.facts()
    assert (facts["status"], facts["culprits"]) == ("lost", [1])
    assert "node host2 lost, with rank 1" in facts["reason"]
    assert [(one["host"], one["ranks"]) for one in facts["elsewhere"]] == [("host2", [1])]
    assert num_spans(hosts, 0) > 20 and num_spans(hosts, 1) == 0

    hosts.end(2)  # what ran there had no way to end
    hosts.mend(2)
    hosts.start_ray(2)
    finish = [sys.executable, "-m", "ray_memprof.cli", "finish", hosts.logs / "hosts" / hosts.run_dir().name]
    code, text = hosts.run(1, finish, 120)
    assert code == 0, text
    assert num_spans(hosts, 1) > 20
    assert "rank 1: peak" in text or "ranks 0 and 1: peak" in text
    facts = hosts.facts()
    assert (facts["status"], facts["elsewhere"]) == ("lost", [])
    assert not [line for line in facts["problems"] if "not all came" in line or "recorded nothing" in line]
    assert not list((hosts.folder / "tmp2").rglob("part-*.parquet"))
