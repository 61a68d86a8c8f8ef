"""The driver's side of the ranks' folders and processes, without Ray: nodes answer what the test says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver import cluster as cluster_module
from ray_memprof.driver import node_tasks
from ray_memprof.driver.cluster import Cluster
from ray_memprof.driver.interrupts import Interrupted, Interrupts
from ray_memprof.driver.live import Live
from ray_memprof.driver.run_state import RunState
from ray_memprof.errors import StartFailed
from ray_memprof.rank.messages import Prepared, RankFacts
from ray_memprof.recorder.clock import Clock, kernel
from ray_memprof.supervision.verdict import Verdict

NODES = ("a", "a", "b", "b")
SCRATCH = Path("/scratch/x")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Ranks 0 and 1 on node a, which shares the run folder, 2 and 3 on node b, which does not."""
    config = RunConfig(name="test", ranks=4, logging={"output_dir": tmp_path})
    live = Live(config, 4, plain=True)
    state = RunState.begin(config)
    made = Cluster(state, live, Interrupts(live.say))
    made.facts = [
        RankFacts(node_id=node, host=f"host-{node}", node_ip="1", pid=100 + rank, gpu_index=rank)
        for rank, node in enumerate(NODES)
    ]
    made.nodes = [one.host for one in made.facts]
    made.prepared = [
        Prepared(
            run_dir=state.folder.path if node == "a" else SCRATCH,
            shared=node == "a",
            environment={},
            versions={},
            checks={},
        )
        for node in NODES
    ]
    return made


class Removals:
    """In place of node_tasks.remove."""

    def __init__(self, reason: str = "") -> None:
        self.asked: list[tuple[str, Path, list[int]]] = []
        self._reason = reason

    def __call__(self, node_id: str, folder: Path, ranks: Sequence[int], *, limit_s: float) -> str:
        self.asked.append((node_id, folder, list(ranks)))
        return self._reason


def test_nothing_is_removed_where_nothing_came_from_elsewhere(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_tasks, "remove", removals := Removals())
    assert (cluster.clear(frozenset()), removals.asked) == ([], [])


@pytest.mark.parametrize(
    ("reason", "problems"),
    [
        ("", []),
        (
            "[Errno 13] Permission denied",
            ["ranks 2 and 3: collected, and still in host-b:/scratch/x: [Errno 13] Permission denied"],
        ),
    ],
)
def test_what_came_is_removed_where_it_came_from(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, reason: str, problems: list[str]
) -> None:
    monkeypatch.setattr(node_tasks, "remove", removals := Removals(reason))
    assert cluster.clear(frozenset({2, 3})) == problems
    assert removals.asked == [("b", SCRATCH, [2, 3])]


def test_a_process_that_outlives_everything_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[int]]] = []

    def end_processes(pids: Sequence[int], node_id: str, *, wait_s: float) -> list[int]:
        asked.append((node_id, list(pids)))
        return [103] if node_id == "b" else []

    monkeypatch.setattr(node_tasks, "end_processes", end_processes)
    problem = "rank 3: process 103 on host-b does not end, not even by SIGKILL; its GPU memory stays in use"
    assert cluster.end(Verdict(status="ok")) == [problem]
    assert asked == [("a", [100, 101]), ("b", [102, 103])]


def test_nobody_asks_a_node_that_is_lost(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        node_tasks, "end_processes", lambda pids, node_id, *, wait_s: asked.append(node_id) or []
    )
    verdict = Verdict(status="lost", ranks=(2, 3))
    assert cluster.end(verdict) == []
    assert asked == ["a"]
    remotes = cluster.remotes(verdict)
    assert [(one.where, one.ranks) for one in remotes] == [("host-b:/scratch/x", (2, 3))]
    with pytest.raises(Exception, match="the node is lost"):
        next(iter(remotes[0].chunks))


def test_a_host_with_several_nodes_is_named_with_its_node(cluster: Cluster) -> None:
    cluster.nodes[2:] = 2 * ["host-b (0123)"]
    verdict = Verdict(status="lost", ranks=(2, 3))
    assert [one.where for one in cluster.remotes(verdict)] == ["host-b (0123):/scratch/x"]
    assert [one.facts() for one in cluster.elsewhere()] == [
        {"host": "host-b", "node_ip": "1", "folder": "/scratch/x", "ranks": (2, 3)}
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            # What Ray raises where a raylet does not come up within 30 s: a class of no name.
            Exception(
                "The current node timed out during startup. This could happen because\nthe raylet failed."
            ),
            "The current node timed out during startup. This could happen because the raylet failed.",
        ),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (
            FileNotFoundError(2, "No such file or directory", "raylet"),
            "[Errno 2] No such file or directory: 'raylet'",
        ),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_ray_that_does_not_start_is_told_in_a_line(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, reason: str
) -> None:
    def init(**options: Any) -> None:
        logs = Path(options["_temp_dir"], "session_latest", "logs")
        logs.mkdir(parents=True)
        (logs / "raylet.err").write_text("bind: Address already in use\n")
        raise error

    monkeypatch.setattr(cluster_module.ray, "init", init)
    monkeypatch.setattr(cluster_module.own_ray, "stay_on_loopback", lambda is_own: None)
    monkeypatch.setattr(cluster_module.own_ray, "temp_dir", lambda: str(tmp_path / "ray"))
    with pytest.raises(StartFailed) as raised:
        cluster._connect()
    assert raised.value.exit_code == 22
    assert str(raised.value) == f"a Ray of our own could not be started: {reason}"
    logs = tmp_path / "ray" / "session_latest" / "logs"
    assert raised.value.hint == f"Ray said: bind: Address already in use; its logs are in {logs}"


def test_sigterm_while_ray_starts_is_an_interruption(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN the handler that Ray has set by then, which ends the process with 1."""

    def init(**options: Any) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(cluster_module.ray, "init", init)
    monkeypatch.setattr(cluster_module.own_ray, "stay_on_loopback", lambda is_own: None)
    with pytest.raises(Interrupted) as raised:
        cluster._connect()
    assert raised.value.number == 15


# --------------------------------------------------------------------------------
# Clocks


class Clocked:
    """An actor whose host's clock is ahead by so much."""

    def __init__(self, ahead_ns: int) -> None:
        self.num_asked = 0
        self._ahead_ns = ahead_ns
        self.now_ns = SimpleNamespace(remote=self._answer)

    def _answer(self) -> int:
        self.num_asked += 1
        return Clock().now_ns() + self._ahead_ns


@pytest.fixture
def clocked(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> list[Clocked]:
    """Hosts of ranks 0 to 3: our own, another, the same other one, a third."""
    monkeypatch.setattr(cluster_module.ray, "get", lambda answer, timeout: answer)
    kernels = (kernel(), "other", "other", "third")
    cluster.facts = [
        replace(one, kernel=name, node_id=f"n{rank}")
        for rank, (one, name) in enumerate(zip(cluster.facts, kernels, strict=True))
    ]
    cluster._actors = actors = [Clocked(ahead) for ahead in (9 * 10**9, 3 * 10**9, 5 * 10**9, -(10**9))]
    return actors


def test_each_other_host_is_asked_for_its_time_and_our_own_is_ours(
    cluster: Cluster, clocked: list[Clocked], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(cluster._live, "say", said.append)
    offsets = cluster._clock_offsets()
    assert offsets[0] == 0, "one kernel, one clock: exactly"
    assert offsets[1] == offsets[2], "one host is asked once"
    assert abs(offsets[1] - 3 * 10**9) < 10**7
    assert abs(offsets[3] + 10**9) < 10**7
    assert [actor.num_asked for actor in clocked] == [
        0,
        cluster_module._CLOCK_TRIPS,
        0,
        cluster_module._CLOCK_TRIPS,
    ]
    assert ["host-a is +3.000 s" in said[0], "host-b is -1.000 s" in said[1], len(said)] == [True, True, 2]


def test_hosts_without_a_known_kernel_are_told_apart_by_their_node(
    cluster: Cluster, clocked: list[Clocked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "kernel", lambda: "")
    context = SimpleNamespace(get_node_id=lambda: "n0")
    monkeypatch.setattr(cluster_module.ray, "get_runtime_context", lambda: context)
    cluster.facts = [replace(one, kernel="") for one in cluster.facts]
    offsets = cluster._clock_offsets()
    assert offsets[0] == 0
    assert [actor.num_asked for actor in clocked] == [0, *[cluster_module._CLOCK_TRIPS] * 3]
