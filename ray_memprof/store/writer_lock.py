"""Whether the process that writes the files of a rank has ended: it may outlive the rank by a moment.

    held = hold(manifest_path(run_dir, rank))          # in the process that writes; until it ends, however it ends
    if not has_ended(manifest_path(run_dir, rank)):    # before its files are read as those of a rank that ended
        ...

The kernel takes the lock back when the process ends. Forked children would keep it, so a process that may fork does not
take it; a file system without locks tells nothing, and then nobody waits.
"""

import errno
import fcntl
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

WAIT_S = 30.0
"""Seconds that a writer may need for what it was given before its rank ended; mostly it needs none."""
_PAUSE_S = 0.05


def hold(manifest: Path) -> IO[bytes]:
    """Take the lock of a rank's manifest; the file must stay open as long as this process writes."""
    held = open(manifest, "ab")  # noqa: SIM115 - until the process ends
    with suppress(OSError):  # this file system has no locks
        fcntl.flock(held, fcntl.LOCK_EX)
    return held


def has_ended(manifest: Path, wait_s: float = WAIT_S) -> bool:
    """Wait until nobody holds the lock of a rank's manifest; False: somebody still does after `wait_s` seconds."""
    until = time.monotonic() + wait_s
    try:
        with open(manifest, "rb") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return True
                except OSError as error:
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                        return True
                if time.monotonic() >= until:
                    return False
                time.sleep(_PAUSE_S)
    except OSError:  # it is not there, or cannot be read: what reads it next says so
        return True
