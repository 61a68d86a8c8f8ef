"""Failure modes 6, 7, 8: the GPUs are not there or busy, ranks cannot find each other, or never get so far."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml
from launcher import ROOT, Launch, config_of, joining, launch, start
from ray.cluster_utils import Cluster

FAULTS = str(Path(__file__).parent / "faults")


def test_6_more_gpus_than_there_are(tmp_path: Path) -> None:
    asked = config_of(tmp_path, workload="wan", parallel={"ulysses": 8}, logging={"level": "stage"})
    del asked["script"], asked["ranks"]
    asked["model_config"] = {"task": "t2v-14B", "weights": "random", "device": "cpu"}
    code, run = launch(tmp_path, asked)

    assert (code, *run.verdict()) == (20, 20, "never_started", "config asks 8 GPUs, cluster has 4")
    assert run.errors() == ["error: config asks 8 GPUs, cluster has 4", "hint: parallel.ulysses: 4"]
    assert run.ended_at - run.at("  ray: ") < 10


def test_7_simultaneous_launches_do_not_meet(tmp_path: Path) -> None:
    """Two at a time; scripts/bench_faults.py does 20 pairs."""

    def one(name: str) -> tuple[int, Launch]:
        return launch(
            tmp_path, config_of(tmp_path, name=name, ranks=2, args=["--steps", 5], ray={"num_gpus": 2})
        )

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(one, ("left", "right")))

    assert [code for code, _ in ends] == [0, 0]
    assert [run.errors() for _, run in ends] == [[], []]
    # Each store on a port of its own, and each rank at that of its own rank 0.
    ports = [{environ["MASTER_PORT"] for environ in run.environments()} for _, run in ends]
    assert [len(one) for one in ports] == [1, 1]
    assert ports[0] != ports[1]


def test_7_silent_listener_on_the_port(tmp_path: Path, shared: Cluster) -> None:
    init_s = 10.0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = ["--fault", "listener", "--silent-port", listener.getsockname()[1]]
        limits = {"init_s": init_s, "stall_s": 600.0}
        code, run = launch(tmp_path, joining(tmp_path, shared, args=arguments, timeouts=limits))

    reason = "all ranks wait and do not find each other: not met within 10 s"
    assert (code, *run.verdict()) == (23, 23, "never_started", reason)
    assert run.living() == []


@pytest.mark.parametrize(
    ("module", "rank", "who"), [("torch", "0", "rank 0"), ("ray_memprof.rank.actor", "", "actor ")]
)
def test_8_import_fails_in_a_rank(tmp_path: Path, module: str, rank: str, who: str) -> None:
    environ = {"PYTHONPATH": FAULTS, "FAULT_IMPORT": module, "FAULT_RANK": rank}
    if not rank:
        del environ["FAULT_RANK"]
    code, run = launch(tmp_path, config_of(tmp_path), **environ)

    exit_code, status, reason = run.verdict()
    assert (code, exit_code, status) == (22, 22, "never_started")
    assert reason.startswith(f"{who}")
    assert reason.endswith(f"ModuleNotFoundError: No module named '{module}'")
    assert run.errors()[1] == (
        "hint: every node needs this package and what it imports, in the Python that its Ray runs with"
    )
    assert run.ended_at - run.at("error: ") < 10
    assert "Traceback" not in run.text


def test_8_a_rank_never_joins(tmp_path: Path, shared: Cluster) -> None:
    limits = {"init_s": 10.0, "stall_s": 600.0}
    code, run = launch(
        tmp_path, joining(tmp_path, shared, ranks=3, args=["--fault", "never"], timeouts=limits)
    )

    reason = "waiting for rank 2: not met within 10 s"
    assert (code, *run.verdict()) == (23, 23, "never_started", reason)
    assert run.facts["culprits"] == [2]
    assert "time.sleep(3600)" in (run.run_dir / "logs" / "rank2.stack.txt").read_text()
    assert run.living() == []


def test_8_a_rank_that_still_gets_ready_is_waited_for(tmp_path: Path, shared: Cluster) -> None:
    """GIVEN a rank that works for longer than init_s before it joins THEN nobody is ended for waiting for it."""
    arguments = ["--fault", "late", "--at-rank", 0]
    code, run = launch(tmp_path, joining(tmp_path, shared, args=arguments, timeouts={"init_s": 10.0}))

    assert (code, *run.verdict()) == (0, 0, "ok", "")


def test_8_bad_config_ends_before_ray_starts(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**config_of(tmp_path), "rank": 4}))
    program = "import atexit, sys; from ray_memprof.launch import app; atexit.register(tell); app()"
    heavy = "def tell(): print([name for name in ('ray', 'torch', 'duckdb') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{heavy}\n{program}", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert "rank" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "logs").exists()


def test_8_rank_that_is_stopped_while_it_starts_is_named(tmp_path: Path, shared: Cluster) -> None:
    """GIVEN ranks that never import torch in time THEN the launcher ends by itself, by ray.timeouts.init_s."""
    limits = {"init_s": 0.05, "stall_s": 600.0}
    run = start(tmp_path, joining(tmp_path, shared, timeouts=limits))

    assert run.wait() == 23
    assert run.facts["status"] == "never_started"
    assert run.facts["reason"].startswith("waiting for ")


def test_8_ray_itself_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, run = launch(tmp_path, config_of(tmp_path), RAY_TMPDIR=str(tmp_path / "file"))

    exit_code, status, reason = run.verdict()
    assert (code, exit_code, status) == (22, 22, "never_started")
    assert reason.startswith("a Ray of our own could not be started: ")
    assert str(tmp_path / "file") in run.errors()[1]
    assert "Traceback" not in run.text


def test_8_a_scratch_folder_that_somebody_else_put_there(tmp_path: Path) -> None:
    """GIVEN a link under the name that everybody can foresee THEN nothing is written where it leads."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    # A short name: sockets of Ray lie below it.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="shared") as shared:
        Path(shared, f"ray_memprof-{os.geteuid()}").symlink_to(theirs)
        code, run = launch(tmp_path, config_of(tmp_path), TMPDIR=shared)

    assert (code, run.verdict()[0]) == (24, 24)
    assert f"ray_memprof-{os.geteuid()} is a link" in run.errors()[0]
    assert list(theirs.iterdir()) == []


def test_nobody_else_can_reach_a_run_on_one_node(tmp_path: Path) -> None:
    """GIVEN a run of two ranks on our own Ray THEN all that it listens on is loopback, and Ray asks for a token."""
    limits = {"num_gpus": 2, "timeouts": {"init_s": 60.0, "stall_s": 60.0}}
    config = config_of(tmp_path, ranks=2, args=["--steps", 10_000], ray=limits)
    # Where the host's name is no loopback address gloo, left alone, would take that one.
    run = start(tmp_path, config)
    run.wait_for(lambda: "runs" in run.text)
    try:
        tree = [psutil.Process(run.process.pid), *psutil.Process(run.process.pid).children(recursive=True)]
        found = {
            (one.laddr.ip.removeprefix("::ffff:"), process.name())
            for process in tree
            for one in process.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        }
        environ = tree[0].children()[0].environ()
    finally:
        run.process.send_signal(signal.SIGINT)
        run.wait()
    assert len(found) > 3
    assert {address for address, _ in found} == {"127.0.0.1"}
    assert environ["RAY_AUTH_MODE"] == "token"
    assert {one["GLOO_SOCKET_IFNAME"] for one in run.environments()} == {"lo"}
