"""Limits on what a comparison of runs may show: parsed from text, then checked against the numbers of the runs.

    parse("peak_device_used > +2%")                # of the worst rank: it grew by more than this
    parse("denoise.peak_allocated > +100 MiB")     # in a stage, or in any span path that compare lists
    parse("rank3.peak_reserved > 16 GiB")          # of one rank: the value itself, not its change against the base
    parse("mean.denoise.duration > +0.5 s")        # of the mean over the ranks

An amount with a sign is a change against the base; a percentage always needs a sign. Measures, ranks and spans are
those of compare. If one of the two runs lacks the value, this is an error of the user, and the limit does not count as
held. Figures of imported snapshots may be known only roughly; a limit within which the truth may lie on either side is
told as not known, and counts as exceeded.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from ray_memprof.analysis.comparison.certainty import CERTAIN, Certainty, Interval
from ray_memprof.errors import ConfigError
from ray_memprof.wording import change_text, did_you_mean, number_text, parse_size

_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_LIMIT = re.compile(
    r"\s*(?:(?P<who>mean|rank(?P<rank>\d+))\.)?(?:(?P<path>[^<>=]+)\.)?(?P<measure>\w+)"
    r"\s*(?P<comparison>[<>]=?)\s*(?P<sign>[+-]?)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|[A-Za-z]*)\s*"
)
_EXAMPLE = "'peak_device_used > +2%', 'denoise.peak_allocated > +100 MiB', 'rank0.peak_reserved > 16 GiB'"


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit; it is exceeded if `comparison` is true of the figure and the bound."""

    text: str
    measure: str
    path: str | None
    """None: the whole run."""
    rank: int | None
    """None: the figure is that of the worst rank, or the mean over the ranks."""
    is_mean: bool
    comparison: str
    is_change: bool
    amount: float
    """In the unit of the measure; a change may be negative."""
    unit: str
    """bytes, s, %, or empty for a count or a ratio."""

    def bound(self, base: float) -> float:
        """The bound that the figure is compared with, if the base has the figure `base`."""
        if not self.is_change:
            return self.amount
        # abs, because unexplained memory can be negative, and a growth must raise the bound there too.
        return base + (abs(base) * self.amount / 100 if self.unit == "%" else self.amount)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of checking one limit against one run."""

    limit: str
    run: int
    """Number of the run, from 1."""
    is_exceeded: bool
    unit: str
    base_value: float | None
    """None: the base has no such figure, and the limit is not on a change."""
    value: float
    bound: float
    rank: int | None
    """The rank that the value is of; None: it is of no single rank."""
    is_unknown: bool = False
    """The truth may lie on either side of the bound; the limit counts as exceeded then."""
    why_unknown: str = ""
    """What is known only roughly; empty: the verdict is known."""


@dataclass(frozen=True, slots=True)
class _Measured:
    value: float
    rank: int | None
    unit: str


def parse(text: str) -> Limit:
    """The limit that a text describes.

    Raises:
        ConfigError: the text is no limit.
    """
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"--fail-if {text!r} is no limit", hint=f"[WHERE.]MEASURE > [+]AMOUNT, as in {_EXAMPLE}"
        )
    sign, unit = found["sign"], found["unit"]
    if unit == "%" and not sign:
        number = found["number"]
        raise ConfigError(f"--fail-if {text!r}: {number}% of what? A change has a sign", hint=f"+{number}%")
    amount, kind = _amount(text, found["number"], unit)
    return Limit(
        text=text.strip(),
        measure=found["measure"],
        path=found["path"],
        rank=int(found["rank"]) if found["rank"] else None,
        is_mean=found["who"] == "mean",
        comparison=found["comparison"],
        is_change=bool(sign),
        amount=-amount if sign == "-" else amount,
        unit=kind,
    )


def _amount(text: str, number: str, unit: str) -> tuple[float, str]:
    if unit in ("", "%"):
        return float(number), unit
    if unit in _SECONDS:
        return float(number) * _SECONDS[unit], "s"
    try:
        return float(parse_size(f"{number} {unit}")), "bytes"
    except ConfigError as error:
        raise ConfigError(
            f"--fail-if {text!r}: there is no unit {unit!r}",
            hint=f"%, B, KiB, MiB, GiB, KB, MB, GB, {', '.join(_SECONDS)}, or none for a count or a ratio",
        ) from error


def check(
    connection: duckdb.DuckDBPyConnection,
    limit: Limit,
    run: int,
    labels: list[str],
    certainty: Mapping[int, Certainty] | None = None,
) -> Check:
    """Check a limit against a run, with the table `compared` of compare.

    Args:
        connection: has the table.
        limit: the limit; it must not be exceeded.
        run: number of the run.
        labels: names of the runs, by number.
        certainty: how certain the figures of each run are, by its number; a run that is left out is exact.

    Raises:
        ConfigError: the run lacks the figure, the base lacks it though the limit needs it, or the unit does not fit.
    """
    there = _measured(connection, limit, run)
    base = _measured(connection, limit, 0)
    if there is None or (base is None and limit.is_change):
        raise _lacking(connection, limit, labels[run if there is None else 0])
    if limit.unit not in (there.unit, "%"):
        raise _unfit(limit, there.unit)
    bound = limit.bound(0.0 if base is None else base.value)
    known = certainty or {}
    allowed = Interval(bound, bound)
    if limit.is_change and base is not None:
        allowed = _bounds(limit, _interval(connection, limit, 0, base.value, known))
    value = _interval(connection, limit, run, there.value, known)
    verdict = value.meets(limit.comparison, allowed)
    return Check(
        limit=limit.text,
        run=run,
        is_exceeded=verdict is not False,
        unit=there.unit,
        base_value=None if base is None else base.value,
        value=there.value,
        bound=bound,
        rank=there.rank,
        is_unknown=verdict is None,
        why_unknown="" if verdict is not None else _why(limit, run, known),
    )


def _bounds(limit: Limit, base: Interval) -> Interval:
    """Between which values the bound lies, if the base's figure is one of `base`."""
    ends = [limit.bound(base.least), limit.bound(base.most)]
    if any(map(math.isnan, ends)):  # infinity less infinity
        return Interval(-math.inf, math.inf)
    return Interval(min(ends), max(ends))


def _interval(
    connection: duckdb.DuckDBPyConnection,
    limit: Limit,
    run: int,
    value: float,
    known: Mapping[int, Certainty],
) -> Interval:
    """Between which values a figure of a run truly lies."""
    certain = known.get(run, CERTAIN)
    if limit.measure != "imbalance":
        return certain.interval_of(value, limit.measure, limit.rank)
    rows = _rows(connection, run, "peak_allocated", limit.path, None)
    largest, mean = (rows[0][0], rows[0][1]) if rows else (None, None)
    return certain.imbalance(value, largest, mean)


def _why(limit: Limit, run: int, known: Mapping[int, Certainty]) -> str:
    """Why a verdict is not known: what of the run or of the base is known only roughly."""
    measure = "peak_allocated" if limit.measure == "imbalance" else limit.measure
    runs = [known.get(number, CERTAIN) for number in ((run, 0) if limit.is_change else (run,))]
    reasons = []
    if any(one.is_lower_bound(measure, limit.rank) for one in runs):
        which = "one of them" if limit.is_change else "it"
        reasons.append(f"{which} is a lower bound: what was held before the first event is not known")
    if error := max(one.error(measure, limit.rank) for one in runs):
        which = "one of them" if limit.is_change else "it"
        reasons.append(f"{which} may be off by {error:,} bytes: the replay is right only within them")
    return "; ".join(reasons)


def _measured(connection: duckdb.DuckDBPyConnection, limit: Limit, run: int) -> _Measured | None:
    rows = _rows(connection, run, limit.measure, limit.path, limit.rank)
    if not rows:
        return None
    ((value, mean, rank, unit),) = rows
    if limit.is_mean:
        value, rank = mean, None
    # NaN and infinity are no numbers: a comparison with NaN is never true, so its limit would always hold.
    if value is None or not math.isfinite(value):
        return None
    return _Measured(value, rank if limit.rank is None else limit.rank, unit)


def _rows(
    connection: duckdb.DuckDBPyConnection, run: int, measure: str, path: str | None, rank: int | None
) -> list[tuple[float | None, float | None, int | None, str]]:
    """Value, mean, rank and unit of a measure of a run: one row, or none if the run has no such value."""
    asked = {"run": run, "measure": measure, "path": path, "rank": rank}
    text = (Path(__file__).parent / "sql" / "value.sql").read_text(encoding="utf-8")
    return connection.execute(text, asked).fetchall()


def _lacking(connection: duckdb.DuckDBPyConnection, limit: Limit, label: str) -> ConfigError:
    """An error that says what is missing: the measure, the rank or span, or only this run's value for them."""
    measures = _column(connection, "SELECT DISTINCT measure FROM compared ORDER BY measure")
    start = f"--fail-if {limit.text!r}: "
    if limit.measure not in measures:
        hint = did_you_mean(limit.measure, measures, otherwise=f"there are {', '.join(measures)}")
        return ConfigError(f"{start}there is no measure {limit.measure!r}", hint=hint)
    whole = "" if limit.path is None else f" in {limit.path!r}"
    of = " as a mean over ranks" if limit.is_mean else "" if limit.rank is None else f" of rank {limit.rank}"
    asked = "SELECT DISTINCT path FROM compared WHERE measure = ? AND path IS NOT NULL ORDER BY path"
    paths = _column(connection, asked, limit.measure)
    if limit.path is not None and limit.path not in paths:
        every = "ray-memprof compare --format csv lists every span"
        hint = did_you_mean(limit.path, paths, otherwise=every)
    elif limit.is_mean:
        hint = "it is of all ranks together: leave out `mean.`"
    elif limit.path is None and paths and limit.rank is None:
        hint = f"there is {paths[0]}.{limit.measure}"
    else:
        hint = "a limit needs a figure that both runs have"
    return ConfigError(f"{start}{label} has no {limit.measure}{whole}{of}", hint=hint)


def _column(connection: duckdb.DuckDBPyConnection, sql: str, *parameters: str) -> list[str]:
    return [row[0] for row in connection.execute(sql, parameters).fetchall()]


def _unfit(limit: Limit, unit: str) -> ConfigError:
    given = {"": "no unit", "s": "a time", "bytes": "a size"}[limit.unit]
    wanted = {"": "a bare number", "s": "seconds (0.5 s)", "bytes": "a size (100 MiB)"}[unit]
    return ConfigError(
        f"--fail-if {limit.text!r} gives {given}", hint=f"{limit.measure} needs {wanted}, or +2%"
    )


def check_line(one: Check, label: str) -> str:
    """One line with the limit, the values of both runs, and what the limit allows."""
    was = moved = ""
    if one.base_value is not None:
        was = f"{number_text(one.base_value, one.unit)} -> "
        moved = f" ({change_text(one.value - one.base_value, one.base_value, one.unit)})"
    who = "" if one.rank is None else f" on rank {one.rank}"
    verdict = "not known" if one.is_unknown else "exceeded" if one.is_exceeded else "holds"
    why = f"; {one.why_unknown}" if one.why_unknown else ""
    return (
        f"limit {verdict}: {one.limit}: {was}{number_text(one.value, one.unit)}{moved}{who} in {label}, "
        f"bound {number_text(one.bound, one.unit)}{why}"
    )


def verdict_text(checks: Sequence[Check]) -> str:
    """How many limits do not hold: "2 of 5 limits exceeded, 1 not known"; empty if all hold."""
    unknown = sum(one.is_unknown for one in checks)
    exceeded = sum(one.is_exceeded for one in checks) - unknown
    if not exceeded and not unknown:
        return ""
    known = f"{exceeded} of {len(checks)} limits exceeded"
    if not unknown:
        return known
    return f"{known}, {unknown} not known" if exceeded else f"{unknown} of {len(checks)} limits not known"
