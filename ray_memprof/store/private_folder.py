"""Folders with names that others can guess, as in /tmp, but that nobody else can have made or can read.

private_folder(user_folder(Path("/tmp")) / run_id)       # /tmp/ray_memprof-1000/RUN_ID, mode 0700
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from ray_memprof.errors import PreflightFailed

_MODE = 0o700
_HINT = "set ray.scratch_dir, or TMPDIR, to a folder of yours"


def user_folder(parent: Path) -> Path:
    """Return this user's folder in `parent`, so that two users of a host do not get in each other's way."""
    return parent / f"ray_memprof-{os.geteuid()}"


def private_folder(folder: Path) -> Path:
    """Make `folder` for this user alone, or take one that this user owns; its parent must be there.

    Raises:
        PreflightFailed: the name is taken by a link, a file or somebody else's folder, or cannot be made.
    """
    try:
        with suppress(FileExistsError):
            os.mkdir(folder, _MODE)
        _check_own(folder)
        # The mode is set always: an existing folder may be open to others, and a umask may be too strict. It is set on
        # the opened folder and not by name, because a name may be a link.
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchmod(opened, _MODE)
        finally:
            os.close(opened)
    except OSError as error:
        raise PreflightFailed(f"{folder} cannot be made: {error.strerror or error}", hint=_HINT) from error
    return folder


def _check_own(folder: Path) -> None:
    found = os.lstat(folder)
    if stat.S_ISLNK(found.st_mode):
        what = "a link, and somebody else may have chosen its target"
    elif not stat.S_ISDIR(found.st_mode):
        what = "no folder"
    elif found.st_uid != os.geteuid():
        what = f"a folder of user {found.st_uid}"
    else:
        return
    raise PreflightFailed(f"{folder} is {what}", hint=f"remove it, or {_HINT}")
