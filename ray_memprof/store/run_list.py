"""Runs as a list: what each is called, when it was, how it ended, how much it took; opens no table of a finished run.

    for one in listed_runs(Path("profiler_logs")):       # the newest first
        one.name, one.status, one.device_used_peak_bytes

Reads run.json and summary.json. A run without a summary.json, because it goes on or is of an older version, is asked
through the footers of its Parquet files: they have the highest value of each column, so that no row is read.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_memprof.errors import ConfigError
from ray_memprof.store.find_run import list_runs
from ray_memprof.store.run_files import PART_SUFFIX, TABLES_DIR
from ray_memprof.store.run_json import Facts, run_facts
from ray_memprof.store.run_summary import loose_bytes, records_bytes, run_summary
from ray_memprof.store.standing import RUNNING, standing

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

UNREADABLE = "unreadable"
"""Status of a run whose run.json cannot be read."""
NOT_KNOWN = "unknown"
"""Status of a run that has neither run.json nor a row in the table runs."""
_PEAKS = {
    "allocated_peak_bytes": (
        ("spans", "allocated_peak_bytes"),
        ("ranks", "allocated_peak_bytes"),
        ("samples", "allocated_bytes"),
    ),
    "device_used_peak_bytes": (("spans", "device_used_peak_bytes"), ("samples", "device_used_bytes")),
}
"""By peak: the columns whose highest value it is, as in the question peak_by_rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedRun:
    """A run of the list."""

    name: str
    run_id: str
    path: Path
    status: str
    """ok, failed, oom ...; running: it goes on; unknown: its driver is gone and said nothing."""
    reason: str
    """Why it did not end well, or how far it is, in one line; "": it ended well."""
    exit_code: int | None
    """None: it has not ended, or that is not known."""
    num_ranks: int | None
    start_ns: int | None
    """Wall clock since 1970; None: not known."""
    end_ns: int | None
    """None: it has not ended, or that is not known."""
    allocated_peak_bytes: int | None
    """The most that a rank held in tensors; None: nothing is sealed yet."""
    peak_at_least: bool = False
    """A rank may have held more before its first event: allocated_peak_bytes is a lower bound."""
    device_used_peak_bytes: int | None
    """The most that was in use on a device; None: nothing is sealed yet."""
    size_bytes: int
    """Of all files in its folder."""

    def facts(self, now_ns: int | None = None) -> dict[str, Any]:
        """As plain values, for JSON; age_s is since its start, None: not known."""
        found = asdict(self) | {"path": str(self.path)}
        return found | {"age_s": None if self.start_ns is None else self.age_ns(now_ns) / 1e9}

    def age_ns(self, now_ns: int | None = None) -> int:
        """Time since its start; 0: not known."""
        now = time.time_ns() if now_ns is None else now_ns
        return 0 if self.start_ns is None else max(0, now - self.start_ns)


def listed_runs(output_dir: Path) -> list[ListedRun]:
    """All runs in a folder, the newest first."""
    return list(map(listed, reversed(list_runs(output_dir, begun=True))))


def listed(run_dir: Path) -> ListedRun:
    """One run, as the list has it."""
    summary = run_summary(run_dir)
    peaks = _peaks(run_dir) if summary is None else {name: getattr(summary, name) for name in _PEAKS}
    records = records_bytes(run_dir) if summary is None else summary.records_bytes
    is_late = None if summary is None else summary.peak_at_least
    facts = _facts(run_dir)
    return ListedRun(
        name=run_dir.parent.name,
        run_id=run_dir.name,
        path=run_dir.absolute(),
        status=str(facts.get("status", NOT_KNOWN)),
        reason=str(facts.get("reason", "")),
        exit_code=facts.get("exit_code"),
        num_ranks=facts.get("num_ranks"),
        start_ns=facts.get("start_ns"),
        end_ns=facts.get("end_ns"),
        size_bytes=records + loose_bytes(run_dir),
        peak_at_least=_is_late(run_dir) if is_late is None else is_late,
        **{name: peaks[name] for name in _PEAKS},
    )


def _facts(run_dir: Path) -> Facts:
    try:
        facts = run_facts(run_dir)
        if facts is None:
            return _row_of_runs(run_dir)
        now = standing(run_dir) if facts.get("status") == RUNNING else None
    except ConfigError as error:
        return {"status": UNREADABLE, "reason": str(error)}
    return facts if now is None else facts | {"status": now.status, "reason": now.reason}


def _row_of_runs(run_dir: Path) -> Facts:
    """What the table runs says of a run without run.json."""
    from pyarrow import parquet

    names = ("status", "reason", "exit_code", "num_ranks", "start_ns", "end_ns")
    for part in _parts(run_dir, "runs"):
        rows: list[Facts] = parquet.read_table(part, columns=list(names), partitioning=None).to_pylist()
        if rows:
            return rows[0]
    return {}


def _peaks(run_dir: Path) -> dict[str, int | None]:
    tables = {table for columns in _PEAKS.values() for table, _ in columns}
    found = {table: list(map(_footer, _parts(run_dir, table))) for table in tables}
    return {name: _highest(found, columns) for name, columns in _PEAKS.items()}


def _is_late(run_dir: Path) -> bool:
    """Whether the peak of a rank may lie before its first event."""
    footers = map(_footer, _parts(run_dir, "ranks"))
    return any(value for footer in footers for value in _highest_of(footer, "peak_at_least"))


def _highest(found: "Mapping[str, Sequence[FileMetaData]]", columns: Iterable[tuple[str, str]]) -> int | None:
    values = [
        value for table, column in columns for footer in found[table] for value in _highest_of(footer, column)
    ]
    return max(values, default=None)


def _footer(part: Path) -> "FileMetaData | None":
    """The footer of a Parquet file; None: the file is being written, or damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_metadata(part)
    except (OSError, pa.ArrowInvalid):
        return None


def _highest_of(footer: "FileMetaData | None", column: str) -> list[int]:
    """The highest value of a column in each row group; none where there is no footer or no such column."""
    if footer is None or column not in footer.schema.names:
        return []
    number = footer.schema.names.index(column)
    groups = (footer.row_group(group).column(number).statistics for group in range(footer.num_row_groups))
    return [int(one.max) for one in groups if one is not None and one.has_min_max]


def _parts(run_dir: Path, table: str) -> list[Path]:
    folder = run_dir / TABLES_DIR / table
    return sorted([*folder.glob(f"*{PART_SUFFIX}"), *folder.glob(f"rank=*/*{PART_SUFFIX}")])
