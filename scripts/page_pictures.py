"""Takes pictures of the sample run's report for README and docs, with a headless Chromium; write_docs.py calls it.

    python scripts/write_docs.py --pictures      # docs/report_sample.png and docs/report_sample_dark.png

Needs chromium with chromedriver, and selenium (extra dev). The fonts are those of the machine: two machines make
pictures that differ a little, so no check compares them.
"""

import base64
import importlib.util
import io
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH = 1600
MOST_COLOURS = 256
DRAWN_S = 120.0
"""Time limit for drawing all figures of a page."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--hide-scrollbars",
)


@dataclass(frozen=True, slots=True)
class Picture:
    """What is taken of a page."""

    name: str
    scheme: str
    """light or dark."""
    first: str
    """CSS selector of what is at the top."""
    last: str
    """Of what is at the bottom."""


PICTURES = (
    Picture("report_sample.png", "light", "header", "#timeline_by_account"),
    Picture("report_sample_dark.png", "dark", "header", "#timeline_by_account"),
)


class NoBrowser(Exception):
    """There is nothing to open a page with; its text says what is missing."""


def take(page: Path, folder: Path) -> Iterator[Path]:
    """Take each of PICTURES of a page; gives the paths of the files.

    Raises:
        NoBrowser: chromium, chromedriver or selenium is missing.
    """
    with _window() as driver:
        for one in PICTURES:
            path = folder / one.name
            path.write_bytes(_taken(driver, page, one))
            yield path


@contextmanager
def _window() -> Iterator[Any]:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    wanted = {"chromium": browser, "chromedriver": driver, "selenium": importlib.util.find_spec("selenium")}
    missing = [name for name, found in wanted.items() if not found]
    if missing:
        raise NoBrowser(f"pictures need {', '.join(missing)}")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(browser)
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        opened.set_script_timeout(DRAWN_S)
        try:
            yield opened
        finally:
            opened.quit()


def _taken(driver: Any, page: Path, one: Picture) -> bytes:
    """A picture as PNG."""
    metrics = {"width": WIDTH, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": one.scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(page.resolve().as_uri())
    until = time.monotonic() + DRAWN_S
    while not driver.execute_script("return document.documentElement.hasAttribute('data-ready')"):
        if time.monotonic() > until:
            raise TimeoutError(f"{page}: not drawn within {DRAWN_S:.0f} s")
        time.sleep(0.1)
    # The links at the top would lie on what is in the middle of the page.
    driver.execute_script("document.querySelector('nav').style.position = 'static'")
    top, bottom = driver.execute_script(
        "const of = (name) => { const one = document.querySelector(name); return one.closest('section') ?? one; };"
        "return [of(arguments[0]).getBoundingClientRect().top, of(arguments[1]).getBoundingClientRect().bottom]"
        ".map((at) => at + scrollY)",
        one.first,
        one.last,
    )
    clip = {"x": 0, "y": max(0, top - 16), "width": WIDTH, "height": bottom - top + 32, "scale": 1}
    asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"]
    return _packed(base64.b64decode(taken))


def _packed(png: bytes) -> bytes:
    """The same picture with at most MOST_COLOURS colours: a third of the size."""
    packed = io.BytesIO()
    with Image.open(io.BytesIO(png)) as taken:
        few = taken.convert("RGB").quantize(MOST_COLOURS, dither=Image.Dither.NONE)
        few.save(packed, "PNG", optimize=True)
    return packed.getvalue()
