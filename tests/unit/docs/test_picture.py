"""docs/how_it_works.svg: read by any viewer, readable in light and in dark, and without anything from elsewhere."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

PICTURE = Path(__file__).resolve().parents[3] / "docs" / "how_it_works.svg"
TEXT = PICTURE.read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"
SCHEMES = [
    dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r"svg \{(.*?)\}", TEXT)
]
READABLE = 4.5
"""The contrast that WCAG 2.1 asks of text, level AA."""


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, as WCAG 2.1 defines it."""
    parts = [[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in (one, other)]
    linear = [[(c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4) for c in part] for part in parts]
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_texts_are_readable_in_light_and_in_dark() -> None:
    assert len(SCHEMES) == 2 and SCHEMES[0].keys() == SCHEMES[1].keys()
    for colours in SCHEMES:
        for ground in ("page", "in", "rec", "tab", "out"):
            assert contrast(colours["ink"], colours[ground]) >= READABLE, ground
        assert contrast(colours["line"], colours["page"]) >= 3


def test_it_is_told_to_those_who_do_not_see_it() -> None:
    root = ElementTree.fromstring(TEXT)
    named = {root.find(f"{SVG}{name}").get("id") for name in ("title", "desc")}  # type: ignore[union-attr]
    assert set((root.get("aria-labelledby") or "").split()) == named


def test_nothing_comes_from_elsewhere() -> None:
    assert re.findall(r"https?://\S+|@import|href|url\((?!#)", TEXT) == ['http://www.w3.org/2000/svg"']


def test_texts_fit_into_their_boxes() -> None:
    """13 px of a sans-serif take at most 7.2 px a letter on average; 15 px bold take 8.8."""
    root = ElementTree.fromstring(TEXT)
    boxes = [
        {name: float(one.get(name, "0")) for name in ("x", "y", "width", "height")}
        for one in root.iter(f"{SVG}rect")
        if "box" in (one.get("class") or "")
    ]
    for one in root.iter(f"{SVG}text"):
        x, y = float(one.get("x", "")), float(one.get("y", ""))
        width = len(one.text or "") * (8.8 if one.get("class") == "title" else 7.2)
        (around,) = [
            box
            for box in boxes
            if box["x"] < x < box["x"] + box["width"] and box["y"] < y <= box["y"] + box["height"] - 6
        ]
        assert x + width <= around["x"] + around["width"] + 8, one.text
