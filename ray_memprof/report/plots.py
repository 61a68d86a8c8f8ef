"""The report's figures as data for plotly.js: makes dicts of rows of the questions in sql/; writes no file.

    books(ask("books_at_peak"))     # who held the memory of each rank when its device was fullest

over_time.py has the figures over time, step_plots.py those over steps.

Two things are left to templates/report.js, because only the browser knows them. A colour is "var:name" for the CSS
variable --name, so that figures follow the light, dark and print styles. Bytes are in customdata, meta.size names the
axis that shows them, and unit_bytes of the figure is that axis's unit: so hovering shows the exact number, and each
number is in the page only once.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from ray_memprof.report.words import ON_GPU, Words
from ray_memprof.store.schema import CATEGORIES, HOST_ACCOUNTS
from ray_memprof.wording import size_text, unit_of

MOST_RANKS = 16
"""The most ranks of a run that have figures of their own."""
MOST_LINES = 4
"""The most ranks that are lines in the figure of all ranks, if a run has more than MOST_RANKS."""
TENSORS = (*CATEGORIES, "uncategorised")
OUTSIDE = ("context", "nccl", "libraries", "others", *HOST_ACCOUNTS, "unexplained")
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
Row = dict[str, Any]
Figure = dict[str, Any]


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


def rank_colour(position: int) -> str:
    """The colour of a line, by its place among the lines."""
    return f"var:rank{position % NUM_COLOURS}"


def dash_of(position: int) -> str:
    """How a line is broken, by its place among the lines."""
    # Ranks do the same, so their lines lie on each other: gaps in the upper line show the lower one.
    return ("solid", "dash", "dot", "dashdot")[position % 4]


def books(rows: Sequence[Row], words: Words = ON_GPU, base: Sequence[Row] = ()) -> Figure:
    """Who held the memory of each rank when its device was fullest: a bar for each rank, under it that of the base."""
    ranks = list(dict.fromkeys(row["rank"] for row in rows))
    named = [*((f"rank {row['rank']}", row) for row in rows)]
    named += [(f"rank {row['rank']}, base", row) for row in base if row["rank"] in ranks]
    bars = sorted(dict.fromkeys((row["rank"], bar) for bar, row in named))
    data = []
    for account in ("active", "cached", *OUTSIDE):
        sizes = {bar: row["bytes"] for bar, row in named if row["account"] == account}
        if not any(sizes.values()):
            continue
        trace: Row = {"type": "bar", "orientation": "h", "name": words.accounts.get(account, account)}
        trace |= {"y": [bar for _, bar in bars if bar in sizes], "meta": {"size": "x"}}
        trace["customdata"] = [sizes[bar] for bar in trace["y"]]
        trace["marker"] = {"color": f"var:{account}", "line": {"width": 1, "color": "var:paper"}}
        if account == "cached":
            trace["marker"]["pattern"] = HATCH
        data.append({**trace, "hovertemplate": f"%{{y}}, %{{fullData.name}}: {SIZE}<extra></extra>"})
    # As long as the longest bar: the parts of a rank lie on each other.
    unit, unit_bytes = unit_of(max(sum(row["bytes"] for bar, row in named if bar == one) for _, one in bars))
    layout: Row = {"barmode": "relative", "xaxis": {"ticksuffix": f" {unit}"}}
    order = {"categoryorder": "array", "categoryarray": [bar for _, bar in bars]}
    layout["yaxis"] = {"autorange": "reversed", "automargin": True, **order}
    return {"data": data, "layout": layout, "unit_bytes": unit_bytes, "height": 150 + 30 * len(bars)}


def alive_nodes(rows: Sequence[Row]) -> dict[str, Row]:
    """The tree of what was alive at the peak of one rank, by the names of its nodes, each after its parent."""
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
    return nodes


def alive(nodes: Mapping[str, Row]) -> Figure:
    """What was alive at the peak of one rank: by component, then category, then the span that allocated it."""
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
    return {"data": [trace], **heat_layout(stages, ranks), "unit_bytes": unit_bytes}


def heat_layout(stages: Sequence[str], ranks: Sequence[int]) -> Row:
    """Layout and height of cells with a column for each rank and a row for each stage."""
    layout: Row = {"yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False}}
    # Ranks are whole numbers, so there are no ticks between them.
    ticks = {"dtick": 1} if len(ranks) <= MOST_RANKS else {}
    layout["xaxis"] = {"side": "top", "tickprefix": "rank ", "showgrid": False, "zeroline": False, **ticks}
    layout["margin"] = {"t": 30, "b": 10}
    return {"layout": layout, "height": 90 + 34 * len(stages)}


HEAT = tuple(f"heat{position}" for position in range(5))
"""Colours of report.css, from none to the most."""
NUMBERS: Row = {"texttemplate": "%{text}", "textfont": {"size": 12, "color": "var:ink"}}
"""Cells with their numbers: all colours of cells in report.css have enough contrast with --ink."""


def cells(
    x: Sequence[int | str],
    y: Sequence[str],
    sizes: Sequence[Sequence[int | None]],
    *,
    gap: int,
    hover: str,
    colours: Sequence[str] = HEAT,
) -> tuple[Row, int]:
    """Sizes as colours, a row for each of `y`, and the bytes of their unit; a cell whose size is None stays empty."""
    known = (size for size in chain.from_iterable(sizes) if size is not None)
    unit, unit_bytes = unit_of(largest(map(abs, known)))
    trace: Row = {
        "type": "heatmap",
        "x": x,
        "y": y,
        "customdata": sizes,
        "meta": {"size": "z"},
        "colorscale": [
            [position / (len(colours) - 1), f"var:{name}"] for position, name in enumerate(colours)
        ],
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
        data.append({**trace, "hovertemplate": f"%{{y}}, %{{fullData.name}}: {SIZE}<extra></extra>"})
    unit, unit_bytes = unit_of(largest(row["max_bytes"] for row in rows))
    line = {"type": "line", "layer": "below", "line": {"color": "var:line", "width": 3}}
    shapes = []
    for row, stage in zip(rows, stages, strict=True):
        ends = {"x0": row["min_bytes"] / unit_bytes, "x1": row["max_bytes"] / unit_bytes}
        shapes.append({**line, **ends, "y0": stage, "y1": stage})
    layout: Row = {"shapes": shapes, "xaxis": {"ticksuffix": f" {unit}", "rangemode": "tozero"}}
    layout["yaxis"] = {"autorange": "reversed", "automargin": True}
    return {"data": data, "layout": layout, "unit_bytes": unit_bytes, "height": 130 + 30 * len(rows)}
