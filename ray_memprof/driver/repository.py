"""Which commit code is of, and whether it was changed since: for run.json, so that figures can be traced to it.

    repository(Path("train.py"))      # {"commit": "5f0c...", "is_dirty": False, "folder": "/home/me/nanogpt"}

Asks git, which must answer in a few seconds; leaves nothing, not even a refreshed index. None where there is no git,
no repository, no commit, a repository of somebody else (git refuses those, since what they configure would be run), or
where the repository is only around it, as around a package that is installed in a folder of it.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

_TIMEOUT_S = 5.0
"""Of one question to git; the state of a large repository on a slow disk may take longer: then it is not known."""
_ASK_ONLY = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false")
"""Neither write the index nor start a daemon."""


def repository(path: Path) -> dict[str, Any] | None:
    """The repository that the file or folder `path` is in.

    `is_dirty`: a file that git follows differs from the commit, or `path` is a file that git does not follow. Other
    files that it does not follow say nothing of the program: what it writes often lies beside it. None: not known.
    """
    path = path.absolute()
    folder = path if path.is_dir() else path.parent
    told = _git(folder, "rev-parse", "--show-toplevel", "HEAD")
    if (
        told is None
        or len(told.splitlines()) != 2
        or _git(folder, "check-ignore", "-q", str(path)) is not None
    ):
        return None
    top, commit = told.splitlines()
    is_followed = bool(_git(folder, "ls-files", "--", str(path)))
    if path.is_dir() and not is_followed:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    is_dirty = True if not is_followed else None if changes is None else bool(changes)
    return {"commit": commit, "is_dirty": is_dirty, "folder": top}


def commit_text(found: dict[str, Any] | None) -> str:
    """The commit in one word, as `git describe --dirty` has it; empty where there is none."""
    if found is None:
        return ""
    return f"{found['commit']}-dirty" if found["is_dirty"] else str(found["commit"])


def _git(folder: Path, *arguments: str) -> str | None:
    """What git writes; None where it fails, is not there or does not answer."""
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
