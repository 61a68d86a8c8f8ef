"""Takes pictures of the sample run's report for README and docs, with a headless Chromium; write_docs.py calls it.

    python scripts/write_docs.py --pictures      # docs/report_sample.png and docs/report_sample_dark.png

Needs chromium with chromedriver, and selenium (extra dev). The fonts are those of the machine: two machines make
pictures that differ a little, so no check compares them.
"""

import base64
import importlib.util
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
    Picture("report_sample_dark.png", "dark", "#timeline_by_account", "#activation_by_step"),
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
    return palette_png(_pixels(driver, taken))


_DECODE = """
const [png, done] = arguments;
const image = new Image();
image.onload = () => {
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const reader = new FileReader();
  reader.onload = () => done([image.width, image.height, reader.result.split(",")[1]]);
  reader.readAsDataURL(new Blob([context.getImageData(0, 0, image.width, image.height).data]));
};
image.src = `data:image/png;base64,${png}`;
"""


def _pixels(driver: Any, png: str) -> Any:
    """The colours of a picture, [height, width, 3] of uint8: the browser has a decoder."""
    width, height, plain = driver.execute_async_script(_DECODE, png)
    return np.frombuffer(base64.b64decode(plain), np.uint8).reshape(height, width, 4)[:, :, :3]


def palette_png(pixels: Any) -> bytes:
    """A picture as PNG of at most 256 colours, a third of the size: rare ones become the most like of the others.

    Args:
        pixels: [height, width, 3] of uint8.
    """
    height, width, _ = pixels.shape
    wide = pixels.astype(np.int32)
    numbers = (wide[:, :, 0] << 16) | (wide[:, :, 1] << 8) | wide[:, :, 2]
    found, where, counts = np.unique(numbers.ravel(), return_inverse=True, return_counts=True)
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
    kept = colours[np.argsort(-counts, kind="stable")[:MOST_COLOURS]]
    nearest = np.array([np.abs(kept - colour).sum(axis=1).argmin() for colour in colours], np.uint8)
    lines = np.zeros((height, width + 1), np.uint8)  # the first byte of a line: it is not filtered
    lines[:, 1:] = nearest[where].reshape(height, width)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", kept.astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
