"""Folders whose names others can guess."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_memprof.errors import PreflightFailed
from ray_memprof.store.private_folder import private_folder, user_folder


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_new_and_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert private_folder(folder) == folder == private_folder(folder)
    assert mode(folder) == 0o700
    assert user_folder(tmp_path).name == f"ray_memprof-{os.geteuid()}"


@pytest.mark.parametrize("umask", [0, 0o777])
def test_the_umask_changes_nothing(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        private_folder(tmp_path / "mine")
    finally:
        os.umask(before)
    assert mode(tmp_path / "mine") == 0o700


def test_one_of_ours_that_is_open_to_others_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    folder.chmod(0o777)
    assert mode(private_folder(folder)) == 0o700


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (
            lambda path: path.symlink_to(path.parent),
            "a link, and somebody else may have chosen its target",
        ),
        (
            lambda path: path.symlink_to(path.parent / "nowhere"),
            "a link, and somebody else may have",
        ),
        (lambda path: path.write_text("x"), "no folder"),
    ],
)
def test_a_name_that_is_taken(tmp_path: Path, make: Callable[[Path], object], what: str) -> None:
    folder = tmp_path / "mine"
    make(folder)
    with pytest.raises(PreflightFailed, match=what) as raised:
        private_folder(folder)
    assert "ray.scratch_dir" in raised.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    os.chown(folder, 12345, -1)
    with pytest.raises(PreflightFailed, match="is a folder of user 12345"):
        private_folder(folder)


def test_where_nothing_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(PreflightFailed, match="cannot be made: No such file or directory"):
        private_folder(tmp_path / "absent" / "mine")
