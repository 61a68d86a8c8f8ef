"""Figures over time of a run: who held the memory of a rank, with its peak marked, and all ranks in one figure.

    area(Shown(moments, slices, bands), frame)       # rows of timeline_by_account, timeline and stage_bands

plots.py says what a figure is made of; this module writes no file.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ray_memprof.report.plots import ACCOUNTS, HATCH, SIZE, Figure, Row, dash_of, rank_colour
from ray_memprof.report.words import ON_GPU, Words
from ray_memprof.wording import at_least, size_text, unit_of

MOST_BANDS = 200
"""The most stages that are drawn behind an area; if there are more, the shortest are too narrow to be seen."""
MOST_ALIVE = 6
"""The most kinds of tensors that are named at a peak."""
FULL_FRACTION = 0.7
"""If a device is filled above this share, a line shows its size; else the line would make the figure too flat."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The axes that all figures over time of a run share, so that ranks are easy to compare."""

    first_ns: int
    length_s: float
    top_bytes: int
    device_bytes: int | None

    def beginning_with(self, slices: Sequence[Row]) -> "Frame":
        """The same axes for the slices of another run, which begins at 0 s, too."""
        return replace(self, first_ns=min(row["start_ns"] for row in slices))

    def seconds(self, t_ns: int) -> float:
        """Seconds since the first slice of the run began."""
        return round((t_ns - self.first_ns) / 1e9, 4)

    @property
    def unit(self) -> tuple[str, int]:
        """The unit of the axes of sizes, and its bytes."""
        return unit_of(max(self.top_bytes, self.full_bytes or 0))

    @property
    def full_bytes(self) -> int | None:
        """Size of the device if the run comes near it, else None."""
        if self.device_bytes and self.top_bytes > FULL_FRACTION * self.device_bytes:
            return self.device_bytes
        return None


def frame(slices: Sequence[Row], peaks: Sequence[Row], base: Sequence[Row] = ()) -> Frame:
    """The axes for the rows of timeline and of peak_by_rank, wide enough for the slices of a base run."""
    spans = [
        (min(row["start_ns"] for row in rows), max(row["end_ns"] for row in rows))
        for rows in (slices, base)
        if rows
    ]
    return Frame(
        first_ns=spans[0][0],
        length_s=max(end - start for start, end in spans) / 1e9,
        top_bytes=max((row["device_used_bytes"] or 0 for row in (*slices, *base)), default=0),
        device_bytes=max((row["device_total_bytes"] or 0 for row in peaks), default=0) or None,
    )


@dataclass(frozen=True, slots=True)
class OfRank:
    """What is drawn of one rank."""

    moments: Sequence[Row]
    """Of timeline_by_account."""
    slices: Sequence[Row]
    """Of timeline."""
    bands: Sequence[Row]
    """Of stage_bands."""
    peak: Row | None = None
    """Of peak_moment."""
    alive: Sequence[Row] = ()
    """Of alive_at_peak_by_category."""


def area(rank: OfRank, frame: Frame, words: Words = ON_GPU, base: Sequence[Row] = ()) -> Figure:
    """Who held the memory of one rank over time: stacked areas with the stages behind them and the peak marked.

    `base` are the slices of the same rank of a base run; both runs begin at 0 s.
    """
    moments = rank.moments
    starts = [row["start_ns"] for row in rank.bands]
    names = [row["stage"] for row in rank.bands]
    found = [bisect_right(starts, row["t_ns"]) - 1 for row in moments]
    stages = [names[index] if index >= 0 else "before the first stage" for index in found]
    x = [frame.seconds(row["t_ns"]) for row in moments]
    # This line has no height and is not seen: it only adds the stage to what hovering shows.
    where: Row = {"type": "scatter", "x": x, "y": [0] * len(x), "mode": "lines", "line": {"width": 0}}
    where |= {"text": stages, "hovertemplate": "in <b>%{text}</b><extra></extra>", "showlegend": False}
    held = [account for account in ACCOUNTS if any(row[f"{account}_bytes"] for row in moments)]
    layers = [
        _layer(account, words.accounts.get(account, account), [row[f"{account}_bytes"] for row in moments])
        for account in held
    ]
    used = words.measures["device_used"]
    lines = [_outline(used, rank.slices, frame, "var:ink")]
    if base:
        lines.append(_outline(f"{used}, base run", base, frame.beginning_with(base), "var:bad"))
    layout = {**_over_time(frame), **_bands(rank.bands, frame)}
    if rank.peak is not None:
        lines.append(_marker(rank.peak, rank.alive, frame, words))
        layout["annotations"] = [*layout["annotations"], _note(rank.peak, frame)]
    return {
        "data": [where, *layers, *lines],
        "layout": layout,
        "unit_bytes": frame.unit[1],
        "height": 420,
    }


def _marker(peak: Row, alive: Sequence[Row], frame: Frame, words: Words) -> Row:
    """The point at which a rank had most memory in tensors; hovering shows what was alive."""
    listed = [f"{size_text(row['bytes'])} {kind_text(row)}" for row in alive[:MOST_ALIVE]]
    return {
        "type": "scatter",
        "name": f"peak of {words.measures['allocated']}",
        "mode": "markers",
        "x": [frame.seconds(peak["t_ns"])],
        "customdata": [peak["allocated_bytes"]],
        "text": ["\n".join(["", *listed])],
        "meta": {"size": "y", "lines": True},
        "marker": {
            "symbol": "diamond",
            "size": 11,
            "color": "var:ink",
            "line": {"width": 2, "color": "var:paper"},
        },
        "hovertemplate": f"peak: {SIZE}%{{text}}<extra></extra>",
    }


def kind_text(row: Row) -> str:
    """What tensors are, in words: "weight of dit"; None: it is not known."""
    category = row["category"] or "tensors, category not recorded"
    return f"{category} of {row['component']}" if row["component"] else category


def _note(peak: Row, frame: Frame) -> Row:
    """Rank, size and time of a peak beside its marker, where there is room: inwards, and away from the upper edge."""
    x, y = frame.seconds(peak["t_ns"]), peak["allocated_bytes"] / frame.unit[1]
    is_right = x > frame.length_s / 2
    is_high = peak["allocated_bytes"] > 0.35 * frame.top_bytes
    size = at_least(size_text(peak["allocated_bytes"]), peak["peak_at_least"])
    return {
        "name": "peak",
        "text": f"peak of rank {peak['rank']}\n{size} at {x:,.2f} s",
        "x": x,
        "y": y,
        "xanchor": "right" if is_right else "left",
        "ax": -18 if is_right else 18,
        "ay": 40 if is_high else -40,
        "arrowcolor": "var:ink",
        "arrowwidth": 1.5,
        "standoff": 6,
        "font": {"color": "var:ink"},
        "bgcolor": "var:paper",
        "bordercolor": "var:ink",
        "borderpad": 3,
    }


def _layer(account: str, name: str, sizes: list[int]) -> Row:
    """One area of the stack, without x: report.js takes the x of the figure's first trace."""
    colour = f"var:{account}"
    trace: Row = {
        "type": "scatter",
        "name": name,
        "stackgroup": "held",
        "mode": "lines",
    }
    trace |= {"line": {"shape": "hv", "width": 0}, "fillcolor": colour}
    if account == "cached":
        trace["fillpattern"] = HATCH
    trace |= {"customdata": sizes, "meta": {"size": "y"}}
    return {**trace, "hovertemplate": SIZE}


def _outline(name: str, slices: Sequence[Row], frame: Frame, colour: str) -> Row:
    line = {"shape": "hv", "width": 1.5, "color": colour, "dash": "dot"}
    return {**_line(name, slices, frame, "device_used_bytes"), "line": line}


def _line(name: str, slices: Sequence[Row], frame: Frame, column: str) -> Row:
    known = [row for row in slices if row[column] is not None]
    return {
        "type": "scatter",
        "name": name,
        "mode": "lines",
        "x": [frame.seconds(row["start_ns"]) for row in known],
        "customdata": [row[column] for row in known],
        "meta": {"size": "y"},
        "hovertemplate": SIZE,
    }


def ranks_over_time(
    slices: Sequence[Row], spread: Sequence[Row], ranks: Sequence[int], frame: Frame
) -> Figure:
    """Device memory in use of some ranks in one figure; `spread` is the range of all ranks if there are more."""
    data: list[Row] = []
    if spread:
        style = {"shape": "hv", "width": 0, "color": "var:others"}
        low, high = (_line(f"{end} of all ranks", spread, frame, f"{end}_bytes") for end in ("min", "max"))
        data = [
            {**low, "line": style, "showlegend": False},
            {**high, "line": style, "fill": "tonexty", "fillcolor": "var:spread"},
        ]
    for position, rank in enumerate(ranks):
        rows = [row for row in slices if row["rank"] == rank]
        line = {"shape": "hv", "width": 2, "color": rank_colour(position), "dash": dash_of(position)}
        data.append({**_line(f"rank {rank}", rows, frame, "device_used_bytes"), "line": line})
    layout = {**_over_time(frame), "legend": {"traceorder": "normal"}}
    return {"data": data, "layout": layout, "unit_bytes": frame.unit[1], "height": 420}


def _over_time(frame: Frame) -> Row:
    unit, unit_bytes = frame.unit
    top = max(frame.top_bytes, frame.full_bytes or 0) / unit_bytes
    layout: Row = {
        "xaxis": {"ticksuffix": " s", "range": [0, frame.length_s]},
        "yaxis": {"ticksuffix": f" {unit}", "range": [0, 1.06 * top or 1]},
        "hovermode": "x unified",
    }
    if frame.full_bytes:
        y = frame.full_bytes / unit_bytes
        line = {"color": "var:bad", "width": 1.5, "dash": "dash"}
        layout["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}
        ]
    return layout


def _bands(bands: Sequence[Row], frame: Frame) -> Row:
    """Stages as shapes behind the areas; report.js gives their names a lane of their own above the figure."""
    shapes: list[Row] = list(_over_time(frame).get("shapes", []))
    notes: list[Row] = []
    longest = sorted(
        range(len(bands)), key=lambda number: bands[number]["start_ns"] - bands[number]["end_ns"]
    )
    for number in sorted(longest[:MOST_BANDS]):
        row = bands[number]
        start, end = frame.seconds(row["start_ns"]), frame.seconds(row["end_ns"])
        place = {"xref": "x", "yref": "paper", "x0": start, "x1": end, "y0": 0, "y1": 1}
        colour = f"var:band{number % 2}"
        shapes.append({"type": "rect", **place, "fillcolor": colour, "line": {"width": 0}, "layer": "below"})
        note = {"text": row["stage"], "name": f"band {(end - start) / (frame.length_s or 1):.4f}"}
        place = {"xref": "x", "yref": "paper", "x": (start + end) / 2, "y": 1, "yanchor": "bottom"}
        notes.append({**note, **place, "showarrow": False, "font": {"color": "var:ink"}})
    return {"shapes": shapes, "annotations": notes}
