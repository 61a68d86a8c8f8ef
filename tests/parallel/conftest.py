"""Crews of two and of four ranks, one of each for the whole session."""

from collections.abc import Iterator

import pytest
from crew import Crew


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"crew", "two", "four"} & set(getattr(item, "fixturenames", ())):
            # One worker for all of them (--dist loadgroup): another would start ranks of its own.
            item.add_marker(pytest.mark.xdist_group("ranks"))


@pytest.fixture(scope="session")
def two() -> Iterator[Crew]:
    """Two ranks."""
    crew = Crew(2)
    yield crew
    crew.end()


@pytest.fixture(scope="session")
def four() -> Iterator[Crew]:
    """Four ranks."""
    crew = Crew(4)
    yield crew
    crew.end()
