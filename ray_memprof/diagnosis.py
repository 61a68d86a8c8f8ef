"""What holds the peak of a run back, in sentences: rules over its tables, each with the bytes and the knob to turn.

    for finding in findings(connection): ...          # a connection of db.open_run
    $ ray-memprof diagnose latest

A rule is a file of sql/diagnosis/: it has a row where it speaks, and says in its header from which size on, and why.
It reads the questions of sql/ and the evidence below, which is gathered once. Leaves temporary tables in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from ray_memprof import knobs
from ray_memprof.questions import SQL_DIR
from ray_memprof.wording import rank_text, size_text

RULES_DIR = SQL_DIR / "diagnosis"
EVIDENCE = ("settings", "stage_peaks", "ooms", "skews", "alive", "grown")
"""Tables that rules share, in an order in which each finds those that it reads."""
SEVERE_FRACTION, NOTABLE_FRACTION = 0.10, 0.03
"""Of the most device memory that a rank of the finding had in use: what a second look is worth."""

FATAL = frozenset(("out_of_memory",))
"""Rules that say what ended the run."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says of one place."""

    rule: str
    severity: str
    """severe, notable or minor: bytes as a share of the memory in use; severe where it ended the run."""
    is_peak: bool
    """The bytes are part of a peak, and not only of some stage below it."""
    ranks: tuple[int, ...]
    stage: str
    component: str | None
    bytes: int
    sentence: str
    knob: str
    """What to change: see knobs.py."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A file of sql/diagnosis, and its rows in words."""

    name: str
    sentence: Callable[[Row], str]
    knob: Callable[[Row], str]


def _who(row: Row) -> str:
    text = rank_text(row["ranks"])
    return text[0].upper() + text[1:]


def _verb(row: Row, one: str, several: str) -> str:
    return one if len(row["ranks"]) == 1 else several


def _holds_more(row: Row) -> str:
    what = f"for {row['component']}" if row["component"] else "for no component"
    return (
        f"{_who(row)} {_verb(row, 'holds', 'hold')} {size_text(row['bytes'])} more {what} in {row['stage']} than "
        f"rank {row['typical_rank']}, whose peak there is the typical one."
    )


def _decodes_alone(row: Row) -> str:
    others = "the other rank waits" if row["num_others"] == 1 else f"the {row['num_others']} other ranks wait"
    return f"{_who(row)} decodes alone and needs {size_text(row['bytes'])} for it, while {others}."


def _encode_peaks(row: Row) -> str:
    return f"Encoding the text makes the peak of {_above_next(row)}"


def _decode_peaks(row: Row) -> str:
    return f"Decoding makes the peak of {_above_next(row)}"


def _above_next(row: Row) -> str:
    return (
        f"{rank_text(row['ranks'])}: {size_text(row['bytes'])} more than {row['other_stage']}, "
        "the next stage below it."
    )


def _nccl_holds(row: Row) -> str:
    groups = "one process group" if row["num_groups"] == 1 else f"{row['num_groups']} process groups"
    return f"NCCL holds {size_text(row['bytes'])} for {groups} on {rank_text(row['ranks'])} when the device is fullest."


def _fragments(row: Row) -> str:
    each = f" on each of {row['num_streams']} streams" if row["num_streams"] > 1 else ""
    text = (
        f"Reserved memory of {rank_text(row['ranks'])} peaks in {row['stage']}, {size_text(row['bytes'])} above the "
        f"most in use at once{each}"
    )
    if row["is_expandable"]:
        return f"{text}, with expandable segments."
    return f"{text}: expandable segments would give back at most that."


def _ffn_hidden(row: Row) -> str:
    return (
        f"The hidden layer of the feed-forward has {size_text(row['bytes'])} alive when denoise peaks on "
        f"{rank_text(row['ranks'])}."
    )


def _weights_fp32(row: Row) -> str:
    return (
        f"The diffusion transformer's weights are stored in fp32 on {rank_text(row['ranks'])}: half of them would do, "
        f"{size_text(row['bytes'])} less."
    )


def _t5_stays(row: Row) -> str:
    return (
        f"The text encoder is still on the device in the denoise loop, {size_text(row['bytes'])} of weights on "
        f"{rank_text(row['ranks'])}."
    )


def _starts_late(row: Row) -> str:
    wait = ", and the others wait for it at their first collective" if row["is_awaited"] else ""
    return f"{_who(row)} begins {row['late_ns'] / 1e9:.1f} s after the median rank{wait}."


def _outside_grows(row: Row) -> str:
    whose = "libraries" if row["account"] == "libraries" else "nobody who is known"
    return (
        f"Memory outside the allocator grows by {size_text(row['bytes'])} over {row['num_times']} visits of "
        f"{row['stage']} on {rank_text(row['ranks'])}; it belongs to {whose}."
    )


def _out_of_memory(row: Row) -> str:
    step = f" step {row['step']}" if row["step"] >= 0 else ""
    text = f"{_who(row)} ran out of device memory in {row['stage'] or 'no span'}{step}: "
    first = f"rank {row['first_rank']}, the first, " if len(row["ranks"]) > 1 else "it "
    first += _refused(row)
    unused = row["reserved_bytes"] - row["bytes"]
    text += f"{first}held {size_text(row['bytes'])} in tensors and {size_text(unused)} unused"
    if row["part_bytes"] is None:
        return f"{text}."
    owner = f"of {row['component']}" if row["component"] else "of no component"
    return f"{text}; the largest part is {size_text(row['part_bytes'])} {owner} ({row['category'] or 'of no kind'})."


def _refused(row: Row) -> str:
    """What was asked of the device, by whom, and what was free."""
    free = None if row["free_bytes"] is None else size_text(row["free_bytes"])
    if row.get("oom_by") is not None:
        return f"could get none for {row['oom_by']}{f' where {free} were free' if free else ''}, and "
    if row["asked_bytes"] is not None:
        return f"asked for {size_text(row['asked_bytes'])}{f' where {free} were free' if free else ''}, and "
    return f"had {free} free, and " if free else ""


def _retries(row: Row) -> str:
    cost = f", at most {row['extra_ns'] / 1e9:.2f} s" if row["extra_ns"] else ""
    times = "once" if row["num_retries"] == 1 else f"{row['num_retries']} times"
    return (
        f"The device was full: the allocator of {rank_text(row['ranks'])} flushed its cache {times} in "
        f"{row['stage']}{cost}, with up to {size_text(row['bytes'])} held and not in use."
    )


RULES = (
    Rule("out_of_memory", _out_of_memory, knobs.out_of_memory),
    Rule("retries", _retries, knobs.retries),
    Rule("t5_stays", _t5_stays, knobs.t5_stays),
    Rule("weights_fp32", _weights_fp32, knobs.weights_fp32),
    Rule("ffn_hidden", _ffn_hidden, knobs.ffn_hidden),
    Rule("encode_peaks", _encode_peaks, knobs.encode_peaks),
    Rule("decodes_alone", _decodes_alone, knobs.decodes_alone),
    Rule("decode_peaks", _decode_peaks, knobs.decode_peaks),
    Rule("holds_more", _holds_more, knobs.holds_more),
    Rule("nccl_holds", _nccl_holds, knobs.nccl_holds),
    Rule("fragments", _fragments, knobs.fragments),
    Rule("outside_grows", _outside_grows, knobs.outside_grows),
    Rule("starts_late", _starts_late, knobs.starts_late),
)


def rule_text(name: str) -> str:
    """The SQL of a rule or of evidence, its header included."""
    return (RULES_DIR / f"{name}.sql").read_text(encoding="utf-8")


def findings(connection: duckdb.DuckDBPyConnection) -> list[Finding]:
    """What every rule says of the run: what ended it first, then what is part of a peak, then by bytes."""
    for name in EVIDENCE:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS\n{rule_text(name)}")
    used = _device_used(connection)
    found = [
        _finding(rule, row, used)
        for rule in RULES
        for row in connection.sql(rule_text(rule.name)).to_arrow_table().to_pylist()
    ]
    return sorted(
        found,
        key=lambda one: (one.rule not in FATAL, not one.is_peak, -one.bytes, one.rule, one.ranks, one.stage),
    )


def lines(found: Sequence[Finding], most: int | None = None) -> list[str]:
    """Findings for the console, two lines each."""
    listed = []
    for one in found[:most]:
        below = "" if one.is_peak else ", below the peak"
        listed += [f"{one.severity}{below}: {one.sentence}", f"  knob: {one.knob}"]
    return listed


def _device_used(connection: duckdb.DuckDBPyConnection) -> dict[int, int]:
    """The most that is in use on each rank's device; on the CPU, what is allocated."""
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
