"""Pictures and checkpoint folders that several test files start from."""

from pathlib import Path

import numpy as np
import pytest
from command_line import import_make_checkpoint
from PIL import Image

from wan.config import TASKS


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
    script = import_make_checkpoint()
    made = {}
    for name in ("t2v-tiny", "i2v-tiny"):
        made[name] = tmp_path_factory.mktemp(name)
        script.write_checkpoint(TASKS[name], made[name])
    return made
