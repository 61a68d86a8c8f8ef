"""What every page has: the templates, plotly.js packed into it, and sizes, times and figures as a page writes them.

    environment().get_template("report.html.j2").render(figures=figures, plotly=packed_plotly(), ...)

Nothing that a page shows is fetched. Leaves nothing; run_page.py and comparison_page.py write the files.
"""

import base64
import gzip
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ray_memprof.query.bounds import is_unsampled, is_within
from ray_memprof.report import plots
from ray_memprof.wording import GIB, place, visible

_TEXTS = ("name", "text", "labels", "parents", "ids", "legendgroup", "x", "y", "x0", "x1", "y0", "y1")
"""Keys of a figure whose strings come from a run; all others were written here."""
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@cache
def packed_plotly() -> str:
    """plotly.js, compressed: a third of its size, and no work for the browser before the first figure."""
    from plotly.offline import get_plotlyjs

    # A fixed time in its header: the same run makes the same page.
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def environment() -> jinja2.Environment:
    """Templates and the filters that they write sizes, times and figures with."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        gib=gib,
        at_least=_at_least,
        unsampled=is_unsampled,
        within=is_within,
        seconds=_seconds,
        share=_share,
        place=place,
        utc=_utc,
        data=_data,
    )
    return made


def _data(figure: plots.Figure) -> Markup:
    """JSON that no content can break out of its script element, and whose texts plotly.js shows letter by letter."""
    return Markup(json.dumps(as_plain_text(figure), separators=(",", ":")).replace("<", "\\u003c"))


def gib(size: int | None) -> Markup:
    """GiB with two decimals, the exact bytes as a tooltip."""
    if size is None:
        return Markup("&ndash;")
    return Markup('<span title="{:,} bytes">{:.2f}</span>').format(size, size / GIB)


def _at_least(size: Markup, is_at_least: bool) -> Markup:
    return Markup("at least {}").format(size) if is_at_least else size


def _seconds(ns: int | None) -> str:
    return "-" if ns is None else f"{ns / 1e9:,.2f}"


def _share(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.2%}"


def _utc(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def as_plain_text(figure: Any) -> Any:
    """A figure whose names and labels plotly.js shows letter by letter: it reads some HTML in every text."""
    if isinstance(figure, dict):
        return {key: _letters(one) if key in _TEXTS else as_plain_text(one) for key, one in figure.items()}
    if isinstance(figure, list | tuple) and figure and isinstance(figure[0], dict):
        return [as_plain_text(one) for one in figure]
    return figure


def _letters(value: Any) -> Any:
    """A text, texts in lists, or anything else as it is."""
    if isinstance(value, str):
        text = visible(value).translate(_ENTITIES)
        # report.js would take it for the name of a colour.
        return f"&#118;{text[1:]}" if text.startswith("var:") else text
    if isinstance(value, list | tuple):
        return [_letters(one) for one in value]
    return as_plain_text(value)
