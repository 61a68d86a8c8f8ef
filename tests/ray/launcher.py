"""The launcher as a user runs it, on GPUs that only Ray believes in: what it said and when, and what it left."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
HARD_LIMIT_S = 180.0
"""After which a launcher is killed with everything it started: a test hangs no longer than this."""

DISK_MIB = 400
"""Of a disk that a test fills: more than preflight asks for the ranks."""

RANKS = 2
"""Of a run where a test does not say: one that fails, and one that waits for it; each costs seconds of two cores."""


@dataclass
class Launch:
    """A launcher that runs, or has run."""

    process: subprocess.Popen[str]
    output_dir: Path
    name: str
    marker: Path
    lines: list[tuple[float, str]] = field(default_factory=list)
    """What it wrote to stderr, with the time at which each line came."""
    ended_at: float = 0.0

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.time(), line.rstrip("\n")))

    def wait(self, limit_s: float = HARD_LIMIT_S) -> int:
        """The exit code; everything is killed and the test fails where there is none within `limit_s`."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the launcher did not end within {limit_s:g} s:\n{self.text}") from None
        self.ended_at = time.time()
        self._reader.join(5)
        return code

    def kill(self) -> None:
        """The launcher and what it started, nobody else's."""
        for pid in self.rank_pids():
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    @property
    def run_dir(self) -> Path:
        return (self.output_dir / self.name / "latest").resolve()

    @property
    def facts(self) -> dict[str, Any]:
        """run.json."""
        return dict(json.loads((self.run_dir / "run.json").read_text()))

    def rank_pids(self) -> list[int]:
        return [int(path.read_text()) for path in sorted(self.marker.glob("rank*.pid"))]

    def environments(self) -> list[dict[str, str]]:
        """Of the ranks, in order, as the script found them."""
        return [json.loads(path.read_text()) for path in sorted(self.marker.glob("rank*.json"))]

    def living(self) -> list[int]:
        return [pid for pid in self.rank_pids() if is_alive(pid)]

    def at(self, word: str) -> float:
        """When the first line with `word` in it came."""
        return next(when for when, line in self.lines if word in line)

    def struck_at(self) -> float:
        """When the fault struck, by the clock of the rank."""
        return float((self.marker / "struck").read_text())

    def verdict(self) -> tuple[int, str, str]:
        """Exit code, status and reason in run.json."""
        facts = self.facts
        return facts["exit_code"], facts["status"], facts["reason"]

    def errors(self) -> list[str]:
        """The lines a person reads first: verdicts, hints and tracebacks."""
        return [
            line for _, line in self.lines if line.startswith(("error:", "hint:", "Traceback", "warning:"))
        ]

    def wait_for(self, condition: Any, limit_s: float = HARD_LIMIT_S) -> None:
        """Until `condition()` holds; the launcher is killed and the test fails otherwise."""
        until = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > until or self.process.poll() is not None:
                self.kill()
                raise AssertionError(f"what the test waits for did not come:\n{self.text}")
            time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until_gone(pids: Sequence[int], limit_s: float) -> float:
    """Seconds until no process of `pids` is left; the limit at most."""
    began = time.monotonic()
    while any(map(is_alive, pids)) and time.monotonic() - began < limit_s:
        time.sleep(0.02)
    return time.monotonic() - began


def config_of(
    tmp_path: Path,
    *,
    script: str = "loop.py",
    args: Sequence[object] = (),
    name: str = "test",
    **changes: Any,
) -> dict[str, Any]:
    """Ranks of a script under gloo; `changes` replace keys, one level deep."""
    marker = tmp_path / name / "marker"
    marker.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "name": name,
        "workload": "script",
        "ranks": RANKS,
        "script": {"path": str(SCRIPTS / script), "args": [*map(str, args), "--marker", str(marker)]},
        "model_config": {"device": "cpu"},
        "logging": {"output_dir": str(tmp_path / "logs"), "sample_interval_s": 1.0},
        "ray": {"num_gpus": 4, "timeouts": {"init_s": 60.0, "stall_s": 60.0}},
    }
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, Mapping) and key in config else value
    return config


NODE = {"num_cpus": 4, "num_gpus": 2}


@contextmanager
def one_node() -> Iterator["Cluster"]:
    """A Ray cluster of one raylet with four GPUs; this process does not join it."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 4, "num_gpus": 4, "include_dashboard": False, "object_store_memory": 512 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def two_nodes() -> Iterator["Cluster"]:
    """A Ray cluster of two raylets with two GPUs each; this process is on the first node."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    try:
        yield cluster
    finally:
        if ray.is_initialized():
            ray.shutdown()
        cluster.shutdown()


def joining(
    tmp_path: Path, cluster: "Cluster", *, timeouts: Mapping[str, float] | None = None, **changes: Any
) -> dict[str, Any]:
    """config_of(), on a cluster that runs already, with a GPU for each rank."""
    limits = {"init_s": 60.0, "stall_s": 60.0, **(timeouts or {})}
    ray_section = {"address": cluster.address, "num_gpus": None, "gpus_per_rank": 1, "timeouts": limits}
    return config_of(tmp_path, **{"ray": ray_section | changes.pop("ray", {}), **changes})


def start(
    tmp_path: Path, config: Mapping[str, Any], *flags: str, on_disk: Path | None = None, **environ: str
) -> Launch:
    """Start the launcher on `config`, in a process group of its own; `on_disk` is a small disk that only it sees."""
    path = tmp_path / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(dict(config)))
    command = [sys.executable, "-m", "ray_memprof.launch", str(path), "--plain", *flags]
    if on_disk is not None:
        mount = f'mount -t tmpfs -o size={DISK_MIB}m none "$0" && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", mount, str(on_disk), *command]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Launch(
        process, Path(config["logging"]["output_dir"]), config["name"], tmp_path / config["name"] / "marker"
    )


def launch(tmp_path: Path, config: Mapping[str, Any], *flags: str, **environ: str) -> tuple[int, Launch]:
    """Run the launcher to its end."""
    run = start(tmp_path, config, *flags, **environ)
    return run.wait(), run


def rows_of(run: Launch, table: str) -> dict[int, int]:
    """Readable rows of a table, by rank."""
    import pyarrow.parquet as pq

    found: dict[int, int] = {}
    for part in sorted((run.run_dir / "tables" / table).glob("rank=*/part-*.parquet")):
        rank = int(part.parent.name.removeprefix("rank="))
        found[rank] = found.get(rank, 0) + pq.read_metadata(part).num_rows
    return found
