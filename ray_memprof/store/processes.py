"""Which process of this host a number stands for: whether the one that was meant still runs.

    when = started(os.getpid())
    is_alive(pid, when)            # that process, and no later one of the same number

Reads /proc: names are no help, for any process may change its own.
"""

from pathlib import Path

_STATE, _PARENT, USER, WAITED_FOR, _STARTED = 0, 1, 11, 13, 19
"""Fields of /proc/PID/stat behind the name, as proc(5) has them."""


def started(pid: int) -> int:
    """When that process started, in ticks since the host did: no later process of the same number has the same.

    Raises:
        ProcessLookupError: there is none.
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
    """What /proc/PID/stat has behind the name.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        # Behind the name, which may hold spaces and brackets of its own.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"there is no process {pid}") from error
