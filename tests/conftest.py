"""What every test gets: a fixed seed, few threads, and gpu tests that are skipped aloud or run one by one.

`--shuffle 7` runs them in an order drawn from the seed 7: no test may lean on what others left in its process.
"""

import os
import random

import pytest
import torch

NO_GPU = "needs a CUDA device: torch.cuda.is_available() is False here"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in an order drawn from SEED")


def pytest_configure() -> None:
    # Two threads in all: with workers (pytest -n 2) each has one, and so have the processes that a test starts.
    threads = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


# First: afterwards pytest-xdist notes which group a test is of.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)
    for item in items:
        if item.get_closest_marker("gpu") is None:
            continue
        # One worker for all of them (--dist loadgroup): side by side they would count each other's bytes.
        item.add_marker(pytest.mark.xdist_group("gpu"))
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers whichever tests ran before."""
    torch.manual_seed(0)
