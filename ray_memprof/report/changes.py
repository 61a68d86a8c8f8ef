"""What a picture of a run says of its base run: colours and signs of more and less, and what only the base run has.

    figure["data"][0] |= changed(trace, base_bytes)     # of a treemap or a flame graph
    changes_heat(rows, base_rows, "allocated")               # of stages and ranks

A colour is never alone in saying something: each change has its sign as a text, too. Writes no file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_memprof.report.plots import (
    MOST_RANKS,
    NUM_COLOURS,
    NUMBERS,
    Figure,
    Row,
    cells,
    heat_layout,
    largest,
)
from ray_memprof.wording import change_text, size_text

EQUAL_FRACTION = 0.02
"""Two sizes that are no further apart have the colour of no change: a run differs so much from its repetition."""
MUCH_FRACTION = 0.25
"""From here on a change has the darker of its two colours."""
SCALE = ("less2", "less1", "same", "more1", "more2")
"""Colours of report.css, from much less to much more."""
MOST_GONE = 4
"""The most things of the base run that are named; the others are counted."""
_IN_BASE = "<br>in the base run: %{customdata[0]:,d} bytes<extra></extra>"


def colour(size: int, base: int) -> str:
    """The name of the colour of a size; `base` is 0 where the base run has nothing."""
    change = size - base
    if abs(change) <= EQUAL_FRACTION * base:
        return "same"
    if abs(change) < MUCH_FRACTION * base:
        return "more1" if change > 0 else "less1"
    return "more2" if change > 0 else "less2"


def changed(trace: Row, base: Sequence[int]) -> Row:
    """Keys of a treemap or an icicle that shows changes.

    Args:
        trace: with the bytes of each node in `values`.
        base: bytes of each node in the base run; 0: it has no such node.
    """
    pairs = list(zip(trace["values"], base, strict=True))
    signs = [_sign(*pair) for pair in pairs]
    labels = trace["labels"]
    if trace["type"] == "treemap":
        # plotly.js writes only the label of a node that has others in it; a leaf has room for a second line.
        outer = set(trace["parents"])
        labels = [
            f"{label} ({sign})" if sign and name in outer else label
            for name, label, sign in zip(trace["ids"], labels, signs, strict=True)
        ]
        signs = [
            f"<br>{sign}" if sign and name not in outer else ""
            for name, sign in zip(trace["ids"], signs, strict=True)
        ]
    else:
        signs = [sign and f" ({sign})" for sign in signs]
    return {
        "labels": labels,
        # The second part is the change in words, where it is more than nothing.
        "customdata": [[there, sign] for there, sign in zip(base, signs, strict=True)],
        "marker": trace["marker"] | {"colors": [f"var:{colour(*pair)}" for pair in pairs]},
        "texttemplate": f"{trace['texttemplate']}%{{customdata[1]}}",
        "hovertemplate": trace["hovertemplate"].removesuffix("<extra></extra>") + _IN_BASE,
    }


def _sign(size: int, base: int) -> str:
    return "" if colour(size, base) == "same" else change_text(size - base, None, "bytes")


def gone_text(gone: Sequence[tuple[str, int]]) -> str:
    """A line on what only the base run has, the largest first; "": nothing.

    Args:
        gone: names, and bytes in the base run.
    """
    listed = sorted(((size, name) for name, size in gone if size > 0), key=lambda one: -one[0])
    if not listed:
        return ""
    named = [f"{size_text(size)} {name}" for size, name in listed[:MOST_GONE]]
    rest = listed[MOST_GONE:]
    if rest:
        named.append(f"{size_text(sum(size for size, _ in rest))} in {len(rest):,} more")
    return f"Only in the base run: {'; '.join(named)}."


def lacking(what: str) -> str:
    """The line under a picture that has nothing beside it."""
    return f"The base run has no {what}: this picture shows only this run."


def changes_heat(rows: Sequence[Row], base: Sequence[Row], measure: str) -> Figure | None:
    """By how much the peak of every stage on every rank differs from that of the base run; None: nothing to compare.

    Args:
        rows: of peak_by_stage.
        base: of the base run.
        measure: allocated, reserved, device_used or host_rss.
    """
    column = f"{measure}_peak_bytes"
    here, there = ({(row["stage"], row["rank"]): row[column] for row in of} for of in (rows, base))
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    ranks = sorted({row["rank"] for row in rows})
    sizes = [[_less(here, there, (stage, rank)) for rank in ranks] for stage in stages]
    known = [abs(size) for line in sizes for size in line if size is not None]
    if not known:
        return None
    gap = 2 if len(ranks) <= MOST_RANKS else 0
    trace, unit_bytes = cells(ranks, stages, sizes, gap=gap, hover="%{y}, rank %{x}, change", colours=SCALE)
    most = (largest(known) or unit_bytes) / unit_bytes
    trace |= {"zmin": -most, "zmax": most, "meta": {"size": "z", "signed": True}}
    if len(ranks) <= NUM_COLOURS:
        trace |= NUMBERS
    return {"data": [trace], **heat_layout(stages, ranks), "unit_bytes": unit_bytes}


def _less(
    here: Mapping[Any, int | None], there: Mapping[Any, int | None], key: tuple[str, int]
) -> int | None:
    size, base = here.get(key), there.get(key)
    return None if size is None or base is None else size - base


def unmatched_text(rows: Sequence[Row], base: Sequence[Row]) -> str:
    """A line on stages that only one of both runs has; "": there is none."""
    here, there = (dict.fromkeys(row["stage"] for row in of) for of in (rows, base))
    told = [
        f"{name}: {', '.join(found)}."
        for name, found in (
            ("Only in this run", [stage for stage in here if stage not in there]),
            ("Only in the base run", [stage for stage in there if stage not in here]),
        )
        if found
    ]
    return " ".join(told)
