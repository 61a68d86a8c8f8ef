"""Figures of several runs side by side; plots.py makes those of one run."""

from collections.abc import Mapping, Sequence
from itertools import chain

from ray_memprof.report.plots import MOST_RANKS, NUMBERS, SIZE, Figure, Row, cells, largest
from ray_memprof.wording import unit_of


def peaks_of_runs(names: Sequence[str], sizes: Mapping[str, Sequence[int | None]]) -> Figure:
    """Peaks of several runs, a group of bars for each run; `sizes` has by measure a peak of each run, or None.

    At most four measures, because they are told apart by shades of one colour.
    """
    data: list[Row] = []
    for position, (measure, peaks) in enumerate(sizes.items()):
        trace: Row = {"type": "bar", "orientation": "h", "name": measure, "y": names}
        trace |= {"customdata": peaks, "meta": {"size": "x"}, "marker": {"color": f"var:heat{4 - position}"}}
        trace["hovertemplate"] = f"%{{y}}, %{{fullData.name}}: {SIZE}<extra></extra>"
        data.append(trace)
    unit, unit_bytes = unit_of(largest(chain.from_iterable(sizes.values())))
    layout: Row = {"barmode": "group", "xaxis": {"ticksuffix": f" {unit}", "rangemode": "tozero"}}
    layout["yaxis"] = {"autorange": "reversed", "automargin": True, "type": "category"}
    return {"data": data, "layout": layout, "unit_bytes": unit_bytes, "height": 110 + 46 * len(names)}


def stages_of_runs(
    names: Sequence[str], stages: Sequence[str], sizes: Sequence[Sequence[int | None]]
) -> Figure:
    """A peak of every stage in several runs: a column for each stage, a row for each run."""
    trace, unit_bytes = cells(stages, names, sizes, gap=2, hover="%{y}, %{x}")
    if len(stages) <= MOST_RANKS:
        trace |= NUMBERS
    layout: Row = {"margin": {"t": 30, "b": 10}}
    layout["yaxis"] = {"autorange": "reversed", "automargin": True, "showgrid": False, "type": "category"}
    layout["xaxis"] = {"side": "top", "showgrid": False, "zeroline": False, "type": "category"}
    return {"data": [trace], "layout": layout, "unit_bytes": unit_bytes, "height": 110 + 34 * len(names)}
