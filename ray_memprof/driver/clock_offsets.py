"""By how much the clocks of two hosts differ, by what their ranks recorded; and times brought to one clock.

    offset = told_offset(run_dir, ours=(0, 1), theirs=(2, 3))      # None: nothing shows that they differ
    shift_rank(run_dir, 2, offset.ns)

A launcher asks each host for its time; nobody does that for ranks that record themselves. But no rank returns from a
barrier before every rank has called it. A clock by which one did so is wrong: each such call bounds the difference from
below and from above. The middle of what all bounds leave is taken, and half of it is the error.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_memprof.recorder.clock import Offset
from ray_memprof.store.gather import rewrite_sizes
from ray_memprof.store.parts import write_part
from ray_memprof.store.run_files import PART_SUFFIX, table_dir
from ray_memprof.store.schema import RANK_TABLES

_WAIT_FOR_ALL = ("barrier", "_verify_params_across_processes")
"""Calls that return once every rank has made them, with any backend; the second is the beginning of DDP."""
_WAITS_IN_GLOO = "init_process_group"
"""NCCL connects ranks at the first collective."""
_TIMES = ("t_ns", "start_ns", "end_ns")
"""Columns that hold moments; other columns in ns hold how long something took."""

Times: TypeAlias = tuple[int, int]
Calls: TypeAlias = Mapping[tuple[str, str, int], Times]
"""When a call began and returned, by op, group and how many of them came before."""


def told_offset(run_dir: Path, ours: Sequence[int], theirs: Sequence[int]) -> Offset | None:
    """By how much the clock of the ranks `theirs` is ahead of that of `ours`; None: not shown to differ.

    Args:
        run_dir: has the tables of all these ranks.
        ours: ranks of one host.
        theirs: ranks of another.
    """
    known = {rank: _calls(run_dir, rank) for rank in (*ours, *theirs)}
    bounds = [
        (began - our_end, ended - our_begin)
        for rank in theirs
        for call, (began, ended) in known[rank].items()
        for our_begin, our_end in (known[one][call] for one in ours if call in known[one])
    ]
    if not bounds:
        return None
    least, most = max(low for low, _ in bounds), min(high for _, high in bounds)
    if least <= 0 <= most or least > most:  # the latter: a clock was set meanwhile
        return None
    return Offset((least + most) // 2, (most - least + 1) // 2)


def _calls(run_dir: Path, rank: int) -> Calls:
    """The calls of a rank that wait for all ranks of their group."""
    columns = ["op", "group", "start_ns", "end_ns"]
    backends = {
        row["group"]: row["backend"] for row in _rows(run_dir, "communicators", rank, ["group", "backend"])
    }
    found: dict[tuple[str, str, int], Times] = {}
    num_calls: dict[tuple[str, str], int] = {}
    for row in _rows(run_dir, "collectives", rank, columns):
        op, group = row["op"], row["group"]
        if op in _WAIT_FOR_ALL or (op == _WAITS_IN_GLOO and backends.get(group) == "gloo"):
            number = num_calls[op, group] = num_calls.get((op, group), -1) + 1
            found[op, group, number] = row["start_ns"], row["end_ns"]
    return found


def _rows(run_dir: Path, table: str, rank: int, columns: Sequence[str]) -> Iterator[dict[str, pa.Scalar]]:
    for path in _part_paths(run_dir, table, rank):
        yield from pq.ParquetFile(path).read(columns).to_pylist()


def _part_paths(run_dir: Path, table: str, rank: int) -> Iterable[Path]:
    # Absolute: pyarrow would take `run:2/x.parquet` for an address.
    return sorted(table_dir(run_dir.absolute(), table, rank).glob(f"*{PART_SUFFIX}"))


def shift_rank(run_dir: Path, rank: int, offset_ns: int) -> None:
    """Subtract `offset_ns` from every time in the sealed tables of a rank.

    Raises:
        OSError: a part cannot be written.
    """
    sizes: dict[tuple[str, str], int] = {}
    for table in RANK_TABLES:
        for path in _part_paths(run_dir, table, rank):
            rows = pq.ParquetFile(path).read()
            for name in set(_TIMES) & set(rows.schema.names):
                field = rows.schema.field(name)
                moved = pc.subtract(rows[name], pa.scalar(offset_ns, field.type))
                rows = rows.set_column(rows.schema.get_field_index(name), field, moved)
            sizes[table, path.name] = write_part(path, rows)
    rewrite_sizes(run_dir, rank, sizes)
