"""The list of runs as columns for people, the same on the console, in a notebook and for an assistant.

columns_text(fitting(run_columns(listed_runs(folder)), 80), 80)
"""

import time
from collections.abc import Sequence

from ray_memprof.query.answers import Shown, columns_text
from ray_memprof.store.run_list import ListedRun
from ray_memprof.wording import age_text, at_least, size_text

_TEXTS = ("name", "run", "when", "status")
_SPARED = ("when", "on disk", "allocated", "ranks", "age", "device used")
"""What a narrow terminal does without, the first one first: `run` begins with the moment, and `show` has the rest."""


def run_columns(runs: Sequence[ListedRun]) -> list[Shown]:
    """A row for each run: its name and id, when it was, how it ended, its peaks, its size on disk."""
    columns = {
        "name": [one.name for one in runs],
        "run": [one.run_id for one in runs],
        "when": list(map(_when, runs)),
        "age": ["-" if one.start_ns is None else age_text(one.age_ns() / 1e9) for one in runs],
        "status": [one.status for one in runs],
        "ranks": ["-" if one.num_ranks is None else str(one.num_ranks) for one in runs],
        "device used": [_size(one.device_used_peak_bytes) for one in runs],
        "allocated": [at_least(_size(one.allocated_peak_bytes), one.peak_at_least) for one in runs],
        "on disk": [_size(one.size_bytes) for one in runs],
    }
    return [Shown(name, cells, name not in _TEXTS) for name, cells in columns.items()]


def fitting(columns: Sequence[Shown], width: int | None) -> Sequence[Shown]:
    """The columns that have room beside each other in `width` letters; None: all of them."""
    from rich.cells import cell_len

    left = list(columns)
    for name in _SPARED:
        lines = columns_text(left).splitlines()
        if width is None or max(map(cell_len, lines)) <= width:
            break
        left = [one for one in left if one.name != name]
    return left


def _size(value: int | None) -> str:
    return "-" if value is None else size_text(value)


def _when(one: ListedRun) -> str:
    if one.start_ns is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(one.start_ns / 1e9))
