"""wan.inputs.files and wan.host: what lies at a path, in the words that a person needs."""

import errno
import os
from pathlib import Path

import pytest

from wan import host
from wan.inputs.files import (
    CHECK_PATH,
    Trouble,
    trouble_with_file,
    trouble_with_folder,
    what_is_at,
)


def test_what_is_at_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("gone")
    found = {name: what_is_at(tmp_path / name) for name in ("file", "link", "pipe", "broken", "gone", "")}
    assert found == {
        "file": "file", "link": "file", "pipe": "other", "broken": "nothing", "gone": "nothing", "": "folder",
    }  # fmt: skip
    assert what_is_at(tmp_path / "file" / "below") == "nothing"
    assert what_is_at(Path("a\0b")) == "nothing"


def test_trouble_with_files(tmp_path: Path) -> None:
    file, pipe, broken = tmp_path / "file", tmp_path / "pipe", tmp_path / "broken"
    file.touch()
    os.mkfifo(pipe)
    broken.symlink_to("gone")
    assert trouble_with_file(file) is None
    assert trouble_with_file(tmp_path) == Trouble(f"{tmp_path} is a folder, not a file", "give a file")
    assert trouble_with_file(pipe) == Trouble(
        f"{pipe} is a pipe, socket or device, not a file", "give a file"
    )
    assert trouble_with_file(broken) == Trouble(
        f"{broken} is a link to gone, which is not there", "repair the link"
    )
    assert trouble_with_file(Path("gone")) == Trouble("there is no file gone", CHECK_PATH)


def test_trouble_with_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert trouble_with_folder(tmp_path) is None
    assert trouble_with_folder(tmp_path / "file") == Trouble(
        f"{tmp_path / 'file'} is not a folder", "give the folder"
    )
    assert trouble_with_folder(Path("gone")) == Trouble("there is no folder gone", CHECK_PATH)


def test_a_name_too_long_and_links_in_a_circle(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    assert trouble_with_file(long) == Trouble(f"{long} cannot be read: File name too long", CHECK_PATH)
    circle = tmp_path / "circle"
    circle.symlink_to("circle")
    trouble = trouble_with_folder(circle)
    assert trouble is not None
    assert trouble.what == f"{circle} cannot be read: {os.strerror(errno.ELOOP)}"


@pytest.mark.parametrize("call", ["stat", "open"])
def test_no_permission_is_told_as_such(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, whom nothing refuses.
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    file = tmp_path / "file"
    file.touch()
    if call == "stat":
        monkeypatch.setattr(os, "stat", refuse)
    else:
        monkeypatch.setattr(Path, "open", refuse)
        monkeypatch.setattr(os, "scandir", refuse)
    for path, trouble in ((file, trouble_with_file(file)), (tmp_path, trouble_with_folder(tmp_path))):
        assert trouble is not None
        assert trouble.what == f"{path} may not be read: Permission denied"
        assert "run as a user who may read it" in trouble.hint


# --------------------------------------------------------------------------------
# The memory of the host


def test_memory_is_that_of_the_host_or_of_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(host, "_LIMITS", (tmp_path / "gone", limit))
    physical = host.memory_bytes()
    assert physical == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for text, expected in (
        ("max\n", physical), ("1048576\n", 2**20), ("0", physical), (str(2**62), physical),
    ):  # fmt: skip
        limit.write_text(text, encoding="ascii")
        assert host.memory_bytes() == expected
