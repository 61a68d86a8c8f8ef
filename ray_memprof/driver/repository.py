"""The git commit of the code that ran, and whether files have changed since: for run.json, to trace figures to code.

    repository(Path("train.py"))      # {"commit": "5f0c...", "is_dirty": False, "folder": "/home/me/nanogpt"}

Asks git, which must answer in a few seconds; git writes nothing, not even its index. The answer is None if there is no
git, no repository or no commit; if the repository belongs to another user (git refuses it, since git would run programs
that it configures); or if the code is not part of the repository, as a package that is installed in a folder inside it.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

_TIMEOUT_S = 5.0
"""Time limit of one call of git; the status of a large repository on a slow disk may take longer, and stays unknown."""
_ASK_ONLY = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false")
"""Options that keep git from writing its index and from starting a daemon."""


def repository(path: Path) -> dict[str, Any] | None:
    """The repository that the file or folder `path` is in.

    `is_dirty`: a tracked file differs from the commit, or `path` itself is an untracked file. Other untracked files do
    not count: often they are only output of the program. None: not known.
    """
    path = path.absolute()
    folder = path if path.is_dir() else path.parent
    answer = _git(folder, "rev-parse", "--show-toplevel", "HEAD")
    if (
        answer is None
        or len(answer.splitlines()) != 2
        or _git(folder, "check-ignore", "-q", str(path)) is not None
    ):
        return None
    top, commit = answer.splitlines()
    is_followed = bool(_git(folder, "ls-files", "--", str(path)))
    if path.is_dir() and not is_followed:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    is_dirty = True if not is_followed else None if changes is None else bool(changes)
    return {"commit": commit, "is_dirty": is_dirty, "folder": top}


def commit_text(found: dict[str, Any] | None) -> str:
    """The commit, with "-dirty" as `git describe --dirty` writes it; empty if there is none."""
    if found is None:
        return ""
    return f"{found['commit']}-dirty" if found["is_dirty"] else str(found["commit"])


def _git(folder: Path, *arguments: str) -> str | None:
    """What git writes; None if git fails, is not installed or does not answer in time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *_ASK_ONLY, "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env={**environment, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
