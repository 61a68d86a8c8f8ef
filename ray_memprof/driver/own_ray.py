"""A Ray of our own that nobody else can use: on loopback, behind a token, with its files in a folder of this user.

    guard(config.ray.address)                        # before ray is imported
    ray.init("local", _temp_dir=temp_dir(), ...)     # after stay_on_loopback()

Without this, Ray listens on every interface and accepts every client, and all users can read its files in /tmp/ray.
A cluster that is joined keeps its own settings: nothing is changed for it.
"""

import os
import secrets
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from ray_memprof.store.private_folder import private_folder, user_folder

_AUTH_MODE, _AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""If this is false, Ray uses the loopback address; the name comes from the systems on which false is the default."""
_TEMP_DIR = "RAY_TMPDIR"
_SHORT = Path("/tmp")  # noqa: S108 - a private folder in it
"""Used if TMPDIR is too long for the name of a socket; Ray itself would use it then, too."""
_MOST_BYTES = 107 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1")
"""Longest path for the folder of Ray's files: the kernel allows 107 bytes for the name of a socket."""


def guard(address: str | None, environ: MutableMapping[str, str] = os.environ) -> None:
    """Require a token of this run from every client of our own Ray; Ray reads it when it is imported.

    Args:
        address: of the cluster to join; None: a Ray of our own.
        environ: of this process. A RAY_AUTH_MODE that the user has set stays.
    """
    if address is None and "ray" not in sys.modules and _AUTH_MODE not in environ:
        environ[_AUTH_MODE] = "token"
        environ[_AUTH_TOKEN] = secrets.token_hex(32)


def stay_on_loopback(is_own: bool) -> None:
    """Make our own Ray listen on loopback only; undo that for a cluster that is joined. Call it before ray.init."""
    from ray._private import ray_constants

    if is_own and _CLUSTER not in os.environ:
        os.environ[_CLUSTER] = "0"  # for the processes that Ray starts
        ray_constants.ENABLE_RAY_CLUSTER = False
    elif not is_own and not ray_constants.ENABLE_RAY_CLUSTER and os.environ.get(_CLUSTER) == "0":
        del os.environ[_CLUSTER]
        ray_constants.ENABLE_RAY_CLUSTER = True


def temp_dir() -> str | None:
    """The folder for the files of our own Ray; None: the user has set RAY_TMPDIR, which Ray reads itself.

    Raises:
        PreflightFailed: another user has a folder of the same name as this user's folder.
    """
    if os.environ.get(_TEMP_DIR):
        return None
    parents = (Path(tempfile.gettempdir()), _SHORT)
    # One level below the private folder: Ray makes the folder that it is given accessible to everybody.
    folders = [user_folder(parent) / "ray" for parent in parents]
    folder = next((one for one in folders if len(os.fsencode(one)) <= _MOST_BYTES), folders[-1])
    private_folder(folder.parent)
    return str(folder)


def logs(folder: str | None) -> Path:
    """The folder of the logs of the newest session of a Ray whose temp_dir() was `folder`."""
    return Path(folder or os.environ.get(_TEMP_DIR) or "/tmp/ray", "session_latest", "logs")  # noqa: S108 - Ray's


def last_words(folder: Path) -> str:
    """The last line that a process of Ray wrote before Ray failed to start; "" if there is none."""
    for name in ("gcs_server.err", "raylet.err", "gcs_server.out", "raylet.out"):
        try:
            lines = (folder / name).read_text(errors="replace").splitlines()
        except OSError:
            continue
        if said := next((line.strip() for line in reversed(lines) if line.strip()), ""):
            return said
    return ""
