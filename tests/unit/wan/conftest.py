"""Files that flags can name."""

from pathlib import Path

import pytest


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Files that are there, by the name of their flag."""
    names = {
        "image": "start.png", "first_frame": "first.png", "last_frame": "last.png",
        "src_video": "video.mp4", "src_mask": "mask.mp4", "src_ref_images": "ref.png",
    }  # fmt: skip
    for name in names.values():
        (tmp_path / name).touch()
    return {flag: str(tmp_path / name) for flag, name in names.items()}
