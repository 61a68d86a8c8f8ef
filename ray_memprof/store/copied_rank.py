"""The records of a rank once more, as those of another rank that did the very same.

    copy_rank(run_dir, 1, 2)             # rank 2 has the rows of rank 1

Takes a run folder in which the first of the two has sealed its records; leaves the tables, the manifest and the log of
the other.
"""

import shutil
from pathlib import Path

from ray_memprof.store.run_files import log_name, manifest_path, table_dir
from ray_memprof.store.schema import RANK_TABLES
from ray_memprof.store.whole_file import driver_writing


def copy_rank(run_dir: Path, rank: int, to: int) -> None:
    """Copy what `rank` has recorded to rank `to`. Raises DiskFull."""
    with driver_writing(run_dir, f"of rank {rank} are copied to rank {to}"):
        for table in RANK_TABLES:
            source = table_dir(run_dir, table, rank)
            if source.is_dir():
                shutil.copytree(source, table_dir(run_dir, table, to))
        shutil.copyfile(manifest_path(run_dir, rank), manifest_path(run_dir, to))
        (run_dir / log_name(to)).write_text(f"as rank {rank}: see {log_name(rank)}\n", encoding="utf-8")
