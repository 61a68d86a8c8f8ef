"""Defines every name in the folder of a run: its files, its folders, and the parts of its tables."""

import re
from pathlib import Path

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
LIVE_FILE = "live.json"
"""Only while a driver watches the ranks."""
DATABASE_FILE = "run.duckdb"
EVENTS_FILE = "memory_events.json"
REPORT_FILE = "report.html"
FLAME_FILE = "flame.html"
TABLES_DIR = "tables"
TRACE_DIR = "trace"
LOGS_DIR = "logs"
TRACE_FILE = "rank{rank}.pt.trace.json"
"""TensorBoard looks for *.pt.trace.json, and takes what * stands for as the name of the worker."""
LATEST_LINK = "latest"
FINISH_LOG = f"{LOGS_DIR}/finish.log"
"""Output of the process that completes a run after its program has failed."""
_MOST_NAME_LETTERS = 120
OPEN_STREAM = "open.arrows"
PART_SUFFIX = ".parquet"
TEMPORARY_SUFFIX = ".tmp"


def trouble_with_name(name: str, *, is_part: bool = False) -> str:
    """Why `name` cannot be that of a run, which is a folder (<output_dir>/<name>/<run_id>); "": it can.

    Args:
        name: as the user gave it.
        is_part: whether it only becomes the end of a name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return "must be letters from A to Z, digits, dots, _ and -, with a letter or digit first: it names a folder"
    if len(name) > _MOST_NAME_LETTERS:
        return f"must be at most {_MOST_NAME_LETTERS} characters long"
    if name == LATEST_LINK and not is_part:
        return "stands for the newest run wherever a run is asked for; take another name"
    return ""


def table_dir(run_dir: Path, table: str, rank: int | None = None) -> Path:
    """Return where the parts of `table` lie; without `rank`, for all ranks, or for a table without ranks."""
    folder = run_dir / TABLES_DIR / table
    return folder if rank is None else folder / f"rank={rank}"


def part_name(number: int) -> str:
    """File name of the part with this number."""
    return f"part-{number:05d}{PART_SUFFIX}"


def manifest_path(run_dir: Path, rank: int) -> Path:
    """The list of what `rank` sealed."""
    return run_dir / TABLES_DIR / f"manifest-rank={rank}.jsonl"


def log_name(rank: int) -> str:
    """The path of a rank's log, relative to the run folder."""
    return f"{LOGS_DIR}/rank{rank}.log"


def rank_file(rank: int) -> str:
    """The path of what a rank without a launcher says of itself and of its end, relative to the run folder."""
    return f"{LOGS_DIR}/rank{rank}.json"


def announcement_name(key: str) -> str:
    """Name of the file, beside the runs of one name, by which the ranks of one start find their common run folder."""
    return f".start-{key}.json"


def flight_record_name(rank: int | None = None) -> str:
    """The path of what NCCL was at on a rank, relative to the run folder; None: what torch appends the rank to."""
    return f"{LOGS_DIR}/nccl_trace_rank{'' if rank is None else rank}"


def name_in_run(run_dir: Path, path: Path) -> str:
    """Return the name of a file of the run folder, the same on every host: relative, with slashes."""
    return path.relative_to(run_dir).as_posix()
