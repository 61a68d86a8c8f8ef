"""Every test in this folder uses Ray: marked `ray`, with a hard limit; those that share a Ray run one at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from launcher import one_node

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

LIMIT_S = 240
_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.slow)
            # Two at a time: more on a few cores would measure each other. Two hosts have a network of their own, and no
            # test of theirs measures less than ten seconds.
            own = "hosts" if item.path.stem == "test_two_hosts" else "ray"
            is_shared = "shared" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("shared" if is_shared else own))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def shared() -> Iterator["Cluster"]:
    """A Ray for every test that is about ranks: to start one and to end it takes as long as a rank."""
    with one_node() as cluster:
        yield cluster
