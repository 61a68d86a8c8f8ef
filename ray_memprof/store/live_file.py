"""Where the ranks of a run are now, in a small file of its folder: the driver replaces it while it watches them.

    with LiveFile(run_dir) as live:
        live.note(lambda: {"pace": ..., "beats": [...]})    # at most a few times a second, as seldom as keeps it cheap
    read_live(run_dir)              # what it says, from another process; None: there is none

No rank writes it or waits for it. It is nothing of the record: a disk without room for it goes unnoticed here.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray_memprof.store.run_files import LIVE_FILE, TEMPORARY_SUFFIX

SHARE = 0.05
"""Most of the driver's time that goes into the file: on a slow disk it is written more seldom."""


class LiveFile:
    """The file of one run, for its driver.

    Args:
        run_dir: the run.
        clock: seconds, from any start.
    """

    def __init__(self, run_dir: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = run_dir / LIVE_FILE, clock
        self._next = float("-inf")

    def __enter__(self) -> "LiveFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def note(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Replace the file, unless the last time took so long that this would be too soon.

        Args:
            facts: gives what is written, as plain values: pace, and the newest beat of each rank that has sent one.
        """
        begun = self._clock()
        if begun < self._next:
            return
        text = json.dumps({"t_ns": time.time_ns(), **facts()})
        temporary = self._path.with_name(LIVE_FILE + TEMPORARY_SUFFIX)
        # Not fsync: after a loss of power nobody asks where the ranks are.
        with suppress(OSError):
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self._path)
        ended = self._clock()
        self._next = ended + (ended - begun) * (1 / SHARE - 1)

    def remove(self) -> None:
        """Remove the file, if there is one."""
        for path in (self._path, self._path.with_name(LIVE_FILE + TEMPORARY_SUFFIX)):
            with suppress(OSError):
                path.unlink()


def read_live(run_dir: Path) -> dict[str, Any] | None:
    """What the driver of a run noted last: t_ns, pace and beats; None: nothing, so far or any longer."""
    try:
        found = json.loads((run_dir / LIVE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
