"""memory_events.json: how much was held when each stage, step and change of models began and ended.

    memory_events.write_memory_events(run_dir)

Takes the tables of a run; leaves a list of objects, one per line, in order of time:

    {"name": "denoise", "timestamp": 1767225600.25, "memory_log": {"allocated_bytes": 1024, ...},
     "metadata": {"rank": 0, "stage": "denoise", "step": 3, "phase": "end", ...}}

`timestamp` is the wall clock in seconds. Blocks and other parts of a network are in the table spans only;
query/sql/time/memory_events.sql says which spans are chosen.
"""

import json
from pathlib import Path
from typing import Any

from ray_memprof.query import questions
from ray_memprof.query.database import open_run
from ray_memprof.store.run_files import EVENTS_FILE
from ray_memprof.store.whole_file import check_target, run_file, whole_file

NS = 1_000_000_000


def to_event(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the question memory_events as an object of the file; values that are not known are left out."""
    known = {name: value for name, value in row.items() if value is not None}
    name, t_ns = known.pop("name"), known.pop("t_ns")
    log = {key: known.pop(key) for key in list(known) if key.endswith("_bytes")}
    return {"name": name, "timestamp": t_ns / NS, "memory_log": log, "metadata": known}


def write_memory_events(run_dir: Path, path: Path | None = None) -> Path:
    """Write memory_events.json of a run to `path`, or without `path` into the run's folder; returns the file's path.

    Raises:
        ConfigError: no such run, or no file can be written at `path`.
        DiskFull: no room for the file.
    """
    check_target(path)
    text = questions.question("memory_events")
    with open_run(run_dir, text) as connection:
        rows = questions.rows_of(connection, "memory_events")
    lines = ",\n".join(json.dumps(to_event(row)) for row in rows)
    own = run_dir / EVENTS_FILE
    with run_file(own) if path is None else whole_file(path) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return path or own
