"""Says in sentences what makes the peak of a run high, with the bytes and the key or variable that would change it.

    for finding in findings(connection): ...          # a connection of database.open_run
    $ ray-memprof diagnose latest

A rule is a pair of files of rules/: NAME.sql returns a row for each finding, NAME.py puts that row in words. Rules read
the questions of query/sql/ and the tables of evidence/, which are made once. Leaves temporary tables in memory.

To plan a rule takes DuckDB longer than to answer it. So some have a condition, ONLY_IF: without it they have no row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import duckdb

from ray_memprof.analysis.diagnosis.row_text import Row
from ray_memprof.query.questions import fetched

_HERE = Path(__file__).parent
EVIDENCE = (
    "settings",
    "networks",
    "stage_peaks",
    "ooms",
    "skews",
    "alive",
    "grown",
    "peak_tensors",
    "larger_batches",
)
"""Tables that rules share; each comes after those that it reads."""
SEVERE_FRACTION, NOTABLE_FRACTION = 0.10, 0.03
"""A finding is severe or notable from this share on of the most device memory that one of its ranks had in use."""

FATAL = frozenset(("out_of_memory",))
"""Rules that say what ended the run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says about one place of a run."""

    rule: str
    severity: str
    """severe, notable or minor, by the bytes as a share of the memory in use; severe if the finding ended the run."""
    is_peak: bool
    """Whether the bytes are part of a peak; else they are only part of a stage below the peak."""
    ranks: tuple[int, ...]
    stage: str
    component: str | None
    bytes: int
    sentence: str
    knob: str
    """The key or variable that would change it, or where to look."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A pair of files of rules/."""

    name: str
    sentence: Callable[[Row], str]
    knob: Callable[[Row], str]
    only_if: str = "TRUE"
    """SQL of a condition; where it is false, the rule is not asked, because it has no row."""


def _rule(name: str) -> Rule:
    words = import_module(f"{__package__}.rules.{name}")
    return Rule(name, words.sentence, words.knob, getattr(words, "ONLY_IF", "TRUE"))


RULES = tuple(_rule(path.stem) for path in sorted((_HERE / "rules").glob("*.sql")))
"""Every rule, by name: the order in which they are asked changes nothing, because findings are sorted."""


def rule_text(name: str) -> str:
    """The SQL of a rule or of evidence, its header included."""
    folder = "evidence" if name in EVIDENCE else "rules"
    return (_HERE / folder / f"{name}.sql").read_text(encoding="utf-8")


def findings(connection: duckdb.DuckDBPyConnection) -> list[Finding]:
    """The findings of every rule: first what ended the run, then what is part of a peak, each by bytes."""
    for name in EVIDENCE:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS\n{rule_text(name)}")
    used = _device_used(connection)
    asked = rules_to_ask(connection)
    found = [_finding(rule, row, used) for rule in asked for row in fetched(connection, rule_text(rule.name))]
    return sorted(
        found,
        key=lambda one: (one.rule not in FATAL, not one.is_peak, -one.bytes, one.rule, one.ranks, one.stage),
    )


def rules_to_ask(connection: duckdb.DuckDBPyConnection) -> list[Rule]:
    """The rules whose condition holds; the tables of evidence are there."""
    (holds,) = connection.execute(f"SELECT {', '.join(rule.only_if for rule in RULES)}").fetchall()
    return [rule for rule, is_asked in zip(RULES, holds, strict=True) if is_asked]


def lines(found: Sequence[Finding], most: int | None = None) -> list[str]:
    """Findings for the console, two lines each."""
    listed = []
    for one in found[:most]:
        below = "" if one.is_peak else ", below the peak"
        listed += [f"{one.severity}{below}: {one.sentence}", f"  knob: {one.knob}"]
    return listed


def _device_used(connection: duckdb.DuckDBPyConnection) -> dict[int, int]:
    """The most memory that is in use on each rank's device; on the CPU, the most that is allocated."""
    rows = connection.execute(
        "SELECT rank, GREATEST(device_used_peak_bytes, allocated_peak_bytes) FROM rank_peaks()"
    ).fetchall()
    return dict(rows)


def _finding(rule: Rule, row: Row, used: dict[int, int]) -> Finding:
    share = row["bytes"] / max(1, *(used.get(rank, 0) for rank in row["ranks"]))
    is_severe = share >= SEVERE_FRACTION or rule.name in FATAL
    severity = "severe" if is_severe else "notable" if share >= NOTABLE_FRACTION else "minor"
    return Finding(
        rule=rule.name,
        severity=severity,
        is_peak=row["is_peak"],
        ranks=tuple(row["ranks"]),
        stage=row["stage"],
        component=row["component"],
        bytes=row["bytes"],
        sentence=rule.sentence(row),
        knob=rule.knob(row),
    )
