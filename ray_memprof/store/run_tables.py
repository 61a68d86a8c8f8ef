"""The rows that the driver writes itself: one for the run, and one for each rank.

    write_driver_tables(run_dir, run_row, rank_rows)

Leaves tables/runs/ and tables/ranks/.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_memprof.store.parts import to_batch, write_part
from ray_memprof.store.run_files import (
    TABLES_DIR,
    part_name,
    table_dir,
)
from ray_memprof.store.schema import SCHEMA_VERSION, TABLES
from ray_memprof.store.whole_file import driver_writing


def source_of(device: str | None) -> str:
    """The source of a run in the table runs, by the device in its configuration."""
    return "cpu" if device == "cpu" else "cuda"


def write_driver_tables(run_dir: Path, run: Mapping[str, Any], ranks: Iterable[Mapping[str, Any]]) -> None:
    """Write the tables runs and ranks, as schema.py has them; each row of `ranks` has its "rank" too.

    Raises:
        DiskFull: no room in the run folder.
        ValueError: columns are missing, unknown, or of the wrong type.
    """
    folders = {table_dir(run_dir, "runs"): ("runs", {"schema_version": SCHEMA_VERSION, **run})}
    for row in ranks:
        columns = {name: value for name, value in row.items() if name != "rank"}
        folders[table_dir(run_dir, "ranks", row["rank"])] = ("ranks", columns)
    with driver_writing(run_dir, f"are in {run_dir / TABLES_DIR}"):
        for folder, (table, columns) in folders.items():
            batch = to_batch(table, {name: [value] for name, value in columns.items()})
            write_part(folder / part_name(0), pa.Table.from_batches([batch], TABLES[table].schema))
