"""Whether a process of this host still runs, and not a later one with the same number.

    facts = process_facts()        # this process, for a file that others read
    has_ended(facts)               # True, False, or None on another host

    when = started(os.getpid())
    is_alive(pid, when)            # that process, and no later one of the same number

Reads /proc. Names of processes are no help, because any process may change its own name.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_STATE, _PARENT, USER, WAITED_FOR, _STARTED = 0, 1, 11, 13, 19
"""Fields of /proc/PID/stat behind the name, as proc(5) has them."""


def process_facts() -> dict[str, Any]:
    """Return what shows later, on the same host, whether this process still runs."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        # Another process may get the same number.
        "started": started(os.getpid()),
    }


def has_ended(facts: Mapping[str, Any]) -> bool | None:
    """Whether the process with these process_facts() has ended; None: it is on another host, and cannot be seen."""
    if facts["host"] != socket.gethostname():
        return None
    return not is_alive(facts["pid"], facts["started"])


def started(pid: int) -> int:
    """Return when a process started, in ticks since the host did: different for a later process of the same number.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return int(stat_fields(pid)[_STARTED])


def is_alive(pid: int, when: int) -> bool:
    """Whether the process that `started` at `when` still runs."""
    try:
        fields = stat_fields(pid)
    except ProcessLookupError:
        return False
    return fields[_STATE] not in "ZX" and int(fields[_STARTED]) == when


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        # Behind the name, which may hold spaces and brackets of its own.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"there is no process {pid}") from error
