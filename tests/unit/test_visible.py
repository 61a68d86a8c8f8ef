"""Texts of others: nothing for a terminal to obey, nothing for plotly.js to render."""

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_memprof.report.page import as_plain_text
from ray_memprof.wording import visible

HOSTILE = '<a href="javascript:x">&amp;</a>'
ESCAPED = '&lt;a href="javascript:x"&gt;&amp;amp;&lt;/a&gt;'


def test_nothing_is_left_as_it_is() -> None:
    assert (visible(""), as_plain_text({})) == ("", {})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("denoise/dit.block \u65e5 \u00e9 <b>", "denoise/dit.block \u65e5 \u00e9 <b>"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b]8;;http://x\x1b\\link", "\\x1b]8;;http://x\\x1b\\link"),
        ("a\rb\x07\x7f\x9b31m", "a\\rb\\x07\\x7f\\x9b31m"),
        ("\u202etxt.exe\u2069", "\\u202etxt.exe\\u2069"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@settings(deadline=None)
@given(st.text())
def test_no_control_character_is_left_and_letters_stay(text: str) -> None:
    shown = visible(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert visible(shown) == shown
    if text.isprintable():
        assert shown == text


def test_texts_of_a_figure_are_escaped_and_what_is_written_here_is_not() -> None:
    figure = {
        "data": [
            {
                "type": "bar",
                "name": HOSTILE,
                "x": [HOSTILE, None, 3],
                "y": (1.5, 2),
                "text": [[HOSTILE]],
                "labels": ["var:ink", "a var:ink"],
                "customdata": [1, 2],
                "hovertemplate": "<b>%{text}</b>",
                "marker": {"color": "var:ink", "colors": ["var:ink"]},
            }
        ],
        "layout": {
            "annotations": [{"text": HOSTILE, "font": {"color": "var:ink"}}],
            "shapes": [{"y0": HOSTILE, "y1": HOSTILE, "x0": 1}],
            "yaxis": {"title": {"text": "peak & all"}},
        },
        "height": 3,
    }
    assert as_plain_text(figure) == {
        "data": [
            {
                "type": "bar",
                "name": ESCAPED,
                "x": [ESCAPED, None, 3],
                "y": [1.5, 2],
                "text": [[ESCAPED]],
                "labels": ["&#118;ar:ink", "a var:ink"],
                "customdata": [1, 2],
                "hovertemplate": "<b>%{text}</b>",
                "marker": {"color": "var:ink", "colors": ["var:ink"]},
            }
        ],
        "layout": {
            "annotations": [{"text": ESCAPED, "font": {"color": "var:ink"}}],
            "shapes": [{"y0": ESCAPED, "y1": ESCAPED, "x0": 1}],
            "yaxis": {"title": {"text": "peak &amp; all"}},
        },
        "height": 3,
    }


@settings(deadline=None)
@given(st.text())
def test_an_escaped_text_reads_as_it_was_and_has_no_markup(text: str) -> None:
    shown = as_plain_text({"name": text})["name"]
    assert "<" not in shown and ">" not in shown and not shown.startswith("var:")
    assert html.unescape(shown) == visible(text)
