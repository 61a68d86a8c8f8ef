"""Figures over the steps of a run: a line for each rank or each stage.

    steps(ask("steps"), [0, 1])                     # peak and time of every step
    activation(rows_of_a_rank)                      # rows of activation_by_step

plots.py says what a figure is made of; this module writes no file.
"""

from collections.abc import Sequence
from itertools import product

from ray_memprof.report.plots import NUM_COLOURS, SIZE, SYMBOLS, Figure, Row, dash_of, largest, rank_colour
from ray_memprof.wording import unit_of

MOST_POINTS = 400
"""The most points of a line over steps; with more steps each point is the highest of several, to keep the peaks."""
FEW_POINTS = 60
"""A line of more points has no symbols on them."""
MOST_STAGES = NUM_COLOURS
"""The most stages with a line of their own in the figure of activations."""
LEAST_FRACTION = 0.001
"""Stages whose activations are less than this share of the largest would lie on the axis."""


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
        style["line"] = {"color": rank_colour(position), "dash": dash_of(position), "width": 2}
        style["marker"] = {"symbol": f"{SYMBOLS[position % len(SYMBOLS)]}-open", "size": 9}
        full, long = (_highest(mine, key) for key in ("allocated_peak_bytes", "duration_ns"))
        sizes: Row = {"x": [row["step"] for row in full], "meta": {"size": "y"}}
        sizes["customdata"] = [row["allocated_peak_bytes"] for row in full]
        sizes["hovertemplate"] = f"%{{fullData.name}}, step %{{x}}: {SIZE}<extra></extra>"
        times: Row = {"x": [row["step"] for row in long], "yaxis": "y2", "showlegend": False}
        times["y"] = [row["duration_ns"] / 1e9 for row in long]
        times["hovertemplate"] = "%{fullData.name}, step %{x}: %{y:.3f} s<extra></extra>"
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


def activation(rows: Sequence[Row], stages: Sequence[str], base: Sequence[Row] = ()) -> Figure:
    """The activation peak of every step of one rank: a line for each stage; a stage outside the loop is a level.

    Args:
        rows: of activation_by_step, of one rank.
        stages: which have a line, and in which order.
        base: of the same rank of a base run.
    """
    numbers = [row["step"] for row in (*rows, *base) if row["step"] is not None]
    ends = (min(numbers), max(numbers))
    data: list[Row] = []
    for position, stage in enumerate(stages):
        style: Row = {"type": "scatter", "legendgroup": stage, "meta": {"size": "y"}}
        for name, listed in ((stage, rows), (f"{stage}, base run", base)):
            mine = [row for row in listed if row["stage"] == stage]
            steps = _highest([row for row in mine if row["step"] is not None], "activation_bytes")
            line = {"color": rank_colour(position), "width": 2 if listed is rows else 1}
            if steps:
                x, shown = [row["step"] for row in steps], steps
                look: Row = {"mode": "lines+markers" if len(steps) <= FEW_POINTS else "lines"}
                look["marker"] = {"symbol": SYMBOLS[position % len(SYMBOLS)], "size": 7}
                hover = f"%{{fullData.name}}, step %{{x}}: {SIZE}<extra></extra>"
            elif mine:
                # A stage that came several times without a step: the level of the highest.
                x, shown = list(ends), [max(mine, key=lambda row: row["activation_bytes"])] * 2
                look = {"mode": "lines"}
                hover = f"%{{fullData.name}}: {SIZE}<extra></extra>"
            else:
                continue
            line["dash"] = "dash" if listed is base else "solid" if steps else "dot"
            data.append(
                {**style, **look, "name": name, "x": x, "line": line, "hovertemplate": hover}
                | {"customdata": [row["activation_bytes"] for row in shown]}
            )
    unit, unit_bytes = unit_of(largest(row["activation_bytes"] for row in (*rows, *base)))
    few = {"dtick": 1} if ends[1] - ends[0] <= 20 else {}
    layout = {
        "xaxis": {"tickprefix": "step ", **few},
        "yaxis": {"title": {"text": "activation peak"}, "ticksuffix": f" {unit}", "rangemode": "tozero"},
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout, "unit_bytes": unit_bytes, "height": 360}


def largest_stages(rows: Sequence[Row]) -> list[str]:
    """The stages whose activations are largest, of all ranks, in the order in which they began; all have a line."""
    peaks: dict[str, int] = {}
    for row in rows:
        peaks[row["stage"]] = max(peaks.get(row["stage"], 0), row["activation_bytes"])
    shown = sorted(peaks, key=lambda stage: -peaks[stage])[:MOST_STAGES]
    least = LEAST_FRACTION * max(peaks.values(), default=0)
    return [stage for stage in peaks if stage in shown and peaks[stage] > least]
