"""Inject faults into runs of four ranks under gloo, many times, and count how often the result was right.

    python scripts/bench_faults.py                           # 20 of each kind: about an hour on two cores
    python scripts/bench_faults.py --times 3 --kinds sigkill oom
    python scripts/bench_faults.py --times 3 --kinds sigkill oom sleep gil sigstop --gpus      # all GPUs, under NCCL

Kinds: sigkill, segv, exit (mode 1), oom (2), sleep (3), gil, sigstop (4), writing (12: a rank killed while it writes),
node (5: one of two raylets, with two ranks), pairs (7: two launches at once). A fault is well handled when the verdict
names its rank, with the right exit code, no process remains, and every row that was sealed or flushed more than FLUSH_S
before the fault can be read. With --gpus each rank holds 8 GiB, and the last columns are the seconds until every GPU is
as empty as it was. Leaves nothing.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "ray"))

from launcher import Launch, config_of, joining, launch, rows_of, start, two_nodes

FLUSH_S, STEP_S = 2.0, 0.02
"""How long the recorder may keep rows before it flushes them; how long a step of the script takes at least."""
STALL_S = 3.0
SLACK_BYTES, FREED_WITHIN_S = 64 * 2**20, 60.0
EXIT_CODES = {
    "sigkill": 10,
    "segv": 10,
    "exit": 10,
    "oom": 11,
    "sleep": 12,
    "gil": 12,
    "sigstop": 12,
    "writing": 10,
}
NODE_LOST = 13
KINDS = (*EXIT_CODES, "node", "pairs")


@dataclass(frozen=True, slots=True)
class Shot:
    """One fault and its result."""

    is_named: bool
    """Exit code and culprit are right."""
    is_clean: bool
    """No process of a rank remained."""
    has_rows: bool
    """Nothing sealed was lost."""
    latency_s: float
    """From the fault to the verdict."""
    freed_s: float = float("nan")
    """From the fault until the GPUs are as empty as before."""


class Gpus:
    """The GPUs of this host, as nvidia-smi shows them."""

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        self.count = len(self._handles)
        self._before = self._used()

    def _used(self) -> list[int]:
        return [self._nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in self._handles]

    def freed_at(self, limit_s: float) -> float:
        """When each GPU has at most SLACK_BYTES more in use than at first; infinite past the limit."""
        until = time.time() + limit_s
        while time.time() < until:
            if all(
                now - before <= SLACK_BYTES for now, before in zip(self._used(), self._before, strict=True)
            ):
                return time.time()
            time.sleep(0.01)
        return float("inf")


def shoot(folder: Path, kind: str, chance: random.Random, gpus: Gpus | None = None) -> Shot:
    """Inject one fault, at a rank and a step that `chance` chooses."""
    num_ranks = 4 if gpus is None else gpus.count
    rank, step = chance.randrange(num_ranks), chance.randrange(5, 200)
    if kind == "writing":
        step = chance.randrange(100, 600)
    fault = "sigkill" if kind == "writing" else kind
    arguments = ["--steps", 5000, "--fault", fault, "--at-rank", rank, "--at-step", step]
    limits = {"num_gpus": 4, "timeouts": {"init_s": 60.0, "stall_s": STALL_S}}
    changes: dict[str, Any] = {"ray": limits}
    if gpus is not None:
        arguments += ["--device", "cuda"]
        changes = {"model_config": {"device": "cuda"}, "ray": limits | {"num_gpus": None}}
    started = start(folder, config_of(folder, name=kind, ranks=num_ranks, args=arguments, **changes))
    freed_at = float("nan")
    if gpus is not None:
        started.wait_for((started.marker / "struck").exists)
        freed_at = gpus.freed_at(FREED_WITHIN_S)
    code, run = started.wait(), started
    facts = run.facts
    if facts["culprits"] != [rank]:
        print(f"{kind} at rank {rank}, step {step}: {facts['reason']}", file=sys.stderr, flush=True)
    rows = rows_of(run, "spans")
    least = step - FLUSH_S / STEP_S
    return Shot(
        is_named=(code, facts["exit_code"], facts["culprits"])
        == (EXIT_CODES[kind], EXIT_CODES[kind], [rank]),
        is_clean=not run.living(),
        has_rows=all(rows.get(one, 0) >= least for one in range(num_ranks)) and not leftovers(run),
        latency_s=run.at("error: ") - run.struck_at(),
        freed_s=freed_at - run.struck_at(),
    )


def lose_node(folder: Path, chance: random.Random) -> Shot:
    """End a raylet and its agents by force; its ranks go with it."""
    with two_nodes() as cluster:
        config = joining(
            folder, cluster, args=["--steps", 5000], ray={"scratch_dir": str(folder / "scratch")}
        )
        run = start(folder, config)
        run.wait_for(lambda: "first step" in run.text)
        time.sleep(FLUSH_S + chance.uniform(1, 3))
        node = next(iter(cluster.worker_nodes))
        lost = [rank for rank, facts in enumerate(run.facts["ranks"]) if facts["node_id"] == node.node_id]
        struck = time.time()
        cluster.remove_node(node, allow_graceful=False)
        code = run.wait()
        facts, rows = run.facts, rows_of(run, "spans")
        return Shot(
            is_named=(code, facts["exit_code"], facts["culprits"]) == (NODE_LOST, NODE_LOST, lost),
            is_clean=not run.living(),
            has_rows=set(rows) == set(range(4)) - set(lost) and not leftovers(run),
            latency_s=run.at("error: ") - struck,
        )


def leftovers(run: Launch) -> list[Path]:
    """Files that collecting should have turned into parts, or set aside as damaged."""
    return [path for path in run.run_dir.rglob("*") if path.suffix in (".arrows", ".tmp", ".damaged")]


def pair(folder: Path) -> Shot:
    """Two launches at the same time: each must end well, and its ranks must have a store of their own."""

    def one(name: str) -> Launch:
        asked = config_of(folder, name=name, ranks=2, args=["--steps", 5], ray={"num_gpus": 2})
        return launch(folder, asked)[1]

    began = time.time()
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(one, ("left", "right")))
    ports = [{environ["MASTER_PORT"] for environ in run.environments()} for run in both]
    return Shot(
        is_named=all(run.facts["status"] == "ok" for run in both),
        is_clean=not any(run.living() for run in both),
        has_rows=len(set.union(*ports)) == 2 and all(set(rows_of(run, "spans")) == {0, 1} for run in both),
        latency_s=time.time() - began,
    )


def shot_of(kind: str, folder: Path, chance: random.Random, gpus: Gpus | None) -> Shot:
    """One fault of that kind."""
    if kind == "pairs":
        return pair(folder)
    return lose_node(folder, chance) if kind == "node" else shoot(folder, kind, chance, gpus)


def row(kind: str, shots: list[Shot]) -> str:
    """A line of the table."""

    def share(is_good: Callable[[Shot], bool]) -> str:
        return f"{sum(map(is_good, shots))}/{len(shots)}"

    latencies, freed = [shot.latency_s for shot in shots], [shot.freed_s for shot in shots]
    freeing = "- | -" if isnan(freed[0]) else f"{median(freed):.2f} | {max(freed):.2f}"
    return (
        f"| {kind} | {share(lambda shot: shot.is_named)} | {share(lambda shot: shot.is_clean)} "
        f"| {share(lambda shot: shot.has_rows)} | {median(latencies):.2f} | {max(latencies):.2f} "
        f"| {freeing} |"
    )


def main() -> int:
    """Print a Markdown table; returns 1 if any result was not right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0, help="decides ranks and steps")
    parser.add_argument("--gpus", action="store_true", help="a rank on every GPU of this host, under NCCL")
    options = parser.parse_args()
    gpus = Gpus() if options.gpus else None
    chance = random.Random(options.seed)
    print(
        "| fault | verdict right | no process left | nothing sealed lost | to the verdict, median s | worst s "
        "| GPUs free, median s | worst s |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    all_good = True
    for kind in options.kinds:
        shots = []
        for _ in range(options.times):
            with tempfile.TemporaryDirectory() as folder:
                shots.append(shot_of(kind, Path(folder), chance, gpus))
        all_good &= all(shot.is_named and shot.is_clean and shot.has_rows for shot in shots)
        print(row(kind, shots), flush=True)
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
