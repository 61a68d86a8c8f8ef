"""Between which values a figure of a run truly lies, where the run's tables give it only roughly.

    certain = Certainty(inexact_bytes={0: 512}, lower_bounds=frozenset({1}))
    certain.interval_of(2048.0, "peak_allocated", rank=0)      # Interval(least=1536.0, most=2560.0)

Imported snapshots are rough in two ways: the replay of a rank may be off by ranks.inexact_bytes, and its peak may lie
before its first event (ranks.peak_at_least). Takes the table ranks; leaves nothing.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import duckdb

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_PEAKS = ("peak_allocated", "peak_reserved", "peak_active")
"""Measures that may have been higher before the first event."""
_REPLAYED = (*_PEAKS, "cached", "fragmentation")
"""Measures in bytes that come from the replay, and are off where it is."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The least and the most that a figure can be."""

    least: float
    most: float

    def meets(self, comparison: str, bound: "Interval") -> bool | None:
        """Whether a comparison (">", ">=", "<" or "<=") with a bound is true; None: it may be or not."""
        compare = COMPARISONS[comparison]
        ends = (self.least, bound.most), (self.most, bound.least)
        verdicts = {compare(*pair) for pair in ends}
        return verdicts.pop() if len(verdicts) == 1 else None


@dataclass(frozen=True, slots=True)
class Certainty:
    """How certain the figures of a run are, by rank."""

    inexact_bytes: Mapping[int, int] = field(default_factory=dict)
    """By how much the replay of a rank may be off; ranks that are exact may be left out."""
    lower_bounds: frozenset[int] = frozenset()
    """Ranks whose peaks may lie before their first event."""

    def error(self, measure: str, rank: int | None) -> int:
        """By how many bytes a measure of a rank, or of the worst rank or the mean (None), may be off."""
        if measure not in _REPLAYED:
            return 0
        known = self.inexact_bytes
        return max(known.values(), default=0) if rank is None else known.get(rank, 0)

    def is_lower_bound(self, measure: str, rank: int | None) -> bool:
        """Whether a measure of a rank, or of the worst rank or the mean (None), may be higher than is known."""
        return measure in _PEAKS and (bool(self.lower_bounds) if rank is None else rank in self.lower_bounds)

    def interval_of(self, value: float, measure: str, rank: int | None) -> Interval:
        """Where the figure `value` truly lies; `rank` is None for the worst rank and for the mean."""
        error = self.error(measure, rank)
        return Interval(value - error, math.inf if self.is_lower_bound(measure, rank) else value + error)

    def imbalance(self, value: float, largest: float | None, mean: float | None) -> Interval:
        """Where a largest peak / mean truly lies, of several ranks.

        Args:
            value: the ratio, 1 or more.
            largest: peak of allocated memory of the fullest rank, in bytes; None: not known.
            mean: of all ranks, in bytes; None: not known.
        """
        error = self.error("peak_allocated", None)
        if self.lower_bounds or (error and (largest is None or mean is None)):
            return Interval(1.0, math.inf)
        if not error or largest is None or mean is None:
            return Interval(value, value)
        most = (largest + error) / (mean - error) if mean > error else math.inf
        return Interval(max(1.0, (largest - error) / (mean + error)), most)


CERTAIN = Certainty()


def certainty_of(connection: duckdb.DuckDBPyConnection, schema: str, rank: int | None = None) -> Certainty:
    """How certain the figures of a run are.

    Args:
        connection: has the views of the run.
        schema: in which they are.
        rank: the only rank whose figures are looked at; None: all.
    """
    rows = connection.execute(f"SELECT rank, inexact_bytes, peak_at_least FROM {schema}.ranks").fetchall()
    mine = [row for row in rows if rank is None or row[0] == rank]
    return Certainty(
        {one: num_bytes for one, num_bytes, _ in mine if num_bytes},
        frozenset(one for one, _, is_late in mine if is_late),
    )
