"""A run in memory whose tables are filled by hand, and what the diagnosis says of it.

The views of a run take longer to make than to ask: it is filled anew again and again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from run_tables import Row, blank, make_run

from ray_memprof.analysis.diagnosis.diagnose import Finding, findings
from ray_memprof.query import database
from ray_memprof.store.schema import TABLES

MIB, GIB, SECOND = 2**20, 2**30, 10**9
Tables = Mapping[str, Sequence[Row]]


class EmptyRun:
    """A run in memory whose tables can be filled; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._open = database.open_run(make_run(folder, {0: {}}))

    def __enter__(self) -> "EmptyRun":
        self.connection: duckdb.DuckDBPyConnection = self._open.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    def fill(self, *ranks: Tables) -> None:
        """Put what these ranks recorded in place of what is there; the driver has written nothing."""
        for table in TABLES:
            self.connection.execute(f"DELETE FROM {table}")
        for rank, tables in enumerate(ranks):
            for table, rows in tables.items():
                self.insert(table, rows, rank)

    def insert(self, table: str, rows: Sequence[Row], rank: int | None = None) -> None:
        """Add rows, of a rank where the table has one."""
        columns = pa.Table.from_pylist(list(rows), schema=TABLES[table].schema)
        if rank is not None:
            columns = columns.append_column("rank", pa.array([rank] * len(rows), pa.int64()))
        # DuckDB finds the local variable.
        self.connection.execute(f"INSERT INTO {table} BY NAME FROM columns")


def diagnose(
    empty: EmptyRun,
    *ranks: Tables,
    rank_rows: Sequence[Row] = (),
    config: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    **run: Any,
) -> list[Finding]:
    """What the rules say of a run with these rows; rank_rows: of the table ranks, in rank order."""
    empty.fill(*ranks)
    facts = {"source": "cuda", "workload": "wan", "num_ranks": len(ranks), "status": "ok"}
    texts = {"config": json.dumps(config or {}), "environment": json.dumps(environ or {})}
    empty.insert("runs", [blank("runs", **facts | texts | run)])
    for rank in range(len(ranks)):
        row = rank_rows[rank] if rank_rows else {"status": "ok"}
        empty.insert("ranks", [blank("ranks", **row)], rank)
    return findings(empty.connection)


def events(*rows: tuple[str, int, int, int], category: str | None = "activation") -> list[Row]:
    """Allocator events of (action, bytes, address, span_id), in order."""
    return [
        blank(
            "allocs",
            seq=seq,
            t_ns=seq,
            action=action,
            size_bytes=size,
            requested_bytes=size,
            address=address,
            span_id=span_id,
            category=category if action in ("alloc", "free_requested") else None,
        )
        for seq, (action, size, address, span_id) in enumerate(rows)
    ]


def held(start: int, end: int, peak: int) -> dict[str, tuple[int, int, int]]:
    """Tensors of a span, all that there is on the device."""
    return dict.fromkeys(("allocated", "reserved", "active", "device_used"), (start, end, peak))
