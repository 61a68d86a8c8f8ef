"""Tells what is at a path and why it cannot be read, so that every message about it uses the same words.

    trouble = trouble_with_file(Path("cat.jpg"))       # None, or Trouble("there is no file cat.jpg", "check the ...")

A file without permission to read is neither absent nor damaged, and a broken link is not a wrong name: each case has
its own message. Imports nothing of this package, so that flags can be checked at once. Leaves nothing on disk.
"""

import os
import stat
from pathlib import Path
from typing import Literal, NamedTuple

Found = Literal["file", "folder", "other", "nothing"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Files that are read and written as one picture."""
SAVE_VIDEO_SUFFIX = ".mp4"

CHECK_PATH = "check the path; relative ones start at the working folder"


class Trouble(NamedTuple):
    """Why a path cannot be used, and what to do about it."""

    what: str
    hint: str


def what_is_at(path: Path) -> Found:
    """What lies at `path`, links followed.

    Raises OSError where this cannot be found out: a folder above may not be entered, the name is too long, or links
    form a circle.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except ValueError:  # a path with a NUL
        return "nothing"
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "other"


def is_absent(path: Path) -> bool:
    """Whether nothing at all is at `path`, not even a broken link; False where this cannot be found out."""
    try:
        return what_is_at(path) == "nothing" and not os.path.islink(path)
    except OSError:
        return False


def trouble_with_file(path: Path) -> Trouble | None:
    """Why `path` is not a file that can be read; None: it is one, and it opens."""
    try:
        found = what_is_at(path)
        if found == "file":
            with path.open("rb"):
                return None
    except OSError as error:
        return refused(path, error)
    if found == "nothing":
        return _absent("file", path)
    kind = "a folder" if found == "folder" else "a pipe, socket or device"
    return Trouble(f"{path} is {kind}, not a file", "give a file")


def trouble_with_folder(path: Path) -> Trouble | None:
    """Why `path` is not a folder that can be listed; None: it is one."""
    try:
        found = what_is_at(path)
        if found == "folder":
            with os.scandir(path):
                return None
    except OSError as error:
        return refused(path, error)
    return (
        _absent("folder", path)
        if found == "nothing"
        else Trouble(f"{path} is not a folder", "give the folder")
    )


def refused(path: Path, error: OSError) -> Trouble:
    """Why `path` cannot be read, in the words of the operating system."""
    if isinstance(error, PermissionError):
        return Trouble(
            f"{path} may not be read: {error.strerror or error}",
            "ask its owner, or run as a user who may read it: see ls -l of it and of the folders above",
        )
    return Trouble(f"{path} cannot be read: {error.strerror or error}", CHECK_PATH)


def _absent(kind: str, path: Path) -> Trouble:
    if os.path.islink(path):
        return Trouble(f"{path} is a link to {os.readlink(path)}, which is not there", "repair the link")
    return Trouble(f"there is no {kind} {path}", CHECK_PATH)
