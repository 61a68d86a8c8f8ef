"""memory_events.json: what was held when each stage, step and change of models began and ended.

    memory_events.write(run_dir)

Takes the tables of a run; leaves a list of objects, one a line, in order of time:

    {"name": "denoise", "timestamp": 1767225600.25, "memory_log": {"allocated_bytes": 1024, ...},
     "metadata": {"rank": 0, "stage": "denoise", "step": 3, "phase": "end", ...}}

`timestamp` is the wall clock in seconds. Blocks and other parts of a network are in the table spans only; see
sql/memory_events.sql for what is chosen.
"""

import json
import os
from pathlib import Path
from typing import Any

from ray_memprof import db
from ray_memprof.store import EVENTS_FILE, TEMPORARY_SUFFIX, disk_error, replace

NS = 1_000_000_000


def to_event(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the question memory_events as an object of the file; what is not known is left out."""
    known = {name: value for name, value in row.items() if value is not None}
    name, t_ns = known.pop("name"), known.pop("t_ns")
    log = {key: known.pop(key) for key in list(known) if key.endswith("_bytes")}
    return {"name": name, "timestamp": t_ns / NS, "memory_log": log, "metadata": known}


def write(run_dir: Path) -> Path:
    """Write memory_events.json of a run; where it is.

    Raises:
        ConfigError: `run_dir` is no run.
        DiskFull: no room for it.
    """
    rows = db.query(run_dir, "memory_events").to_pylist()
    path = run_dir / EVENTS_FILE
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("[\n")
            file.write(",\n".join(json.dumps(to_event(row)) for row in rows))
            file.write("\n]\n")
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error("the driver", path, error) from error
    return path
