"""A headless Chromium; its tests are skipped aloud where there is none."""

import importlib.util
import shutil
from collections.abc import Iterator

import pytest
from browser_page import Page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NO_BROWSER = "needs chromium and chromedriver on PATH, and selenium"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    is_there = BROWSER and DRIVER and importlib.util.find_spec("selenium")
    for item in items:
        if item.get_closest_marker("browser") is None:
            continue
        # One worker for all of them (--dist loadgroup): a browser takes both cores of a small machine.
        item.add_marker(pytest.mark.xdist_group("browser"))
        if not is_there:
            item.add_marker(pytest.mark.skip(reason=NO_BROWSER))


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A window of a browser with a profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield Page(driver)
    finally:
        driver.quit()
