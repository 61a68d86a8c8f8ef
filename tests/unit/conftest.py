"""What several test files start from: pictures, checkpoint folders, configuration files, runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from command_line import import_script
from empty_run import EmptyRun
from PIL import Image
from warm_processes import keep_warm

from wan.config import TASKS

_ON_ONE_WORKER = {
    "warm": "warm",
    "warm_runs": "warm",
    "pages": "pages",
    "once": "pages",
    "guarded_run": "guarded",
    "made_once": "made once",
}
"""Groups of tests by a fixture that takes seconds: each worker (--dist loadgroup) would make another."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        groups = {
            _ON_ONE_WORKER[name] for name in getattr(item, "fixturenames", ()) if name in _ON_ONE_WORKER
        }
        for group in groups:
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of the size of tiny videos."""
    ramp = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(ramp).save(path)
    return path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the official layout."""
    script = import_script("make_checkpoint")
    made = {}
    for name in ("t2v-tiny", "i2v-tiny"):
        made[name] = tmp_path_factory.mktemp(name)
        script.write_checkpoint(TASKS[name], made[name])
    return made


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a configuration file and returns its path."""

    def write_file(text: str) -> Path:
        path = tmp_path / "x.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    """scripts/make_synthetic_run.py."""
    return import_script("make_synthetic_run")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmptyRun]:
    """A run in memory, to be filled by each test."""
    with EmptyRun(tmp_path_factory.mktemp("run")) as run:
        yield run


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions share processes that stay from test to test."""
    keep_warm(monkeypatch)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone, by gloo."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
