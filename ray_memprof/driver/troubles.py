"""Tells of records that are lost while the run goes on: a disk that fills up is told at once, and not at the end.

    troubles = Troubles(state, say=live.say)
    troubles.look(beats)             # at every look at the ranks

The run itself goes on: the program is not to blame. What was written before is kept, and the verdict says it once more.
"""

import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from ray_memprof.driver.run_state import RunState
from ray_memprof.recorder.status import Beat

LOOK_S = 1.0
"""Between two looks at the disk of the run folder."""
LEFT_BYTES = 2**20
"""Of a disk that counts as full: what the driver itself writes at the end takes more."""


class Troubles:
    """What keeps the records of one run from being written, each told once.

    Args:
        state: of the run; gets a line for each.
        say: prints a line on the console.
        clock: seconds that only grow.
    """

    def __init__(
        self, state: RunState, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._state, self._say, self._clock = state, say, clock
        self._told = set[str]()
        self._looked: float | None = None

    def look(self, beats: Iterable[Beat]) -> None:
        """Look at what the ranks say, and now and then at our own disk."""
        for beat in beats:
            if beat.problem:
                self._tell(
                    f"{beat.problem}; what rank {beat.rank} measured after that is lost", ". The run goes on"
                )
        now = self._clock()
        if self._looked is None or now - self._looked >= LOOK_S:
            self._looked = now
            self._look_at_disk()

    def _look_at_disk(self) -> None:
        folder = self._state.folder.path
        with suppress(OSError):  # who writes there will tell why
            if shutil.disk_usage(folder).free < LEFT_BYTES:
                self._tell(
                    f"the disk of {folder} is full", ": make room before the run ends, or its report is lost"
                )

    def _tell(self, line: str, more: str) -> None:
        """Tell `line`, with `more` that is true only now."""
        if line not in self._told:
            self._told.add(line)
            self._state.problems.append(line)
            self._say(f"warning: {line}{more}")
