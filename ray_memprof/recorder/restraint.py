"""Limits how much the writing thread works: only a little as long as a model needs Python's lock, then without limit.

    restraint = Restraint()
    for piece in pieces:
        work(piece)                                  # less than a millisecond
        restraint.rest(waits_since, num_waiting)          # lets the model have the lock
    restraint.hurry()                                     # from now on there is no model to wait for

Python takes the lock from a working thread only after 5 ms, and the model releases the lock and wants it again with
every operation. So the time that this thread works is lost to a model that has no time to spare, such as a decoder that
launches small kernels: 11 % of the decoding of a video, measured on an H200. Two things limit how much may wait:
memory, and what a killed rank would lose. The nearer they are, the shorter are the rests: so a program that makes more
events than 1 % of its time can write finds the work spread evenly, not at once when a limit is reached.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray_memprof.recorder.flag import Flag

IDLE = 100.0
"""Seconds of rest for each second of work, while nothing waits for long: work takes 1 % of the model's time."""
LONGEST_REST_S = 0.1
SHORT_REST_S = 50e-6
"""Rest where work is urgent: long enough for another thread to wake up and take the lock."""
MOST_RELAXED_EVENTS = 98_304
"""Where more events wait, work is urgent: some 40 MB."""
MOST_RELAXED_S = 2.0
"""Where events have waited for longer, work is urgent: a rank that is killed loses them."""

ROWS_AT_ONCE = 1024
"""Events or rows that are gone through between two rests: a fifth of a millisecond."""


def paced(length: int, pause: Callable[[], None], *, backwards: bool = False) -> Iterator[slice]:
    """Slices of something of this length, ROWS_AT_ONCE each; `pause` is called before each."""
    starts = range(0, length, ROWS_AT_ONCE)
    for first in reversed(starts) if backwards else starts:
        pause()
        yield slice(first, min(first + ROWS_AT_ONCE, length))


class Restraint:
    """Rests between pieces of work.

    Args:
        clock: seconds that only grow.
        worked_s: seconds that this thread has worked.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, worked_s: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock, self._worked_s = clock, worked_s
        self._before_s: float | None = None
        self._is_over = False
        self._hurries = Flag()

    def hurry(self) -> None:
        """Take no long rest from now on; from any thread."""
        self._is_over = True
        self._hurries.set()

    @contextmanager
    def pressed(self) -> Iterator[None]:
        """Take no long rest inside the block: its thread waits for this one. One thread at a time."""
        self._hurries.set()
        try:
            yield
        finally:
            if not self._is_over:
                self._hurries.clear()

    def rest(self, since: float, num_waiting: int, *, is_crowded: bool = False) -> None:
        """Rest after a piece of work.

        Args:
            since: when the work was asked for, by `clock`.
            num_waiting: events that wait to be written.
            is_crowded: whether there is little room for more work, however small it is.
        """
        worked_s = self._worked_s()
        before_s, self._before_s = self._before_s, worked_s
        pressure = max(num_waiting / MOST_RELAXED_EVENTS, (self._clock() - since) / MOST_RELAXED_S)
        is_late = is_crowded or pressure >= 1
        if is_late or self._is_over or self._hurries.is_set() or before_s is None:
            time.sleep(SHORT_REST_S)
        else:
            rest_s = IDLE * (1 - max(0.0, pressure)) ** 2 * (worked_s - before_s)
            self._hurries.wait(min(max(rest_s, SHORT_REST_S), LONGEST_REST_S))
