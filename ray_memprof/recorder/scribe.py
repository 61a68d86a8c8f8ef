"""The writing half of the recorder: a thread that takes what was recorded, and has it written.

    scribe = scribe_of(options, meter, problems)
    scribe.deliver(parcel)
    scribe.close()

The thread that runs the model only hands over what it took (Parcel); everything that costs time happens here, or in a
process of its own: see writer_process.py.
"""

import sys
import threading
import time
from functools import partial
from queue import SimpleQueue

from ray_memprof.errors import DiskFull
from ray_memprof.recorder.flag import Flag
from ray_memprof.recorder.meters.meter import Meter
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.restraint import Restraint
from ray_memprof.recorder.rows import Parcel
from ray_memprof.recorder.status import ReplayCheck
from ray_memprof.recorder.writer import WriterPlan, Writes, writer_of
from ray_memprof.recorder.writer_process import WriterProcess

QUEUE_LENGTH = 64
"""Parcels that may wait; beyond it the model waits too, so that memory stays bounded."""
MOST_WAITING_EVENTS = 196_608
"""Events that may wait, for the same reason: some 100 MB."""

_EVENT_BYTES = 500
"""Bytes of a drained event that waits for the scribe: a dict of seven entries with three numbers and two texts.

491 bytes by tracemalloc on Python 3.11.
"""


class Scribe:
    """Owns the store and the replay; deliver() from any thread, close() once.

    Args:
        writer: what turns parcels into rows; only the scribe's thread uses it, until close().
    """

    def __init__(self, writer: Writes) -> None:
        self.writer, self.problems = writer, writer.problems
        self.most_waiting_events = 0
        self._num_delivered = self._num_written = 0
        self._has_written = Flag()
        self._restraint = Restraint()
        self._queue: SimpleQueue[Parcel | None] = SimpleQueue()
        # Not Thread.is_alive(): before Python 3.13 a handler that interrupts it makes it say that the thread has ended.
        self._has_ended = Flag()
        threading.Thread(target=self._work, name="scribe", daemon=True).start()

    def deliver(self, parcel: Parcel) -> None:
        """Hand over a parcel, one caller at a time; blocks while too much is waiting already.

        A signal's handler may interrupt it anywhere. Deliver the parcel again then: it is written once.
        """
        parcel.since = time.monotonic()
        while not (self._has_ended.is_set() or parcel.is_counted) and self._is_full(parcel):
            self._has_written.clear()
            if self._is_full(parcel):
                with self._restraint.pressed():
                    self._has_written.wait(1.0)
        if self._has_ended.is_set():
            self.problems.add("the thread that writes has ended: nothing more is written")
            if parcel.done is not None:
                parcel.done.set()
            return
        if not parcel.is_counted:
            num_delivered = self._num_delivered + parcel.num_events
            # Without a call between these, a handler comes before or after both.
            self._num_delivered, parcel.is_counted = num_delivered, True
            self.most_waiting_events = max(self.most_waiting_events, self.num_waiting_events)
        self._queue.put(parcel)

    def _is_full(self, parcel: Parcel) -> bool:
        """Whether so much waits that a parcel must wait, too."""
        num_events = self.num_waiting_events
        return self._queue.qsize() >= QUEUE_LENGTH or (
            num_events > 0 and num_events + parcel.num_events > MOST_WAITING_EVENTS
        )

    @property
    def error(self) -> DiskFull | None:
        """What ended the writing; nothing is written after it."""
        return self.writer.error

    @property
    def num_waiting_events(self) -> int:
        """Delivered and not yet written."""
        return self._num_delivered - self._num_written

    @property
    def most_waiting_bytes(self) -> int:
        """What the events that waited took at most."""
        return self.most_waiting_events * _EVENT_BYTES

    def hurry(self) -> None:
        """Write without long rests from now on, for the recording ends; from any thread."""
        self._restraint.hurry()

    def verdict(self, peaks: tuple[int, int], *, recorder_ns: int, longest_pause_ns: int) -> ReplayCheck:
        """How replay and counters compare, after the end.

        Args:
            peaks: allocated and reserved, by the allocator's counters.
            recorder_ns: spent on the thread that runs the model.
            longest_pause_ns: the longest of these times.
        """
        followed = self.writer.followed()
        return ReplayCheck(
            num_events=followed.num_events,
            num_lost_events=followed.num_lost_events,
            num_checks=followed.num_checks,
            max_error_bytes=followed.max_error_bytes,
            allocated_peak_bytes=peaks[0],
            replayed_allocated_peak_bytes=followed.allocated_peak,
            reserved_peak_bytes=peaks[1],
            replayed_reserved_peak_bytes=followed.reserved_peak,
            recorder_ns=recorder_ns,
            longest_pause_ns=longest_pause_ns,
            recorder_bytes=self.most_waiting_bytes,
        )

    def close(self) -> None:
        """Write all that was delivered and seal the store; the error that stopped the writing is kept, not raised."""
        self._restraint.hurry()
        self._queue.put(None)
        while not (self._has_ended.is_set() or sys.is_finalizing()):
            self._has_ended.wait(1.0)
        if not self._has_ended.is_set():  # Python ends, and its thread has vanished, perhaps while it wrote
            self.problems.add("the program ended inside the recording: the last rows are missing")
            return
        self.writer.close()

    def _work(self) -> None:
        try:
            while (parcel := self._queue.get()) is not None:
                if not parcel.is_written:  # else it was delivered again
                    self._take(parcel)
        finally:
            self._has_ended.set()
            self._has_written.set()  # who waits for room would wait in vain

    def _take(self, parcel: Parcel) -> None:
        num_events = parcel.num_events  # the writer may take them out of the parcel
        self.writer.write(parcel, partial(self._rest, parcel.since))
        parcel.is_written = True
        self._num_written += num_events
        self._has_written.set()
        if parcel.done is not None:
            parcel.done.set()

    def _rest(self, since: float) -> None:
        """Let the model have Python's lock; what is written now has waited `since` then."""
        is_crowded = self._queue.qsize() > QUEUE_LENGTH // 2
        self._restraint.rest(since, self.num_waiting_events, is_crowded=is_crowded)


def scribe_of(options: RecordingOptions, meter: Meter, problems: Problems) -> Scribe | None:
    """The scribe of a rank; None where nothing is kept.

    Raises:
        DiskFull: the rank's files could not be begun.
    """
    if not options.keeps_rows:
        return None
    plan = WriterPlan(options=options, has_blocks=meter.source != "cpu")
    # Events of the host meter cost the program more than their writing; numbers of stacks need torch.
    far = meter.source == "cuda" and meter.has_events and not options.has_stacks
    return Scribe(WriterProcess(plan, problems) if far else writer_of(plan, problems))
