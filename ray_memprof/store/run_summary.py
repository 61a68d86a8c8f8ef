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
    with os.scandir(run_dir) as entries:
        folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sum(map(_bytes_below, folders))


def loose_bytes(run_dir: Path) -> int:
    """The bytes of the files that lie in the run folder itself, such as run.duckdb and report.html."""
    with os.scandir(run_dir) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file(follow_symlinks=False))


def _bytes_below(folder: str) -> int:
    found, waiting = 0, [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    found += entry.stat().st_size
    return found
