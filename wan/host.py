"""How much memory this host, or the container around this process, can give.

    memory_bytes()      # 137438953472

The memory that a video or picture needs is compared with this number before it is read or made.
"""

import os
from pathlib import Path

# The limits of control groups, version 2 and version 1; a file is absent or says "max" where there is no limit.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_bytes() -> int:
    """Physical memory, or the limit of the container where that is less; bytes."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *(limit for path in _LIMITS if (limit := _limit_in(path)))])


def _limit_in(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
