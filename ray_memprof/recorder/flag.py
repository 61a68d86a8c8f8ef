"""A threading.Event without a lock: a signal's handler may interrupt any call of it and raise, and no lock stays taken.

    flag.set()                     # on one thread
    flag.wait(1.0)                 # on another: True

threading.Event, Condition and queue.Queue take their lock in a method written in Python. What a handler raises right
after that leaves the lock taken for ever: the next thread that wants it hangs. queue.SimpleQueue is written in C.
"""

import time
from contextlib import suppress
from queue import Empty, SimpleQueue


class Flag:
    """Set or not; threads may wait until it is set."""

    def __init__(self) -> None:
        self._is_set = False
        self._wakes: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake who waits."""
        self._is_set = True
        if self._wakes.empty():  # one wakes them all, one after the other; more would stay there for ever
            self._wakes.put(None)

    def clear(self) -> None:
        """Take it back."""
        self._is_set = False

    def wait(self, timeout: float) -> bool:
        """Wait until it is set, `timeout` seconds at most; whether it is."""
        until, has_taken = time.monotonic() + timeout, False
        while not self._is_set and (left := until - time.monotonic()) > 0:
            with suppress(Empty):
                self._wakes.get(timeout=left)
                has_taken = True
        if self._is_set and has_taken:
            self._wakes.put(None)  # another thread may wait, too
        return self._is_set
