"""Every test in this folder starts Ray: marked `ray`, one at a time, with a hard limit."""

from pathlib import Path

import pytest

LIMIT_S = 240
_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.slow)
            # Several Rays at a time on a few cores would measure each other.
            item.add_marker(pytest.mark.xdist_group("ray"))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT_S))
