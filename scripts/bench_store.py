"""What an allocator event costs on disk, how fast the store takes rows, and how much memory it wants.

    python scripts/bench_store.py --events 1000000
    python scripts/bench_store.py --events 1000000 --batch-rows 500

Run it with the package importable (`make env`, or PYTHONPATH=.). The events are those of make_synthetic_run.py: 60 per
span, microsecond times, sizes and addresses that recur. Prints a Markdown table to stdout:

    recurring     the steps of the denoise loop repeat, as they do under a caching allocator; times never do
    scattered     nothing repeats: addresses drawn from 4,096, sizes from 1,000, separately for every event

    bytes/event   compressed size of the column over the events; "file" counts headers and footers too
    rows/s        appended and sealed, file system included; the rows are made before the clock starts
    memory        growth of the largest resident set while rows are written: own memory, and mapped pages apart
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from make_synthetic_run import Rows
from measuring import peaks, proc_bytes

from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.run_files import table_dir

MIB = 2**20


def column_bytes(folder: Path) -> tuple[Counter[str], int, int]:
    """Compressed bytes by column, bytes of the files, rows."""
    sizes, files, rows = Counter[str](), 0, 0
    for path in folder.glob("*.parquet"):
        metadata = pq.ParquetFile(path).metadata
        files, rows = files + path.stat().st_size, rows + metadata.num_rows
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                sizes[column.path_in_schema] += column.total_compressed_size
    return sizes, files, rows


def scattered(columns: dict[str, Any]) -> dict[str, Any]:
    """The same events without a pattern in addresses and sizes: more than any real run would cost."""
    rng = np.random.default_rng(0)
    num = len(columns["seq"])
    sizes = rng.choice(512 * rng.integers(1, 2**21, 1_000), num)
    addresses = columns["address"][0] + 2 * MIB * rng.integers(0, 4096, num)
    return {
        **columns,
        "address": addresses,
        "size_bytes": sizes,
        "requested_bytes": sizes - sizes % 1000 // 4,
    }


def measure(columns: dict[str, Any], batch_rows: int) -> tuple[Counter[str], str]:
    """Bytes per event by column, and a line of figures."""
    with tempfile.TemporaryDirectory() as folder:
        before = proc_bytes()
        with peaks(proc_bytes) as most:
            start = time.perf_counter()
            store = RankStore(Path(folder), 0)
            for row in range(0, len(columns["seq"]), batch_rows):
                stop = row + batch_rows
                store.append("allocs", {name: values[row:stop] for name, values in columns.items()})
            store.close()
            seconds = time.perf_counter() - start
        sizes, files, rows = column_bytes(table_dir(Path(folder), "allocs", 0))
    sizes.update({"all columns": sizes.total(), "file": files})
    own, mapped = ((most[name] - before[name]) / MIB for name in ("RssAnon", "RssFile"))
    memory = f"memory +{own:.0f} MiB, mapped +{mapped:.0f} MiB"
    return sizes, f"{rows:,} events, {rows / seconds:,.0f} rows/s, {memory}"


def main() -> None:
    """Write one rank's events, print what they cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--batch-rows", type=int, default=10_000, help="rows of one append")
    args = parser.parse_args()
    columns = Rows(0, args.events, blocks=30).allocs()
    cases = {"recurring": columns, "scattered": scattered(columns)}
    measured = {name: measure(case, args.batch_rows) for name, case in cases.items()}
    print(f"| bytes/event | {' | '.join(cases)} |\n|---|---:|---:|")
    for column in [*measured["recurring"][0]]:
        cells = [f"{sizes[column] / len(columns['seq']):.3f}" for sizes, _ in measured.values()]
        print(f"| {column} | {' | '.join(cells)} |")
    for name, (_, line) in measured.items():
        print(f"\n{name}: {line}")


if __name__ == "__main__":
    main()
