"""Lets a predicted run be one that a GPU has measured: so tests have measured runs without a GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ray_memprof.store.run_files import manifest_path, part_name, table_dir


def as_measured(run_dir: Path, *, gpu_name: str = "NVIDIA H200", added_bytes: int = 0) -> Path:
    """Let a predicted run be one that a GPU measured, with so many bytes more in tensors while it decodes."""
    change(table_dir(run_dir, "runs") / part_name(0), lambda row: {**row, "source": "cuda"})
    change(table_dir(run_dir, "ranks", 0) / part_name(0), lambda row: {**row, "gpu_name": gpu_name})

    def grown(row: dict[str, Any]) -> dict[str, Any]:
        size = added_bytes if row["stage"] == "decode" else 0
        names = ("allocated_peak_bytes", "reserved_peak_bytes", "device_used_peak_bytes")
        return {**row, **{name: row[name] + size for name in names}}

    sizes = {}
    for path in table_dir(run_dir, "spans", 0).glob("*.parquet"):
        change(path, grown)
        sizes["spans", path.name] = path.stat().st_size
    manifest = manifest_path(run_dir, 0)
    sealed = map(json.loads, manifest.read_text(encoding="ascii").splitlines())
    listed = [{**one, "bytes": sizes.get((one["table"], one["file"]), one["bytes"])} for one in sealed]
    manifest.write_text("".join(f"{json.dumps(one)}\n" for one in listed), encoding="ascii")
    return run_dir


def change(path: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    table = parquet.read_table(path, partitioning=None)
    parquet.write_table(pa.Table.from_pylist(list(map(changed, table.to_pylist())), table.schema), path)
