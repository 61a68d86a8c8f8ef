"""What all pages share: the templates, the packed plotly.js, and sizes, times and figures as pages show them.

    environment().get_template("report.html.j2").render(figures=figures, plotly=packed_plotly(), ...)

A page fetches nothing. This module writes no file; run_page.py and comparison_page.py do.
"""

import base64
import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import dropwhile
from pathlib import Path
from typing import Any

import duckdb
import jinja2
from markupsafe import Markup

from ray_memprof.analysis.comparison.compare import SQL_DIR
from ray_memprof.query.bounds import is_unsampled
from ray_memprof.query.questions import fetched, question
from ray_memprof.report import over_time, plots
from ray_memprof.report.changes import EQUAL_FRACTION, MUCH_FRACTION
from ray_memprof.report.flame import clipped
from ray_memprof.store.schema import RUNS
from ray_memprof.wording import share_text, size_text, span_text, visible

_TEXTS = ("name", "text", "labels", "parents", "ids", "legendgroup", "x", "y", "x0", "x1", "y0", "y1")
"""Keys of a figure whose texts come from a run; all other texts are written in this package."""
_PLOTLY = Path(__file__).parent / "plotly" / "plotly.min.js.gz"
"""plotly.js in a wheel, where hatch_build.py put it; an editable install has the package plotly instead."""
_TABLES_ASKED = {
    "endings": "SELECT rank, host, gpu_index, status, path, step, reason FROM ranks WHERE status != 'ok' ORDER BY rank",
    "versions": "SELECT versions, git_commit, config FROM runs",
}
"""Tables of a page that show rows as they are recorded, with the SQL of each."""
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@cache
def packed_plotly() -> str:
    """plotly.js, compressed to a third of its size; the browser reads it only when it draws the first figure."""
    if _PLOTLY.is_file():
        packed = _PLOTLY.read_bytes()
    else:
        from plotly.offline import get_plotlyjs

        packed = gzip.compress(get_plotlyjs().encode(), mtime=0)
    return base64.b64encode(packed).decode()


def run_of(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The row of an open run; each column is None if its driver was killed and wrote no row."""
    rows = fetched(connection, "FROM runs")
    return rows[0] if rows else dict.fromkeys(RUNS.schema.names)


def sql_texts(names: Iterable[str]) -> dict[str, str]:
    """What the buttons of a page copy, by name: questions, and what is asked of the tables themselves.

    Without the header of its file, because a command line would take the dashes of a comment for an option.
    """
    return {name: _TABLES_ASKED[name] if name in _TABLES_ASKED else _statement(name) for name in names}


def _statement(name: str) -> str:
    # run_values is what a comparison asks of each of its runs.
    text = (
        (SQL_DIR / "run_values.sql").read_text(encoding="utf-8") if name == "run_values" else question(name)
    )
    lines = text.splitlines()
    return "\n".join(dropwhile(lambda line: line.startswith("--"), lines)).strip()


@dataclass(frozen=True, slots=True)
class Tab:
    """A figure of a part: the words on its tab, and its id on the page."""

    name: str
    id: str
    figure: plots.Figure
    change: plots.Figure | None = None
    """A second figure below: how far the first is from that of a base run."""
    is_compared: bool = False
    """Whether the figure itself shows changes against a base run."""
    base_line: str = ""
    """What the page says of the base run below the figure."""


@cache
def environment() -> jinja2.Environment:
    """The templates, with the filters by which they write sizes, times and figures; each is compiled once, in 0.3 s."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"equal_fraction": EQUAL_FRACTION, "much_fraction": MUCH_FRACTION}
    made.filters.update(
        size=sized,
        at_least=_at_least,
        unsampled=is_unsampled,
        seconds=seconds,
        share=_share,
        span_text=span_text,
        utc=_utc,
        data=_data,
        json=_json,
        kind=over_time.kind_text,
        clipped=clipped,
    )
    return made


def _data(figure: plots.Figure) -> Markup:
    """A figure as JSON that cannot break out of its script element; plotly.js shows its texts letter by letter."""
    return _json(as_plain_text(figure))


def _json(value: Any) -> Markup:
    """JSON that cannot break out of its script element."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def sized(size: int | None) -> Markup:
    """A size with its unit, with the exact bytes as a tooltip."""
    if size is None:
        return Markup("&ndash;")
    return Markup('<span title="{:,} bytes">{}</span>').format(size, size_text(size))


def _at_least(size: Markup, is_at_least: bool) -> Markup:
    return Markup("at least {}").format(size) if is_at_least else size


def seconds(ns: int | None) -> str:
    """A time in seconds, without its unit."""
    if ns is None:
        return "-"
    if abs(ns) >= 10**7 or not ns:
        return f"{ns / 1e9:,.2f}" if ns else "0"
    # Two digits would read 0.00 or 0.01.
    return f"{ns / 1e9:.3f}" if abs(ns) >= 500_000 else "<0.001"


def _share(fraction: float | None) -> str:
    return "-" if fraction is None else share_text(fraction)


def _utc(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def as_plain_text(figure: Any) -> Any:
    """A figure with escaped names and labels: plotly.js reads HTML in texts, but must show these letter by letter."""
    if isinstance(figure, dict):
        return {key: _letters(one) if key in _TEXTS else as_plain_text(one) for key, one in figure.items()}
    if isinstance(figure, list | tuple) and figure and isinstance(figure[0], dict):
        return [as_plain_text(one) for one in figure]
    return figure


def _letters(value: Any) -> Any:
    """A text or the texts in lists, escaped; anything else as it is."""
    if isinstance(value, str):
        text = visible(value).translate(_ENTITIES)
        # report.js would take a text with this beginning for the name of a colour.
        return f"&#118;{text[1:]}" if text.startswith("var:") else text
    if isinstance(value, list | tuple):
        return [_letters(one) for one in value]
    return as_plain_text(value)
