"""How much time and memory the driver needs to gather a run, with sealed ranks, dead ranks and ranks of another node.

    python scripts/bench_collect.py --ranks 8 --events 1000000

Run it with the package importable (`make env`, or PYTHONPATH=.). make_synthetic_run.py plays the ranks. Every second
rank died with its last rows in open streams. The upper half of the ranks is in another folder and arrives in chunks, as
from a node without a shared file system. Gathering runs in a process of its own. Prints a Markdown table to stdout; the
files are in the page cache, as they are when a run has just ended; resident memory is the kernel's own high-water mark
(VmHWM).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from make_synthetic_run import driver_rows, make_rank
from measuring import in_process, proc_bytes

from ray_memprof.query import database
from ray_memprof.store import gather as collect

MIB = 2**20


def gather(run_dir: Path, scratch: Path, ranks: int) -> dict[str, Any]:
    """Gather the run and build its database; seconds and bytes."""
    before = proc_bytes()["VmHWM"]
    there = tuple(range(ranks // 2, ranks))
    remote = collect.Remote(where=str(scratch), ranks=there, chunks=collect.send(scratch, there))
    start = time.perf_counter()
    gathered = collect.gather(run_dir, range(ranks), [remote])
    gathered_s = time.perf_counter() - start
    after_gather = proc_bytes()["VmHWM"]
    collect.write_driver_tables(run_dir, *driver_rows(run_dir, ranks))
    start = time.perf_counter()
    built = database.build(run_dir)
    return {
        "gather, s": gathered_s,
        "build of run.duckdb, s": time.perf_counter() - start,
        "allocs rows": sum(rank.rows["allocs"] for rank in gathered.ranks.values()),
        "of them recovered": sum(rank.recovered["allocs"] for rank in gathered.ranks.values()),
        "problems": len(gathered.problems),
        "resident before, MiB": before / MIB,
        "resident after gather, MiB": after_gather / MIB,
        "resident after build, MiB": proc_bytes()["VmHWM"] / MIB,
        "tables, MiB": sum(path.stat().st_size for path in run_dir.glob("tables/**/*.parquet")) / MIB,
        "run.duckdb, MiB": built.stat().st_size / MIB,
    }


def main() -> None:
    """Make the run, gather it in another process, print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--events", type=int, default=1_000_000, help="per rank")
    parser.add_argument("--in-process", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        print(json.dumps(gather(*args.in_process, args.ranks)))
        return
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "run", Path(folder) / "scratch"
        for rank in range(args.ranks):
            where = there if rank >= args.ranks // 2 else here
            make_rank(where, rank, args.ranks, args.events, dies=rank % 2 == 1)
        figures = in_process(__file__, "--ranks", args.ranks, "--in-process", here, there)
    print("| what | figure |\n|---|---:|")
    for name, figure in figures.items():
        print(f"| {name} | {f'{figure:,.2f}' if isinstance(figure, float) else f'{figure:,}'} |")


if __name__ == "__main__":
    main()
