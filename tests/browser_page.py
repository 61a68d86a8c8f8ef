"""A page in a headless Chromium: what it draws, logs and asks a network for."""

import importlib.util
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE_S = 120
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def is_there() -> bool:
    """Whether there is a browser to open pages in."""
    return bool(BROWSER and DRIVER and importlib.util.find_spec("selenium"))


@contextmanager
def window(profile: Path) -> Iterator["Page"]:
    """A window of a browser with a profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    # A page that draws on a busy machine answers late.
    driver.set_script_timeout(DEADLINE_S)
    try:
        yield Page(driver)
    finally:
        driver.quit()


class Page:
    """One browser window on one file."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Show a report and wait until it has drawn all it wants to draw."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **metrics)
        self.command(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        # A new window shows a page of the browser's own, which asks for much.
        self.complaints(), self.requests()
        self.driver.get(path.as_uri())
        self.wait("document.documentElement.hasAttribute('data-ready')")

    def command(self, name: str, **values: Any) -> Any:
        """One of the browser's own (Chrome DevTools Protocol)."""
        return self.driver.execute_cdp_cmd(name, values)

    def ask(self, expression: str) -> Any:
        """What an expression is worth in the page."""
        return self.driver.execute_script(f"return {expression}")

    def wait(self, expression: str) -> None:
        """Until it is true."""
        end = time.monotonic() + DEADLINE_S
        while not self.ask(expression):
            assert time.monotonic() < end, f"not within {DEADLINE_S} s: {expression}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """A key, to whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(key)

    def complaints(self) -> list[str]:
        """Lines of the console, since the last time."""
        return [line["message"] for line in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for, since the last time, the page's own file and its own data left out."""
        messages = [json.loads(line["message"])["message"] for line in self.driver.get_log("performance")]
        sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        addresses = [one["request"]["url"] for one in sent]
        return [url for url in addresses if not url.startswith(("file:", "data:", "blob:"))]
