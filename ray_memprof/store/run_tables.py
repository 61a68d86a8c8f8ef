"""The rows that no rank writes itself: one for the run, one for each rank, and what a prediction says of the run.

    write_driver_tables(run_dir, run_row, rank_rows)
    write_predicted(run_dir, {0: [{"stage": "denoise", "account": "allocated", "bytes": 7}]})

Leaves tables/runs/, tables/ranks/ and tables/predicted/.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
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


def run_columns(facts: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a run in the table runs.

    Args:
        facts: those of run.json.
        config: the configuration of the run, as in config.yaml; what is missing in it has its default.
    """
    device = (config.get("model_config") or {}).get("device")
    start_ns = int(facts.get("start_ns", facts["end_ns"]))
    return {
        "run_id": str(facts["run_id"]),
        "name": str(facts["name"]),
        "source": str(facts.get("source", "cpu" if device == "cpu" else "cuda")),
        "workload": str(config.get("workload", "wan")),
        "num_ranks": int(facts.get("num_ranks", 0)),
        "config": json.dumps(config, default=str),
        "environment": json.dumps(facts.get("environment", {})),
        "git_commit": str(facts.get("git_commit", "")),
        "versions": json.dumps(facts.get("versions", {})),
        "start_ns": start_ns,
        "end_ns": int(facts["end_ns"]),
        "status": facts["status"],
        "exit_code": int(facts["exit_code"]),
        "reason": facts["reason"],
        "schema_version": SCHEMA_VERSION,
    }


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


def write_predicted(run_dir: Path, ranks: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
    """Write the table predicted, in place of the one that is there.

    Args:
        run_dir: the run that was predicted.
        ranks: rows with the columns of the table, by rank; a rank has one row at least.

    Raises:
        DiskFull: no room in the run folder.
    """
    with driver_writing(run_dir, f"are in {run_dir / TABLES_DIR}"):
        for rank, rows in ranks.items():
            columns = {name: [row[name] for row in rows] for name in TABLES["predicted"].schema.names}
            batch = to_batch("predicted", columns)
            write_part(
                table_dir(run_dir, "predicted", rank) / part_name(0),
                pa.Table.from_batches([batch], TABLES["predicted"].schema),
            )
