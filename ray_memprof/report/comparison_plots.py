"""Figures of several runs side by side; plots.py makes those of one run."""

from collections.abc import Mapping, Sequence

from ray_memprof.report.plots import BYTES, IN_GIB, MOST_RANKS, NUMBERS, Figure, Row, cells


def peaks_of_runs(names: Sequence[str], sizes: Mapping[str, Sequence[int | None]]) -> Figure:
    """Peaks of several runs, a group of bars for each run; `sizes` has by measure a peak of each run, or None.

    At most four measures, because they are told apart by shades of one colour.
    """
    data: list[Row] = []
    for position, (measure, peaks) in enumerate(sizes.items()):
        trace: Row = {"type": "bar", "orientation": "h", "name": measure, "y": names}
        trace |= {"customdata": peaks, "meta": {"gib": "x"}, "marker": {"color": f"var:heat{4 - position}"}}
        trace["hovertemplate"] = f"%{{fullData.name}}: %{{x:.2f}} GiB ({BYTES})<extra>%{{y}}</extra>"
        data.append(trace)
    layout: Row = {"barmode": "group", "xaxis": {"ticksuffix": IN_GIB, "rangemode": "tozero"}}
    layout["yaxis"] = {"autorange": "reversed", "automargin": True, "type": "category"}
    return {"data": data, "layout": layout, "height": 110 + 46 * len(names)}


def stages_of_runs(
    names: Sequence[str], stages: Sequence[str], sizes: Sequence[Sequence[int | None]]
) -> Figure:
    """A peak of every stage in several runs: a column for each stage, a row for each run."""
    trace = cells(stages, names, sizes, gap=2, hover="%{y}, %{x}")
    if len(stages) <= MOST_RANKS:
        trace |= NUMBERS
    layout: Row = {"margin": {"t": 30, "b": 10}}
    layout["yaxis"] = {"autorange": "reversed", "automargin": True, "showgrid": False, "type": "category"}
    layout["xaxis"] = {"side": "top", "showgrid": False, "zeroline": False, "type": "category"}
    return {"data": [trace], "layout": layout, "height": 110 + 34 * len(names)}
