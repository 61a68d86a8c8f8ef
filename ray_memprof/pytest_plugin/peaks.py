"""Measures the peaks that limits are compared with: those of this process during some code, or of a recorded run.

    with watched() as watch:
        decode(latents)
    watch.measured("device_used").bytes         # on the device of this process with the highest peak

    of_run(run_dir, "device_used", "max").bytes # of the rank with the highest peak

Writes no file. Imports torch when a watch begins, DuckDB when a run is opened.
"""

import functools
import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from ray_memprof.errors import ConfigError
from ray_memprof.recorder.meters.meter import PEAK_RESETS
from ray_memprof.wording import at_least, size_text

if TYPE_CHECKING:
    import duckdb

_HIGHEST = """\
SELECT {0}_peak_bytes, stage, path, step FROM spans WHERE rank = ? ORDER BY {0}_peak_bytes DESC, depth DESC, span_id"""
_HIGHEST_SAMPLE = (
    "SELECT device_used_bytes, t_ns FROM samples WHERE rank = ? ORDER BY device_used_bytes DESC, t_ns"
)
_INNERMOST = """\
SELECT stage, path, step FROM spans WHERE rank = ? AND ? BETWEEN start_ns AND end_ns ORDER BY depth DESC, span_id"""


@dataclass(frozen=True, slots=True)
class Measured:
    """A peak, with the name of its device or rank, and further lines for the message."""

    bytes: int
    who: str
    details: tuple[str, ...]


class PeakWatch:
    """The allocator's peaks on every device of this process, also if the code under test resets its counters."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._peaks: dict[int, tuple[int, int]] = {}
        """Device -> allocated, reserved."""

    def begin(self, patches: ExitStack) -> None:
        """Reset the peaks to what is allocated now; if CUDA is not initialized yet, there is nothing to reset."""
        cuda = self._torch.cuda
        if cuda.is_initialized():
            # Otherwise memory that earlier tests left would count.
            gc.collect()
            cuda.empty_cache()
            for index in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(index)
        for name in PEAK_RESETS:
            reset = getattr(self._torch._C, name, None)
            if reset is not None:
                kept = functools.partial(self._before, reset)
                patches.enter_context(patch.object(self._torch._C, name, kept))

    def _before(self, reset: Any, *args: Any) -> Any:
        """Keep the peaks before the code under test resets them."""
        self.take()
        return reset(*args)

    def take(self) -> None:
        """Read the counters and keep the highest values."""
        cuda = self._torch.cuda
        for index in range(cuda.device_count() if cuda.is_initialized() else 0):
            allocated, reserved = self._peaks.get(index, (0, 0))
            self._peaks[index] = (
                max(allocated, cuda.max_memory_allocated(index)),
                max(reserved, cuda.max_memory_reserved(index)),
            )

    def measured(self, measure: str) -> Measured:
        """The highest peak of all devices."""
        found = [(self._bytes(index, measure), index) for index in self._peaks]
        if not found:
            return Measured(0, "the test", ())
        most, index = max(found, key=lambda one: (one[0], -one[1]))
        allocated, reserved = self._peaks[index]
        details = f"the allocator's peaks: allocated {size_text(allocated)}, reserved {size_text(reserved)}"
        return Measured(most, f"the test, on cuda:{index}", (details,))

    def _bytes(self, index: int, measure: str) -> int:
        """The peak of one device; the device is not asked if nothing was reserved: that would make a CUDA context."""
        allocated, reserved = self._peaks[index]
        if measure != "device_used" or not reserved:
            return allocated if measure == "allocated" else reserved
        free, total = self._torch.cuda.mem_get_info(index)
        outside = total - free - self._torch.cuda.memory_reserved(index)
        return int(reserved + outside)


@contextmanager
def watched() -> Iterator[PeakWatch]:
    """Watch the allocator's peaks inside the block."""
    watch = PeakWatch()
    with ExitStack() as patches:
        watch.begin(patches)
        yield watch
        watch.take()


def of_run(run_dir: Path, measure: str, rank: str | int) -> Measured:
    """The peak of a run, with the span of the peak, the first finding of the diagnosis, and the path of the report.

    Args:
        run_dir: the folder of the run.
        measure: one of MEASURES.
        rank: "max" (the highest peak), "mean" of all ranks, or the number of a rank.

    Raises:
        ConfigError: no such run, or nothing was recorded of that rank.
    """
    from ray_memprof.analysis.diagnosis import diagnose
    from ray_memprof.query import database, questions
    from ray_memprof.query.bounds import is_lower_bound
    from ray_memprof.store.run_files import REPORT_FILE
    from ray_memprof.wording import span_text

    name = run_dir.parent.name
    with database.open_run(run_dir) as connection:
        rows = questions.rows_of(connection, "peak_by_rank")
        peaks = {int(row["rank"]): int(row[f"{measure}_peak_bytes"]) for row in rows}
        if not peaks or (isinstance(rank, int) and rank not in peaks):
            raise ConfigError(f"{name}: nothing was recorded of rank {rank}", hint=f"see {run_dir}/logs")
        unsure = {int(row["rank"]) for row in rows if is_lower_bound(row, measure)}
        fullest = max(peaks, key=lambda one: (peaks[one], -one))
        who = rank if isinstance(rank, int) else fullest
        stage, path, step = _span_of_peak(connection, who, measure, peaks[who])
        found = diagnose.lines(diagnose.findings(connection), most=1)
    report = run_dir / REPORT_FILE
    where = f"stage {stage}, {span_text(path, step)}" if stage else "no span"
    details = (
        f"rank {who} has {at_least(size_text(peaks[who]), who in unsure)} in {where}",
        *found,
        f"report: {report}" if report.exists() else f"run folder: {run_dir}",
    )
    if rank == "mean":
        return Measured(sum(peaks.values()) // len(peaks), f"{name}, mean of {len(peaks)} ranks", details)
    return Measured(peaks[who], f"{name}, rank {who}", details)


def _span_of_peak(
    connection: "duckdb.DuckDBPyConnection", rank: int, measure: str, peak: int
) -> tuple[str | None, str | None, int | None]:
    """Stage, path and step of the innermost span in which `measure` reached `peak`; None: outside of all spans."""
    nothing = (0, None, None, None)
    most, stage, path, step = connection.execute(_HIGHEST.format(measure), [rank]).fetchone() or nothing
    if most >= peak:
        return stage, path, step
    # The sampler saw the peak between two span boundaries, or before the first span or after the last one.
    sample = connection.execute(_HIGHEST_SAMPLE, [rank]).fetchone() if measure == "device_used" else None
    found = connection.execute(_INNERMOST, [rank, sample[1]]).fetchone() if sample else None
    return (found[0], found[1], found[2]) if found else (None, None, None)
