"""Two runs of one configuration from different sources, stage by stage: how far a prediction is from what was measured.

found = stage_peaks(Path("profiler_logs/a/latest"), Path("profiler_logs/predicted/latest"))
found.rows[0]["difference_fraction"]

Writes no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_memprof.errors import ConfigError
from ray_memprof.query.database import open_runs

_SQL = Path(__file__).parent / "sql" / "stage_peaks.sql"


@dataclass(frozen=True, slots=True)
class StagePeaks:
    """The other run, and the peaks of both."""

    run_id: str
    source: str
    rows: Sequence[dict[str, Any]]
    """Of sql/stage_peaks.sql."""


def stage_peaks(run_dir: Path, other_dir: Path) -> StagePeaks:
    """Compare the allocated peaks of a run, by rank and stage, with those of another run.

    Raises:
        ConfigError: one of both is no run, or the other has the same source, or its source is not known.
    """
    with open_runs([run_dir, other_dir], only="") as connection:
        here = connection.execute("SELECT source FROM run0.runs").fetchall()
        there = connection.execute("SELECT run_id, source FROM run1.runs").fetchall()
        if not there or (here and there[0][1] == here[0][0]):
            raise ConfigError(
                f"{other_dir} cannot be set beside this run: it must have another source, and that must be known",
                hint="set a predicted run beside a measured one",
            )
        rows = connection.sql(_SQL.read_text(encoding="utf-8")).to_arrow_table().to_pylist()
    return StagePeaks(run_id=there[0][0], source=there[0][1], rows=rows)
