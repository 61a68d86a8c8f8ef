"""The report's figures as data for plotly.js: makes dicts of rows of the questions in sql/; writes no file.

    area(ask("timeline_by_account"), ask("timeline"), ask("stage_bands"), frame)     # who held the memory of a rank

Two things are left to templates/report.js, because only the browser knows them. A colour is "var:name" for the CSS
variable --name, so that figures follow the light, dark and print styles. Bytes are in customdata, meta.size names the
axis that shows them, and unit_bytes of the figure is that axis's unit: so hovering shows the exact number, and each
number is in the page only once.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

from ray_memprof.report.words import ON_GPU, Words
from ray_memprof.store.schema import CATEGORIES
from ray_memprof.wording import size_text, unit_of

MOST_RANKS = 16
"""The most ranks of a run that have figures of their own."""
MOST_LINES = 4
"""The most ranks that are lines in the figure of all ranks, if a run has more than MOST_RANKS."""
MOST_POINTS = 400
"""The most points of a line over steps; with more steps each point is the highest of several, to keep the peaks."""
MOST_BANDS = 200
"""The most stages that are drawn behind an area; if there are more, the shortest are too narrow to be seen."""
TENSORS = (*CATEGORIES, "uncategorised")
OUTSIDE = ("context", "nccl", "libraries", "others", "unexplained")
ACCOUNTS = (*TENSORS, "cached", *OUTSIDE)
"""The parts of the memory of a device, from the bottom of the figure upwards."""
SIZE = "%{hovertext} (%{customdata:,d} bytes)"
"""What hovering shows of a size; report.js writes the texts."""
NUM_COLOURS = 8
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
HATCH: dict[str, Any] = {
    "shape": "/",
    "size": 7,
    "solidity": 0.3,
    "fgcolor": "var:paper",
    "bgcolor": "var:cached",
}
"""The pattern of memory that is held but not in use: it can be told apart without seeing colours."""
FULL_FRACTION = 0.7
"""If a device is filled above this share, a line shows its size; else the line would make the figure too flat."""

Row = dict[str, Any]
Figure = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """The axes that all figures over time of a run share, so that ranks are easy to compare."""

    first_ns: int
    length_s: float
    top_bytes: int
    device_bytes: int | None

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


def frame(slices: Sequence[Row], peaks: Sequence[Row]) -> Frame:
    """The axes for the rows of timeline and of peak_by_rank."""
    first = min(row["start_ns"] for row in slices)
    return Frame(
        first_ns=first,
        length_s=(max(row["end_ns"] for row in slices) - first) / 1e9,
        top_bytes=max((row["device_used_bytes"] or 0 for row in slices), default=0),
        device_bytes=max((row["device_total_bytes"] or 0 for row in peaks), default=0) or None,
    )


def chosen(
    peaks: Sequence[Row],
    failed: Iterable[int] = (),
    most: int = MOST_RANKS,
    *,
    by: str = "device_used_peak_bytes",
) -> list[int]:
    """Ranks with figures of their own: all, or those that failed, rank 0, the emptiest rank and the fullest ones.

    Args:
        peaks: a row for each rank.
        failed: ranks that did not end well.
        most: the most ranks.
        by: the column that says how full a rank was.
    """
    if len(peaks) <= most:
        return [row["rank"] for row in peaks]
    by_size = [row["rank"] for row in sorted(peaks, key=lambda row: -row[by])]
    ranks = {row["rank"] for row in peaks}
    wanted = dict.fromkeys([*(rank for rank in failed if rank in ranks), 0, by_size[-1], *by_size])
    return sorted([rank for rank in wanted if rank in ranks][:most])


def area(
    moments: Sequence[Row], slices: Sequence[Row], bands: Sequence[Row], frame: Frame, words: Words = ON_GPU
) -> Figure:
    """Who held the memory of one rank over time: stacked areas with the stages behind them."""
    starts = [row["start_ns"] for row in bands]
    names = [row["stage"] for row in bands]
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
    return {
        "data": [where, *layers, _outline(words.measures["device_used"], slices, frame)],
        "layout": {**_over_time(frame), **_bands(bands, frame)},
        "unit_bytes": frame.unit[1],
        "height": 420,
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


def _outline(name: str, slices: Sequence[Row], frame: Frame) -> Row:
    return {
        **_line(name, slices, frame, "device_used_bytes"),
        "line": {"shape": "hv", "width": 1.5, "color": "var:ink", "dash": "dot"},
    }


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
        line = {"shape": "hv", "width": 2, "color": _rank_colour(position), "dash": _dash(position)}
        data.append({**_line(f"rank {rank}", rows, frame, "device_used_bytes"), "line": line})
    layout = {**_over_time(frame), "legend": {"traceorder": "normal"}}
    return {"data": data, "layout": layout, "unit_bytes": frame.unit[1], "height": 420}


def _rank_colour(position: int) -> str:
    return f"var:rank{position % NUM_COLOURS}"


def _dash(position: int) -> str:
    # Ranks do the same, so their lines lie on each other: gaps in the upper line show the lower one.
    return ("solid", "dash", "dot", "dashdot")[position % 4]


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
    """Stages as shapes behind the areas, with their names above; report.js hides names that do not fit."""
    shapes: list[Row] = list(_over_time(frame).get("shapes", []))
    notes: list[Row] = []
    # A name has a background of its own, because it may lie over dark areas.
    style = {"font": {"color": "var:ink"}, "bgcolor": "var:paper", "opacity": 0.8, "borderpad": 1}
    longest = sorted(
        range(len(bands)), key=lambda number: bands[number]["start_ns"] - bands[number]["end_ns"]
    )
    for number in sorted(longest[:MOST_BANDS]):
        row = bands[number]
        start, end = frame.seconds(row["start_ns"]), frame.seconds(row["end_ns"])
        place = {"xref": "x", "yref": "paper", "x0": start, "x1": end, "y0": 0, "y1": 1.09}
        colour = f"var:band{number % 2}"
        shapes.append({"type": "rect", **place, "fillcolor": colour, "line": {"width": 0}, "layer": "below"})
        note = {"text": row["stage"], "name": f"band {(end - start) / (frame.length_s or 1):.4f}"}
        place = {"xref": "x", "yref": "paper", "x": (start + end) / 2, "y": 1.085, "yanchor": "top"}
        notes.append({**note, **place, "showarrow": False, **style})
    return {"shapes": shapes, "annotations": notes, "margin": {"t": 38}}


def books(rows: Sequence[Row], words: Words = ON_GPU) -> Figure:
    """Who held the memory of each rank when its device was fullest: one bar for each rank."""
    ranks = list(dict.fromkeys(row["rank"] for row in rows))
    data = []
    for account in ("active", "cached", *OUTSIDE):
        sizes = [row["bytes"] for row in rows if row["account"] == account]
        if not any(sizes):
            continue
        trace: Row = {"type": "bar", "orientation": "h", "name": words.accounts.get(account, account)}
        trace |= {"y": [f"rank {rank}" for rank in ranks], "customdata": sizes, "meta": {"size": "x"}}
        trace["marker"] = {"color": f"var:{account}", "line": {"width": 1, "color": "var:paper"}}
        if account == "cached":
            trace["marker"]["pattern"] = HATCH
        data.append({**trace, "hovertemplate": f"%{{fullData.name}}: {SIZE}<extra>%{{y}}</extra>"})
    # As long as the longest bar: the parts of a rank lie on each other.
    unit, unit_bytes = unit_of(
        max(sum(row["bytes"] for row in rows if row["rank"] == rank) for rank in ranks)
    )
    layout: Row = {"barmode": "relative", "xaxis": {"ticksuffix": f" {unit}"}}
    layout["yaxis"] = {"autorange": "reversed", "automargin": True}
    return {"data": data, "layout": layout, "unit_bytes": unit_bytes, "height": 150 + 30 * len(ranks)}


def alive(rows: Sequence[Row]) -> Figure:
    """What was alive at the peak of one rank: by component, then category, then the span that allocated it."""
    nodes: dict[str, Row] = {"all": _node("alive at the peak", "alive at the peak", "", "shade2")}
    for row in rows:
        component, category = row["component"] or "no component", row["category"] or "uncategorised"
        path = row["path"] or "no span"
        parent = "all"
        nodes[parent]["bytes"] += row["bytes"]
        steps = (
            (component, component, "shade2"),
            (category, category, category),
            (path.split("/")[-1], path, category),
        )
        for name, full_name, colour in steps:
            node = f"{parent}|{full_name}"
            nodes.setdefault(node, _node(name, full_name, parent, colour))["bytes"] += row["bytes"]
            parent = node
    trace = {
        "type": "treemap",
        "branchvalues": "total",
        "ids": list(nodes),
        "labels": [f"{node['name']}, {size_text(node['bytes'])}" for node in nodes.values()],
        "parents": [node["parent"] for node in nodes.values()],
        "values": [node["bytes"] for node in nodes.values()],
        "text": [node["full_name"] for node in nodes.values()],
        "marker": {
            "colors": [f"var:{node['colour']}" for node in nodes.values()],
            "line": {"color": "var:paper"},
        },
        "texttemplate": "%{label}",
        "hovertemplate": "<b>%{text}</b><br>%{percentRoot:.1%} of all<br>%{value:,d} bytes<extra></extra>",
        "tiling": {"pad": 2},
    }
    layout = {"margin": {"l": 0, "r": 0, "t": 28, "b": 0}, "uniformtext": {"minsize": 12, "mode": "hide"}}
    return {"data": [trace], "layout": layout, "height": 440}


def _node(name: str, full_name: str, parent: str, colour: str) -> Row:
    return {"name": name, "full_name": full_name, "parent": parent, "bytes": 0, "colour": colour}


def heat(rows: Sequence[Row], measure: str) -> Figure:
    """The peak of every stage on every rank: a column for each rank, a row for each stage."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    ranks = sorted({row["rank"] for row in rows})
    sizes = {(row["stage"], row["rank"]): row[f"{measure}_peak_bytes"] for row in rows}
    trace, unit_bytes = cells(
        ranks,
        stages,
        [[sizes.get((stage, rank)) for rank in ranks] for stage in stages],
        gap=2 if len(ranks) <= MOST_RANKS else 0,
        hover="%{y}, rank %{x}",
    )
    if len(ranks) <= NUM_COLOURS:
        trace |= NUMBERS
    layout = {"yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False}}
    # Ranks are whole numbers, so there are no ticks between them.
    ticks = {"dtick": 1} if len(ranks) <= MOST_RANKS else {}
    layout["xaxis"] = {"side": "top", "tickprefix": "rank ", "showgrid": False, "zeroline": False, **ticks}
    layout["margin"] = {"t": 30, "b": 10}
    return {"data": [trace], "layout": layout, "unit_bytes": unit_bytes, "height": 90 + 34 * len(stages)}


NUMBERS: Row = {"texttemplate": "%{text}", "textfont": {"size": 12}}


def cells(
    x: Sequence[int | str], y: Sequence[str], sizes: Sequence[Sequence[int | None]], *, gap: int, hover: str
) -> tuple[Row, int]:
    """Sizes as colours, a row for each of `y`, and the bytes of their unit; a cell whose size is None stays empty."""
    unit, unit_bytes = unit_of(largest(chain.from_iterable(sizes)))
    trace: Row = {
        "type": "heatmap",
        "x": x,
        "y": y,
        "customdata": sizes,
        "meta": {"size": "z"},
        "colorscale": [[position / 4, f"var:heat{position}"] for position in range(5)],
        "colorbar": {"ticksuffix": f" {unit}", "thickness": 12},
        "zmin": 0,
        "xgap": gap,
        "ygap": 2,
        "hovertemplate": f"{hover}: %{{text}} (%{{customdata:,d}} bytes)<extra></extra>",
        "hoverongaps": False,
    }
    return trace, unit_bytes


def largest(sizes: Iterable[int | None]) -> int:
    """The largest of the sizes that are known; 0: none is."""
    return max((size for size in sizes if size is not None), default=0)


def imbalance(rows: Sequence[Row]) -> Figure:
    """For every stage the least, the mean and the most of one measure, over the ranks."""
    stages = [row["stage"] or "whole run" for row in rows]
    data = []
    styles = {
        "min": ("least", "line-ns-open", "var:ink"),
        "mean": ("mean of the ranks", "circle", "var:rank0"),
        "max": ("most", "diamond-open", "var:rank1"),
    }
    for column, (name, symbol, colour) in styles.items():
        trace: Row = {"type": "scatter", "mode": "markers", "name": name, "y": stages, "meta": {"size": "x"}}
        trace["customdata"] = [row[f"{column}_bytes"] for row in rows]
        trace["marker"] = {
            "size": 11,
            "symbol": symbol,
            "color": colour,
            "line": {"width": 2, "color": colour},
        }
        data.append({**trace, "hovertemplate": f"%{{fullData.name}}: {SIZE}<extra>%{{y}}</extra>"})
    unit, unit_bytes = unit_of(largest(row["max_bytes"] for row in rows))
    line = {"type": "line", "layer": "below", "line": {"color": "var:line", "width": 3}}
    shapes = []
    for row, stage in zip(rows, stages, strict=True):
        ends = {"x0": row["min_bytes"] / unit_bytes, "x1": row["max_bytes"] / unit_bytes}
        shapes.append({**line, **ends, "y0": stage, "y1": stage})
    layout: Row = {"shapes": shapes, "xaxis": {"ticksuffix": f" {unit}", "rangemode": "tozero"}}
    layout["yaxis"] = {"autorange": "reversed", "automargin": True}
    return {"data": data, "layout": layout, "unit_bytes": unit_bytes, "height": 130 + 30 * len(rows)}


def steps(rows: Sequence[Row], ranks: Sequence[int]) -> Figure:
    """Peak and time of every denoise step, a line for each rank; in a script, for each rank and module."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    data: list[Row] = []
    by_line: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        by_line.setdefault((row["rank"], row["stage"]), []).append(row)
    for position, (rank, stage) in enumerate(product(ranks, stages)):
        mine = by_line.get((rank, stage), [])
        name = f"rank {rank}" if len(stages) == 1 else f"rank {rank}, {stage}"
        style: Row = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "legendgroup": name,
        }
        style["line"] = {"color": _rank_colour(position), "dash": _dash(position), "width": 2}
        style["marker"] = {"symbol": f"{SYMBOLS[position % len(SYMBOLS)]}-open", "size": 9}
        full, long = (_highest(mine, key) for key in ("allocated_peak_bytes", "duration_ns"))
        sizes: Row = {"x": [row["step"] for row in full], "meta": {"size": "y"}}
        sizes["customdata"] = [row["allocated_peak_bytes"] for row in full]
        sizes["hovertemplate"] = f"step %{{x}}: {SIZE}"
        times: Row = {"x": [row["step"] for row in long], "yaxis": "y2", "showlegend": False}
        times["y"] = [row["duration_ns"] / 1e9 for row in long]
        times["hovertemplate"] = "step %{x}: %{y:.3f} s"
        data += [{**style, **sizes}, {**style, **times}]
    unit, unit_bytes = unit_of(largest(row["allocated_peak_bytes"] for row in rows))
    layout = {
        "xaxis": {
            "tickprefix": "step ",
            "anchor": "y2",
            "dtick": 1 if len({row["step"] for row in rows}) <= 20 else None,
        },
        "yaxis": {
            "title": {"text": "peak allocated"},
            "ticksuffix": f" {unit}",
            "domain": [0.55, 1],
            "rangemode": "tozero",
        },
        "yaxis2": {
            "title": {"text": "time"},
            "ticksuffix": " s",
            "domain": [0, 0.43],
            "rangemode": "tozero",
            "anchor": "x",
        },
    }
    return {"data": data, "layout": layout, "unit_bytes": unit_bytes, "height": 440}


def _highest(rows: Sequence[Row], figure: str, most: int = MOST_POINTS) -> list[Row]:
    """At most `most` rows, in their order: of each group of neighbours the one with the highest `figure`."""
    size = -(-len(rows) // most) or 1
    return [
        max(rows[start : start + size], key=lambda row: row[figure]) for start in range(0, len(rows), size)
    ]
