"""Two hosts on one machine: network namespaces with an address, a host name, a /tmp and a run folder of their own.

    with two_hosts() as hosts:
        hosts.start_ray()
        done = hosts.run(1, [sys.executable, "-m", "ray_memprof.launch", ...])
        hosts.cut(2)

Each calls itself 127.0.1.1 in /etc/hosts, as Debian does. Needs root, `ip` and `unshare`: why_not().
What both see lies in `shared`: the checkout, configurations, markers. Of `logs`, where runs are kept, each has its own.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from launcher import ROOT

NET = "10.99.0"
PORT = 6379
ADDRESS = f"{NET}.1:{PORT}"
_HEALTH = [
    f"RAY_health_check_{name}" for name in ("period_ms=1000", "timeout_ms=3000", "failure_threshold=4")
]
"""A host that does not answer is lost after a quarter of a minute; Ray's own defaults take a whole one."""
_RAY = "from ray.scripts.scripts import main; main()"
_START_S = 90.0
# $1 number of the host, $2 folder of both; then the command.
_ENTER = """
set -e
number=$1 state=$2; shift 2
hostname "host$number"
mount --make-rprivate /
mount --bind "$state/hosts$number" /etc/hosts
mount --bind "$state/logs$number" "$state/logs"
mount --bind "$state/root" "$state/checkout" 2>/dev/null || true
mount --bind "$state/tmp$number" /tmp
cd "$state/checkout"
export HOME=/tmp PYTHONPATH="$state/checkout"
exec "$@"
"""


def why_not() -> str:
    """What is missing for two hosts; "" where nothing is."""
    if os.geteuid() != 0:
        return "two hosts on one machine need root"
    for tool in ("ip", "unshare", "mount"):
        if shutil.which(tool) is None:
            return f"two hosts on one machine need {tool}, which is not installed"
    name = f"try{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"ip netns add: {tried.stderr.strip()}" if tried.returncode else ""


class Hosts:
    """Two hosts, numbered 1 and 2, at NET.1 and NET.2; `folder` is seen by both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.logs = folder, folder / "logs"
        self._names = {number: f"rmp{os.getpid()}-{number}" for number in (1, 2)}
        self._processes: list[subprocess.Popen[str]] = []
        for name in ("logs", "logs1", "logs2", "tmp1", "tmp2", "checkout", "marker"):
            (folder / name).mkdir()
        os.symlink(ROOT, folder / "root")
        for number in self._names:
            text = f"127.0.0.1 localhost\n127.0.1.1 host{number}\n"
            (folder / f"hosts{number}").write_text(text)
        self._connect()

    def _connect(self) -> None:
        pair = {number: f"v{os.getpid()}n{number}"[:15] for number in self._names}
        for name in self._names.values():
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", pair[1], "type", "veth", "peer", "name", pair[2])
        for number, name in self._names.items():
            _ip("link", "set", pair[number], "netns", name)
            _ip("-n", name, "link", "set", pair[number], "name", "eth0")
            _ip("-n", name, "addr", "add", f"{NET}.{number}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def start(self, number: int, command: Sequence[object], **environ: str) -> subprocess.Popen[str]:
        """Start `command` on a host, in the checkout as that host sees it; it is ended with the hosts."""
        python = sys.executable
        if Path(python).is_relative_to(ROOT):
            python = str(self.folder / "checkout" / Path(python).relative_to(ROOT))
        words = [python if word == sys.executable else str(word) for word in command]
        enter = ["ip", "netns", "exec", self._names[number], "unshare", "-m", "-u", "bash", "-c", _ENTER]
        process = subprocess.Popen(
            [*enter, "bash", str(number), str(self.folder), *words],
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def run(self, number: int, command: Sequence[object], limit_s: float, **environ: str) -> tuple[int, str]:
        """Exit code and output of `command` on a host."""
        process = self.start(number, command, **environ)
        try:
            text, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            raise AssertionError(f"{command} did not end within {limit_s:g} s:\n{text}") from None
        return process.returncode, text

    def start_ray(self, number: int) -> None:
        """A Ray head on host 1, or a worker of it on host 2."""
        place = ["--node-ip-address", f"{NET}.{number}", "--num-cpus", "3", "--disable-usage-stats"]
        head = ["--head", "--port", str(PORT), "--include-dashboard", "false"]
        kind = head if number == 1 else ["--address", ADDRESS]
        log = self.folder / f"ray{number}.log"
        ray = [sys.executable, "-c", _RAY, "start", *kind, *place, "--block"]
        self.start(number, ["env", *_HEALTH, "bash", "-c", 'exec "$@" >"$0" 2>&1', log, *ray])
        self._wait_for_nodes(number, log)

    def _wait_for_nodes(self, num_nodes: int, log: Path) -> None:
        look = (
            "import ray, sys\n"
            f"ray.init('{ADDRESS}', log_to_driver=False, logging_level=40)\n"
            f"sys.exit(sum(node['Alive'] for node in ray.nodes()) != {num_nodes})"
        )
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            with suppress(AssertionError):
                if self.run(1, [sys.executable, "-c", look], 40.0)[0] == 0:
                    return
            time.sleep(0.5)
        raise AssertionError(f"{num_nodes} nodes did not come up:\n{log.read_text()[-2000:]}")

    def config(self, **changes: Any) -> Path:
        """A file for two gloo ranks of a script, one a host, that join this Ray."""
        script = self.folder / "checkout" / "tests" / "ray" / "scripts" / "loop.py"
        marker = self.folder / "marker"
        config: dict[str, Any] = {
            "name": "hosts",
            "workload": "script",
            "ranks": 2,
            "script": {"path": str(script), "args": ["--steps", "40", "--marker", str(marker)]},
            "model_config": {"device": "cpu"},
            "logging": {"output_dir": str(self.logs), "sample_interval_s": 1.0},
            "ray": {
                "address": ADDRESS,
                "placement": "spread",
                "timeouts": {"init_s": 60.0, "stall_s": 60.0},
            },
        }
        for key, value in changes.items():
            config[key] = {**config[key], **value} if isinstance(value, dict) else value
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def launch(self, *flags: str, **changes: Any) -> list[object]:
        """The command that runs config()."""
        return [
            sys.executable,
            "-m",
            "ray_memprof.launch",
            self.config(**changes),
            "--plain",
            *flags,
        ]

    def run_dir(self, number: int = 1) -> Path:
        """The newest run folder of a host."""
        runs = sorted(path for path in (self.folder / f"logs{number}" / "hosts").iterdir() if path.is_dir())
        return next(path for path in reversed(runs) if not path.is_symlink())

    def facts(self) -> dict[str, Any]:
        """run.json of the newest run."""
        return dict(json.loads((self.run_dir() / "run.json").read_text()))

    def cut(self, number: int) -> None:
        """Take a host's link away."""
        _ip("-n", self._names[number], "link", "set", "eth0", "down")

    def mend(self, number: int) -> None:
        """Give it back."""
        _ip("-n", self._names[number], "link", "set", "eth0", "up")

    def end(self, number: int) -> None:
        """End every process of a host."""
        told = subprocess.run(
            ["ip", "netns", "pids", self._names[number]], capture_output=True, text=True, check=False
        )
        for pid in told.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def close(self) -> None:
        """End all that runs there, and remove both."""
        for number, name in self._names.items():
            self.end(number)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        for process in self._processes:
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two hosts without Ray; gone, with all that ran on them, at the end."""
    # Not in /tmp: that is each host's own. And short: Ray puts sockets below the /tmp of a host.
    folder = Path(tempfile.mkdtemp(prefix="two-hosts-", dir="/var/tmp"))
    hosts = None
    try:
        hosts = Hosts(folder)
        yield hosts
    finally:
        if hosts is not None:
            hosts.close()
        shutil.rmtree(folder, ignore_errors=True)
