"""Ctrl-C and SIGTERM: the first asks for an orderly end, the second for an end at once.

    with Interrupts(live.say) as interrupts:
        ...                       # interrupts.signal is 2 or 15 once somebody asked
        interrupts.install()      # again, after ray.init: Ray sets a SIGTERM handler of its own

The first is a flag that every wait looks at, so nothing is torn apart half way. The second raises Abandoned in the
main thread, and ends the process by force where even that is stuck.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

LAST_S = 2.5
"""From the second signal to the end by force: ray.shutdown takes 1.1 to 1.7 s."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The first signal, where it came while the ranks were being started."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Abandoned(BaseException):
    """The second signal: nothing more is collected. Not an Exception, so that no handler on the way takes it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Context manager; outside it the handlers that were there before are back."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._before: dict[int, Any] = {}
        self.signal = 0
        """Number of the first signal; 0: none came."""
        self.last_signal = 0
        """Number of the second one, after which nothing is waited for; 0: none came."""

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take both signals."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self.signal:
            self.signal = number
            self._say(f"{name}: ending the ranks and keeping what they recorded; once more to leave at once")
            return
        self._say(f"{name} again: leaving at once, what is not collected yet stays where it is")
        self.last_signal = number
        by_force = threading.Timer(LAST_S, os._exit, args=(128 + number,))
        by_force.daemon = True
        by_force.start()
        # A third one must not interrupt the way out.
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise Abandoned(number)
