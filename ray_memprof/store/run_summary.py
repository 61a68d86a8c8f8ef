"""What is known of a run once it is derived, in one small file: its measured lines, its peaks, bytes of its records.

    note_summary(run_dir, lines, headlines)      # summary.json, replaced as a whole
    run_summary(run_dir)                         # None: there is none, or it cannot be read

So a list of a thousand runs opens no table (run_list.py), and the last lines of a run can be shown again as they were.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_memprof.store.run_files import SUMMARY_FILE
from ray_memprof.store.whole_file import run_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The content of summary.json."""

    lines: tuple[str, ...]
    """What was measured, as the launch printed it."""
    allocated_peak_bytes: int | None
    """The most that a rank held in tensors; None: no span and no sample was recorded."""
    device_used_peak_bytes: int | None
    """The most that was in use on a device."""
    records_bytes: int
    """Of all files in the folders of the run (tables, logs, traces), which do not change any more."""
    peak_at_least: bool | None = None
    """A rank may have held more before its first event; None: an older version wrote the file, and did not say."""


def note_summary(run_dir: Path, lines: Sequence[str], headlines: Sequence[Mapping[str, Any]]) -> None:
    """Write summary.json.

    Args:
        run_dir: the run.
        lines: what was measured.
        headlines: the answer to the question headlines: one row, or none if nothing was recorded.

    Raises:
        DiskFull: it could not be written.
    """
    peaks = headlines[0] if headlines else {}
    summary = Summary(
        lines=tuple(lines),
        allocated_peak_bytes=peaks.get("allocated_peak_bytes"),
        device_used_peak_bytes=peaks.get("device_used_peak_bytes"),
        records_bytes=records_bytes(run_dir),
        peak_at_least=bool(peaks.get("peak_at_least")),
    )
    with run_file(run_dir / SUMMARY_FILE) as temporary:
        temporary.write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")


def run_summary(run_dir: Path) -> Summary | None:
    """What summary.json says; None: there is none (the run goes on, or is of an older version), or it is damaged."""
    try:
        found = json.loads((run_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
        return Summary(**{**found, "lines": tuple(found["lines"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def records_bytes(run_dir: Path) -> int:
    """The bytes of all files in the folders of a run; links are not followed."""
    found, waiting = 0, [entry.path for entry in _entries(run_dir) if entry.is_dir(follow_symlinks=False)]
    while waiting:
        for entry in _entries(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                found += _file_bytes(entry)
    return found


def loose_bytes(run_dir: Path) -> int:
    """The bytes of the files that lie in the run folder itself, such as run.duckdb and report.html."""
    return sum(map(_file_bytes, _entries(run_dir)))


def _entries(folder: "str | Path") -> "list[os.DirEntry[str]]":
    """What lies in a folder; nothing where it is gone by now, or closed to this user."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _file_bytes(entry: "os.DirEntry[str]") -> int:
    """The bytes of a file; 0 for anything else, and for a file that its rank has replaced by now."""
    try:
        return entry.stat().st_size if entry.is_file(follow_symlinks=False) else 0
    except OSError:
        return 0
