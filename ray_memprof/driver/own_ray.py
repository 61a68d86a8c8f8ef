"""A Ray of our own that nobody else can reach: on loopback, behind a token, with its files in a folder of this user.

    guard(config.ray.address)                        # before ray is imported
    ray.init("local", _temp_dir=temp_dir(), ...)     # after stay_on_loopback()

Without this, Ray listens on every interface and accepts every client, and all users can read its files in /tmp/ray.
A cluster that is joined has its own ways: nothing is changed for it.
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
"""Where it is false Ray takes loopback for its address; it is named for the systems on which that is the default."""
_TEMP_DIR = "RAY_TMPDIR"
_SHORT = Path("/tmp")  # noqa: S108 - a private folder in it
"""Where TMPDIR is too long for a socket: what Ray would take then, too."""
_MOST_BYTES = 107 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1")
"""Longest folder for Ray's files: the kernel takes 107 bytes for the name of a socket."""


def guard(address: str | None, environ: MutableMapping[str, str] = os.environ) -> None:
    """Let only those talk to our own Ray who know a token of this run; Ray reads it when it is imported.

    Args:
        address: of the cluster to join; None: a Ray of our own.
        environ: of this process. What the user has set in it stays.
    """
    if address is None and "ray" not in sys.modules and _AUTH_MODE not in environ:
        environ[_AUTH_MODE] = "token"
        environ[_AUTH_TOKEN] = secrets.token_hex(32)


def stay_on_loopback(is_own: bool) -> None:
    """Have Ray listen on loopback alone where it is our own, before ray.init; as it would by itself otherwise."""
    from ray._private import ray_constants

    if is_own and _CLUSTER not in os.environ:
        os.environ[_CLUSTER] = "0"  # for the processes that Ray starts
        ray_constants.ENABLE_RAY_CLUSTER = False
    elif not is_own and not ray_constants.ENABLE_RAY_CLUSTER and os.environ.get(_CLUSTER) == "0":
        del os.environ[_CLUSTER]
        ray_constants.ENABLE_RAY_CLUSTER = True


def temp_dir() -> str | None:
    """Where our own Ray keeps its files; None: where the user wants them.

    Raises:
        PreflightFailed: somebody else has taken the name of this user's folder.
    """
    if os.environ.get(_TEMP_DIR):
        return None
    parents = (Path(tempfile.gettempdir()), _SHORT)
    # One level down: Ray opens the folder that it is given to everybody.
    folders = [user_folder(parent) / "ray" for parent in parents]
    folder = next((one for one in folders if len(os.fsencode(one)) <= _MOST_BYTES), folders[-1])
    private_folder(folder.parent)
    return str(folder)


def logs(folder: str | None) -> Path:
    """Where a Ray whose temp_dir() was `folder` keeps the logs of its newest session."""
    return Path(folder or os.environ.get(_TEMP_DIR) or "/tmp/ray", "session_latest", "logs")  # noqa: S108 - Ray's


def last_words(folder: Path) -> str:
    """The last line that a process of Ray wrote before it failed to start; "" for none."""
    for name in ("gcs_server.err", "raylet.err", "gcs_server.out", "raylet.out"):
        try:
            lines = (folder / name).read_text(errors="replace").splitlines()
        except OSError:
            continue
        if said := next((line.strip() for line in reversed(lines) if line.strip()), ""):
            return said
    return ""
