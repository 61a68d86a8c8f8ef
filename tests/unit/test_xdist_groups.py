"""Tests that start Ray, ranks or a GPU run one at a time: pytest and pytest-xdist must agree on groups."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.xdist_group("one"))
"""
TEST = """
import os
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", range(4))
def test_it(number):
    time.sleep(0.2)  # so that the other worker would get some
    (Path(__file__).parent / f"{os.environ['PYTEST_XDIST_WORKER']}-{number}").touch()
"""


@pytest.mark.slow
def test_tests_of_one_group_run_on_one_worker(tmp_path: Path) -> None:
    """GIVEN a mark that a conftest.py adds, as those of tests/ do."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TEST)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "loadgroup",
        "--rootdir",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )

    assert done.returncode == 0, done.stdout
    ran = sorted(path.name.split("-") for path in tmp_path.glob("gw*-*"))
    assert (len(ran), len({worker for worker, _ in ran})) == (4, 1)
