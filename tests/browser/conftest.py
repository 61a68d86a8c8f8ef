"""A headless Chromium; its tests are skipped aloud where there is none."""

from collections.abc import Iterator

import pytest
from browser_page import Page, is_there, window

NO_BROWSER = "needs chromium and chromedriver on PATH, and selenium"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("browser") is None:
            continue
        # One worker for all of them (--dist loadgroup): a browser takes both cores of a small machine.
        item.add_marker(pytest.mark.xdist_group("browser"))
        if not is_there():
            item.add_marker(pytest.mark.skip(reason=NO_BROWSER))


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A window of a browser with a profile of its own."""
    with window(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
