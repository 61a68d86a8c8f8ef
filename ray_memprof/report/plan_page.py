"""plan.html: the rows of a plan, and all configurations by time and memory, in one file that opens offline.

    write_plan_page(facts, points, Path("plan.html"))

Takes plain data, as the planner's JSON has it; the figure is drawn by report.js. Leaves the whole page, or none after
an error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_memprof.report.page import environment, packed_plotly
from ray_memprof.report.plots import SIZE, Figure, Row, largest
from ray_memprof.store.whole_file import whole_file
from ray_memprof.wording import unit_of

TEMPLATE = "plan.html.j2"


def write_plan_page(facts: Mapping[str, Any], points: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write the page; returns its path.

    Args:
        facts: the plan: its rows, limits and counts.
        points: configurations that are no rows: run_s, device_used_bytes, levers, fits.
        path: the file.

    Raises:
        DiskFull: no room for the page.
    """
    figures = {"front": front_figure(facts, points)}
    html = environment().get_template(TEMPLATE).render(plan=facts, figures=figures, plotly=packed_plotly())
    with whole_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def front_figure(facts: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Figure:
    """Time against device used: what misses, what fits, the rows, and the front that nothing beats in both."""
    rows = facts["rows"]
    missing = [one for one in points if not one["fits"]]
    fitting = [one for one in points if one["fits"]]
    front = _front([*points, *rows])
    data = [
        _trace("over the limit", missing, symbol="x", colour="var:bad"),
        _trace("fits, by its estimate", fitting, symbol="circle-open", colour="var:quiet"),
        _trace("front", front, symbol="", colour="var:quiet") | {"mode": "lines", "hoverinfo": "skip"},
        _trace("row, predicted", rows, symbol="diamond", colour="var:accent"),
    ]
    data[2]["line"] = {"color": "var:quiet", "width": 1.5, "shape": "hv"}
    del data[2]["hovertemplate"]
    data[3]["marker"]["size"] = 13
    limit = facts["limit_bytes"]
    unit, unit_bytes = unit_of(max(limit, largest([one["device_used_bytes"] for one in (*points, *rows)])))
    line = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": limit / unit_bytes,
        "y1": limit / unit_bytes,
    }
    line["line"] = {"color": "var:bad", "dash": "dash", "width": 1.5}
    note = {"xref": "paper", "x": 1, "xanchor": "right", "y": limit / unit_bytes, "yanchor": "bottom"}
    note |= {"text": "limit", "showarrow": False, "font": {"color": "var:bad"}}
    layout: Row = {"shapes": [line], "annotations": [note], "hovermode": "closest"}
    layout["xaxis"] = {"title": {"text": "the run"}, "ticksuffix": " s", "rangemode": "tozero"}
    layout["yaxis"] = {"title": {"text": "device used"}, "ticksuffix": f" {unit}", "rangemode": "tozero"}
    return {
        "data": [one for one in data if one["x"]],
        "layout": layout,
        "unit_bytes": unit_bytes,
        "height": 440,
    }


def _front(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points that no other beats in both, the fastest first."""
    front: list[Mapping[str, Any]] = []
    for one in sorted(points, key=lambda point: (point["run_s"], point["device_used_bytes"])):
        if not front or one["device_used_bytes"] < front[-1]["device_used_bytes"]:
            front.append(one)
    return front


def _trace(name: str, points: Sequence[Mapping[str, Any]], *, symbol: str, colour: str) -> Row:
    trace: Row = {"type": "scatter", "mode": "markers", "name": name, "meta": {"size": "y"}}
    trace |= {"x": [round(one["run_s"], 1) for one in points], "text": [one["levers"] for one in points]}
    trace["customdata"] = [one["device_used_bytes"] for one in points]
    trace["hovertemplate"] = f"{name}<br>%{{text}}<br>{SIZE}, %{{x:,.0f}} s<extra></extra>"
    if symbol:
        trace["marker"] = {"symbol": symbol, "color": colour, "size": 7}
    return trace
