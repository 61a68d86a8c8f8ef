"""What is told of a run elsewhere: its headlines, the peaks of ranks and stages, curves over time, and what was found.

    account = account_of(run_dir)
    account.numbers["rank0/denoise/allocated_peak_bytes"]       # 19058924544

Takes the tables of a run, finished or failed; leaves nothing. Numbers have the names and units of the columns of the
questions that they come from.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any

from ray_memprof.analysis.diagnosis.findings import diagnosed, found_markdown
from ray_memprof.query.bounds import is_lower_bound
from ray_memprof.query.database import open_run
from ray_memprof.query.questions import fetched, rows_of
from ray_memprof.store.run_files import REPORT_FILE

MOST_RANKS = 32
"""Of more ranks, only the fullest are told by rank; the headlines are of all."""
MEASURES = ("allocated", "reserved", "device_used")
_TOLD = (
    "allocated_peak_bytes",
    "peak_at_least",
    "device_used_peak_bytes",
    "device_total_bytes",
    "allocated_max_over_mean",
    "device_used_max_over_mean",
    "unexplained_bytes",
    "unexplained_fraction",
    "num_ranks",
    "num_checked",
    "num_exact",
)
"""Columns of the question headlines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A slice of the run's time."""

    t_ns: int
    """When it begins, since 1970."""
    since_ns: int
    """The same since the first slice."""
    numbers: Mapping[str, int]
    """The most in it, by curve: rank0/allocated_bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The most that a rank held, in the whole run or in a stage of it."""

    rank: int
    stage: str
    """"": of the whole run."""
    measure: str
    """allocated, reserved or device_used."""
    peak_bytes: int
    is_at_least: bool = False
    """It may have been more: before the first event, or of device_used, between the boundaries of spans."""

    @property
    def name(self) -> str:
        """rank0/allocated_peak_bytes, or rank0/denoise/allocated_peak_bytes."""
        stage = f"{self.stage}/" if self.stage else ""
        return f"rank{self.rank}/{stage}{self.measure}_peak_bytes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """One run, as other services are told."""

    name: str
    run_id: str
    facts: Mapping[str, str]
    """Words: status, source, workload, git_commit, reason; only those that are not empty."""
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    start_ns: int | None
    """Since 1970; None: the driver of the run wrote no row."""
    end_ns: int | None
    headlines: Mapping[str, int | float]
    """Columns of the question of that name; those without a value are left out."""
    peaks: Sequence[Peak]
    """By rank; first of the whole run, then of its stages."""
    moments: Sequence[Moment]
    """In order of time."""
    findings: str
    """Markdown: how the run ended, and what keeps its peak high."""
    num_severities: Mapping[str, int]
    """How many findings there are, by severity."""
    num_left_out: int
    """Ranks that have no numbers and curves of their own."""
    report: Path | None
    """report.html, if it has been written."""

    @property
    def title(self) -> str:
        """<name>/<run_id>, as commands take it."""
        return f"{self.name}/{self.run_id}"

    @property
    def numbers(self) -> dict[str, int | float]:
        """The headlines and the peaks, by name; of a peak that may have been more also at_least/<name>: 1."""
        peaks = {peak.name: peak.peak_bytes for peak in self.peaks}
        bounds = {f"at_least/{peak.name}": 1 for peak in self.peaks if peak.is_at_least}
        return {**self.headlines, **peaks, **bounds}

    @property
    def is_ok(self) -> bool:
        """Whether the run ended well."""
        return self.facts.get("status") == "ok"


def account_of(run_dir: Path) -> Account:
    """Read what is told of a run.

    Raises:
        ConfigError: `run_dir` is no run, or cannot be read.
    """
    found = diagnosed(run_dir)
    with open_run(run_dir, shared_by="headlines") as connection:
        row = next(iter(fetched(connection, "FROM runs")), {})
        headlines = next(iter(rows_of(connection, "headlines")), {})
        ranks = rows_of(connection, "peak_by_rank")
        fullest = nlargest(MOST_RANKS, ranks, key=lambda row: row["device_used_peak_bytes"] or 0)
        shown = sorted(row["rank"] for row in fullest)
        stages = rows_of(connection, "peak_by_stage", shown)
        slices = rows_of(connection, "timeline", shown)
    of_ranks = [{**row, "stage": ""} for row in ranks if row["rank"] in shown]
    severities = [one.severity for one in found.findings]
    report = run_dir / REPORT_FILE
    return Account(
        name=row.get("name") or run_dir.parent.name,
        run_id=row.get("run_id") or run_dir.name,
        facts={
            name: str(row[name])
            for name in ("status", "source", "workload", "git_commit", "reason")
            if row.get(name)
        },
        config=json.loads(row.get("config") or "{}"),
        versions=json.loads(row.get("versions") or "{}"),
        start_ns=row.get("start_ns"),
        end_ns=row.get("end_ns"),
        headlines={name: _number(headlines[name]) for name in _TOLD if headlines.get(name) is not None},
        peaks=sorted(_peaks([*of_ranks, *stages]), key=lambda peak: peak.rank),
        moments=list(_moments(slices)),
        findings=found_markdown([found]),
        num_severities={one: severities.count(one) for one in dict.fromkeys(severities)},
        num_left_out=len(ranks) - len(shown),
        report=report if report.is_file() else None,
    )


def _peaks(rows: Sequence[dict[str, Any]]) -> Iterator[Peak]:
    for row in rows:
        for measure in MEASURES:
            if (peak_bytes := row[f"{measure}_peak_bytes"]) is not None:
                yield Peak(
                    rank=row["rank"],
                    stage=row["stage"],
                    measure=measure,
                    peak_bytes=peak_bytes,
                    is_at_least=is_lower_bound(row, measure),
                )


def _number(value: bool | int | float) -> int | float:
    """A flag as 0 or 1, for services that know only numbers."""
    return int(value) if isinstance(value, bool) else value


def _moments(slices: Sequence[Mapping[str, Any]]) -> Iterator[Moment]:
    """A moment for each slice of which something was seen."""
    starts: dict[int, dict[str, int]] = {}
    for row in slices:
        numbers = starts.setdefault(row["start_ns"], {})
        for name in (f"{measure}_bytes" for measure in MEASURES):
            if row[name] is not None:
                numbers[f"rank{row['rank']}/{name}"] = row[name]
    first = min(starts, default=0)
    for start in sorted(starts):
        yield Moment(t_ns=start, since_ns=start - first, numbers=starts[start])


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A configuration by full key: {"parallel.ulysses": "2"}; keys without a value are left out."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = str(value)
    return found
