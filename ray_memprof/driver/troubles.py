"""Warns of lost records while the run goes on: a full disk is reported at once, not only at the end.

    troubles = Troubles(state, say=live.say)
    troubles.look(beats)             # each time that beats arrive

The run itself goes on, since its program is not at fault. Earlier records are kept. The last lines of the run repeat
the warning.
"""

import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from ray_memprof.driver.run_state import RunState
from ray_memprof.recorder.status import Beat

LOOK_S = 1.0
"""Time between two checks of the disk of the run folder."""
LEFT_BYTES = 2**20
"""With less than this free the disk counts as full: what the driver writes at the end takes more."""


class Troubles:
    """Reports each problem that keeps records of one run from being written, once.

    Args:
        state: of the run; gets a line for each problem.
        say: prints a line on the console.
        clock: seconds that only grow.
    """

    def __init__(
        self, state: RunState, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._state, self._say, self._clock = state, say, clock
        self._said = set[str]()
        self._looked: float | None = None

    def look(self, beats: Iterable[Beat]) -> None:
        """Check the problems that the ranks report and, every LOOK_S seconds, the disk of the run folder."""
        for beat in beats:
            if beat.problem:
                self._say_once(
                    f"{beat.problem}; what rank {beat.rank} measured after that is lost", ". The run goes on"
                )
        now = self._clock()
        if self._looked is None or now - self._looked >= LOOK_S:
            self._looked = now
            self._look_at_disk()

    def _look_at_disk(self) -> None:
        folder = self._state.folder.path
        with suppress(OSError):  # the code that writes there will report the cause
            if shutil.disk_usage(folder).free < LEFT_BYTES:
                self._say_once(
                    f"the disk of {folder} is full", ": make room before the run ends, or its report is lost"
                )

    def _say_once(self, line: str, more: str) -> None:
        """Record `line` and print it together with `more`, which is true only at this moment."""
        if line not in self._said:
            self._said.add(line)
            self._state.problems.append(line)
            self._say(f"warning: {line}{more}")
