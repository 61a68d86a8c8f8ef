r"""Texts that others wrote (names of spans, frames, files, reasons), made harmless where people read them.

    visible("\x1b[2Jname")                    # r"\x1b[2Jname": a terminal is told nothing
    as_plain_text(figure)                     # plotly.js draws <b> and <a> as letters

Everything else about a text stays as it is. rows.py keeps spreadsheets from computing a text (FORMULA). Pages escape by
themselves (Jinja2).
"""

import re
from typing import Any

FORMULA = r"^[=+\-@\t\r]"
"""How a cell begins that a spreadsheet computes, as a regular expression of DuckDB."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but for the tab and the end of a line; and those that turn the direction of what follows."""
_TEXTS = ("name", "text", "labels", "parents", "ids", "legendgroup", "x", "y", "x0", "x1", "y0", "y1")
"""Keys of a figure whose strings come from a run; all others were written here."""
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def visible(text: str) -> str:
    """`text` with what a terminal would obey written out, as Python writes it."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


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
