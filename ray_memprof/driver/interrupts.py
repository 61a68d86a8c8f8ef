"""Ctrl-C and SIGTERM: the first asks for an orderly end, the second for an end at once.

    with Interrupts(live.say) as interrupts:
        ...                       # interrupts.signal is 2 or 15 after the first signal
        interrupts.install()      # again, after ray.init: Ray sets a SIGTERM handler of its own

The first signal sets a flag that every wait checks, so no step is interrupted half way. The second raises Abandoned in
the main thread; if the process still runs LAST_S later, it is ended by force.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

LAST_S = 2.5
"""Time from the second signal to the end by force. It is enough for ray.shutdown, which takes 1.1 to 1.7 s."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Raised for the first signal if it came while the ranks were being started."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Abandoned(BaseException):
    """Raised for the second signal: nothing more is collected. No `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Handles both signals as a context manager, which puts the earlier handlers back when it is left."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._before: dict[int, Any] = {}
        self.signal = 0
        """Number of the first signal; 0: none came."""
        self.last_signal = 0
        """Number of the second signal, after which the process waits for nothing more; 0: none came."""

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
        """Make this object the handler of both signals."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self.signal:
            self.signal = number
            self._say(
                f"{name}: ending the ranks and keeping what they recorded; a second signal ends at once"
            )
            return
        self._say(f"{name} again: leaving at once, what is not collected yet stays where it is")
        self.last_signal = number
        by_force = threading.Timer(LAST_S, os._exit, args=(128 + number,))
        by_force.daemon = True
        by_force.start()
        # A third signal must not interrupt the cleanup.
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise Abandoned(number)
