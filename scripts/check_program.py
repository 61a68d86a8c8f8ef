"""Does a recording change a program, and does it explain its memory? Once without a recorder, then once each way with.

    python scripts/check_program.py --ranks 2 train.py --steps 10
    python scripts/check_program.py --ranks 2 --ways launched variable --fresh train.py --steps 10

Ways: `record` (torchrun ... -m ray_memprof.record), `variable` (RAY_MEMPROF=1, for which this project must be
installed) and `launched` (under Ray). The control runs under torchrun and leaves the counters of the allocator at its
end, which must be those of the recording, to the byte. --fresh gives each run a copy of the program's folder, for
programs that find what an earlier run has left. Columns, a row for each rank:

    allocated, reserved     peak of the recording, GiB; = where it is the control's, else the difference in bytes
    replay                  whether the recorded events give the allocator's counters
    known                   share of the bytes alive at the peak that have a component and a category
    NCCL, unexplained       of what is used on the device at its peak
    peak in                 the span in which allocated memory peaks

On the CPU torch has no counters to compare with. Leaves the runs in --output-dir.
"""

import argparse
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("record", "variable", "launched")
COUNTERS = "CHECK_PROGRAM_COUNTERS"
"""Variable: the folder in which each rank of a control leaves its counters; where it is set, this file is a control."""
LIMIT_S = 600
GIB = 2**30
Row = dict[str, Any]


def be_control(script: str, args: list[str]) -> None:
    """Run a script as python does, and leave the peaks of its allocator at its end."""
    import atexit

    def leave() -> None:
        import torch

        if not torch.cuda.is_initialized():
            return
        told = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        rank = os.environ.get("RANK", "0")
        Path(os.environ[COUNTERS], f"rank{rank}.json").write_text(json.dumps(told), encoding="ascii")

    atexit.register(leave)
    sys.argv = [script, *args]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


def command_of(way: str, ranks: int, script: str, args: list[str], runs: Path) -> list[str]:
    """The command that starts the program in a way, or as the control."""
    python = [sys.executable, "-m"]
    if way == "launched":
        given = ["--ranks", str(ranks), "--plain", "--output-dir", str(runs), "--set", "logging.level=event"]
        given += [] if has_gpu() else ["--set", "model_config.device=cpu"]
        return [*python, "ray_memprof.cli", "run", *given, script, *args]
    torchrun = [*python, "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    if way == "control":
        return [*torchrun, str(Path(__file__).resolve()), script, *args]
    recorder = ["-m", "ray_memprof.record", "--level", "event"] if way == "record" else []
    return [*torchrun, *recorder, script, *args]


def has_gpu() -> bool:
    """Whether there is a GPU, as torch sees it without CUDA."""
    import torch

    return torch.cuda.is_available()


def start(way: str, given: argparse.Namespace, scratch: Path) -> Path:
    """Run the program in a way, to its end; the folder of its runs, or of the control's counters."""
    script, runs = Path(given.program), given.output_dir.resolve() / way
    folder = script.resolve().parent
    if given.fresh:
        folder = Path(shutil.copytree(folder, scratch / way))
        script = folder / script.name
    runs.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environ |= {"RAY_MEMPROF_DIR": str(runs)} | ({"RAY_MEMPROF": "1"} if way == "variable" else {})
    environ |= {COUNTERS: str(runs)} if way == "control" else {}
    command = command_of(way, given.ranks, str(script), given.args, runs)
    with (runs / "output.log").open("w") as log:
        done = subprocess.run(
            command, cwd=folder if given.fresh else None, env=environ, timeout=LIMIT_S, check=False,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode:
        print(f"{way}: exit code {done.returncode}, see {runs / 'output.log'}", file=sys.stderr, flush=True)
    return runs


def rows_of(way: str, run: Any, counters: dict[int, dict[str, int]]) -> Iterator[Row]:
    """What a run says of each rank, beside the counters of the control."""
    exact = {row["rank"]: row["is_exact"] for row in run.ask("replay_check").to_pylist()}
    books = {(row["rank"], row["account"]): row["bytes"] for row in run.ask("books_at_peak").to_pylist()}
    alive = run.ask("alive_at_peak_by_category").to_pylist()
    for peak in run.ask("peak_by_rank").to_pylist():
        rank = peak["rank"]
        mine = [row for row in alive if row["rank"] == rank]
        known = sum(row["bytes"] for row in mine if row["component"] and row["category"])
        found = {"allocated": peak["allocated_peak_bytes"], "reserved": peak["reserved_peak_bytes"]}
        yield {
            "way": way,
            "rank": rank,
            **{name: against(size, counters.get(rank, {}).get(name)) for name, size in found.items()},
            "replay": "exact" if exact.get(rank) else "not exact",
            "known": f"{known / max(1, sum(row['bytes'] for row in mine)):.3%}",
            "NCCL": gib(books.get((rank, "nccl"))),
            "unexplained": gib(books.get((rank, "unexplained"))),
            "peak in": peak["path"] or "no span",
        }


def against(size: int, control: int | None) -> str:
    """A size, and how it stands to the control's."""
    if control is None:
        return f"{gib(size)}, no control"
    return f"{gib(size)} =" if size == control else f"{gib(size)}, {size - control:+,} B"


def gib(size: int | None) -> str:
    """A size in GiB."""
    return "-" if size is None else f"{size / GIB:.3f}"


def main() -> int:
    """Read the command line, run, print a Markdown table; returns 1 if a recording left no run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["record"])
    parser.add_argument("--fresh", action="store_true", help="a copy of the program's folder for each run")
    parser.add_argument("--output-dir", type=Path, default=Path("profiler_logs/check_program"))
    parser.add_argument("program")
    parser.add_argument("args", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    import ray_memprof

    with tempfile.TemporaryDirectory() as scratch:
        left = start("control", given, Path(scratch))
        counters = {
            int(path.stem.removeprefix("rank")): json.loads(path.read_text())
            for path in left.glob("rank*.json")
        }
        rows: list[Row] = []
        for way in given.ways:
            runs = ray_memprof.runs(output_dir=start(way, given, Path(scratch)))
            if not runs:
                print(f"{way}: left no run", file=sys.stderr)
                return 1
            rows += rows_of(way, runs[0], counters)
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    return 0


if __name__ == "__main__":
    if COUNTERS in os.environ:
        be_control(sys.argv[1], sys.argv[2:])
    else:
        sys.path.insert(0, str(ROOT))
        sys.exit(main())
