"""The recorder: is told of every span, reads the meter at both ends of it, and hands the figures to the scribe.

    recorder = Recorder(rank, meter, scribe)            # recording.py puts these together
    with listening(recorder), span("denoise", step=0): ...
    recorder.close()

It never raises into the model: what fails becomes a line of `problems`, and the rest goes on. Only
spans of the thread that started the recorder are recorded, none of other threads or of a forked child. Each span takes
two readings and two stamps: 40 to 70 us on one GPU, 150 us in a rank of four; an event takes 0.6 to 0.9 us.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ray_memprof.recorder.communicators import Communicators
from ray_memprof.recorder.flag import Flag
from ray_memprof.recorder.forks import silent_in_children
from ray_memprof.recorder.handler_errors import surely
from ray_memprof.recorder.host_ledger import HostLedger
from ray_memprof.recorder.ledger import Ledger, Where
from ray_memprof.recorder.meters.guarded import Guarded
from ray_memprof.recorder.meters.meter import Meter, Reading
from ray_memprof.recorder.open_spans import OpenSpans
from ray_memprof.recorder.others import Others
from ray_memprof.recorder.outbox import Outbox
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.rows import Collective, Owner, Sample, SpanRecord
from ray_memprof.recorder.scribe import Scribe
from ray_memprof.recorder.spans import Attribute
from ray_memprof.recorder.status import Beat, ReplayCheck
from ray_memprof.store.categories import category_of

if TYPE_CHECKING:
    import torch

    from ray_memprof.recorder.meters.nvml import OwnShare

DRAIN_EVENTS = 8_192
"""When so many events wait, the next span boundary takes them: 5 to 10 ms, which such a busy device does not notice."""
RELIEF_EVENTS = DRAIN_EVENTS // 2
"""The same inside a span, where the ring cannot be emptied and all of it is copied: an eighth of its least length."""
RELIEF_S = 0.1
"""Seconds without a span boundary after which events are taken inside a span: a boundary takes them at a lower cost."""
LATE_NS = 1_000_000_000
"""How long the row of a span that ended waits for a sample that was taken inside it and has not arrived yet."""
FLUSH_S = 2.0
"""Seconds between two times that records are handed to the scribe, twice as many inside one span.

A killed process loses at most these records, and allocator events and spans of restraint.MOST_RELAXED_S more.
"""
SEAL_S = 1.0
"""Seconds that the scribe has to write the last records of a process that is about to be killed."""


class Recorder:
    """A spans.Listener for the thread that runs the model; beat() and tick() may be called from others.

    Args:
        rank: whose spans these are.
        meter: where bytes are read.
        scribe: where rows go; None: nothing is kept, there are only beats.
        share: tells what this process holds of the device; None: only samples tell what others hold.
        problems: where to note what goes wrong; None: the scribe's problems.
    """

    def __init__(
        self,
        rank: int,
        meter: Meter,
        scribe: Scribe | None,
        *,
        share: "OwnShare | None" = None,
        problems: Problems | None = None,
    ) -> None:
        self._problems = problems or (Problems() if scribe is None else scribe.problems)
        self._rank, self._scribe = rank, scribe
        self._meter = meter if isinstance(meter, Guarded) else Guarded(meter, self._problems)
        self._others, self._others_began = Others(self._meter, share, self.problem), 0
        self._ledger: Ledger = HostLedger() if meter.source == "cpu" else Ledger()
        self._groups = Communicators(self.problem)
        self._open = OpenSpans(self.problem)
        self._outbox = Outbox(self._meter)
        self._sequence = self._begun_ns = 0
        self._step, self._num_steps = -1, -1
        self._sampled_ns = 0
        self._last: Reading | None = None
        self._last_flush = self._settled_s = time.monotonic()
        self._recorder_ns = self._longest_pause_ns = 0
        self._lock = threading.RLock()
        self._thread = 0
        self._is_sealed = self._is_closing = self._is_child = self._is_in_collective = False
        self._closed = Flag()
        self._check: ReplayCheck | None = None
        silent_in_children(self)

    def start(self) -> None:
        """Begin, on the thread that will run the model."""
        self._thread = threading.get_ident()
        self._meter.start()
        self._last = self._measure()
        self._begun_ns = self._last.t_ns

    def forked(self) -> None:
        """In a forked child: its spans are not recorded, and the open spans belong to the parent."""
        self._is_child, self._scribe, self._lock = True, None, threading.RLock()

    def problem(self, text: str) -> None:
        """Note what is wrong with the recording; from any thread."""
        self._problems.add(text)

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong with the recording so far."""
        return self._problems.texts

    def _hears(self) -> bool:
        """Whether the calling thread, in this process, is the one whose spans are recorded."""
        return not self._is_child and threading.get_ident() == self._thread

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        """A span begins."""
        if not self._hears():
            if not self._is_child:
                self.problem(f"spans of other threads than the model's are not recorded: {name}")
            return
        began, depth = time.perf_counter_ns(), len(self._open)
        try:
            try:
                with self._lock:
                    self._enter(name, attributes, began)
            except Exception as error:
                self._problems.note("a span was not begun as it should be", error)
        except BaseException as error:  # raised by a signal's handler: the span's block will not run
            surely(self._take_back, depth, error)
            raise

    def _take_back(self, depth: int, error: BaseException) -> None:
        with self._lock:
            self._problems.interrupted(error)
            del self._open[depth:]
            self._stamp_innermost()

    def _enter(self, name: str, attributes: dict[str, Attribute], began: int) -> None:
        if self._is_sealed:
            return
        reading = self._read()
        span = self._open.opened_span(name, attributes, reading)
        self._open.append(span)
        self._outbox.parcel.categories[span.span_id] = category_of(name)
        self._outbox.stamp(span.span_id)
        self._sequence += 1
        if span.step is not None:
            self._step = span.step
        self._settle(began)

    def _stamp_innermost(self) -> None:
        self._outbox.stamp(self._open[-1].span_id if self._open else 0)

    def exit(self, name: str, failed: bool) -> None:
        """The innermost span of that name ends."""
        if not self._hears():
            return
        began, span = time.perf_counter_ns(), None
        try:
            try:
                with self._lock:
                    span = self._open.named(name)
                    if span is not None:  # None: the recording ended first, and has closed the span
                        self._exit(span, failed, began)
            except Exception as error:
                self._problems.note("a span was not ended as it should be", error)
                if span is not None:
                    self._open.drop(span)
                    self._stamp_innermost()  # or later events would be booked to a span without a row
        except BaseException as error:  # raised by a signal's handler
            if span is not None:
                surely(self._end_interrupted, span, failed, error)
            raise

    def _end_interrupted(self, span: SpanRecord, failed: bool, error: BaseException) -> None:
        """End a span of which a handler has interrupted the end, with what is known by now."""
        with self._lock:
            self._problems.interrupted(error)
            if any(one is span for one in self._open):
                if not any(one is span for one in self._outbox.parcel.spans[-1:]):
                    span.end, span.failed = self._meter.stale(), failed
                    self._outbox.parcel.spans.append(span)
                self._open.drop(span)
            self._stamp_innermost()

    def _exit(self, span: SpanRecord, failed: bool, began: int) -> None:
        reading = self._read()
        self._open.note_end(span, reading, failed)
        self._close_span(span, reading, failed)
        self._stamp_innermost()
        self._sequence += 1
        if not self._open:
            self._step = -1
        self._settle(began)

    def _close_span(self, span: SpanRecord, reading: Reading, failed: bool) -> None:
        span.end, span.failed = reading, failed
        self._outbox.parcel.spans.append(span)
        self._open.drop(span)  # after its row is there: see _end_interrupted()
        self._ledger.close(span.path)

    def _measure(self) -> Reading:
        """Read the meter. Where nothing is kept, peaks are not reset: the program may look at its own peaks."""
        return self._meter.peek() if self._scribe is None else self._meter.read()

    def _read(
        self, account: str = "", *, group: str = "", look: Callable[[], Reading] | None = None
    ) -> Reading:
        """Read the meter, and book what changed since the last reading to the innermost open span."""
        reading = (look or self._measure)()
        self._others.look(reading)
        span = self._open[-1] if self._open else None
        if span is not None:
            span.note_reading(reading)
            if reading.allocated_peak >= 0:
                span.peaks.fold(reading.allocated_peak, reading.reserved_peak, reading.active_peak)
        where = Where(
            self._meter.is_on, span.span_id if span else 0, span.path if span else "", self._others.bytes
        )
        kept = self._ledger.state()
        try:
            self._outbox.parcel.ledger += self._groups.book(
                self._ledger, reading, where, account=account, group=group, may_ask=look is None
            )
        except BaseException:  # the next reading books it
            self._ledger.restore(kept)
            raise
        self._outbox.parcel.communicators += self._groups.rows(reading.t_ns)
        self._last = reading
        return reading

    def _settle(self, began: int) -> None:
        """Flush if it is time, and note what recording cost since `began`."""
        assert self._last is not None
        self._settled_s = time.monotonic()
        waiting = self._meter.pending(self._last)
        if waiting >= DRAIN_EVENTS or self._settled_s - self._last_flush >= FLUSH_S:
            self._flush()
        self._spend(began)

    def _spend(self, began: int) -> None:
        self._add_spent(time.perf_counter_ns() - began)

    def _add_spent(self, spent: int) -> None:
        self._recorder_ns += spent
        self._longest_pause_ns = max(self._longest_pause_ns, spent)
        if self._open:
            self._open[-1].recorder_ns += spent

    def _flush(self) -> None:
        self._last_flush = time.monotonic()
        known_ns = None
        if self._sampled_ns and not (self._outbox.parcel.seal or self._is_closing):
            assert self._last is not None
            known_ns = max(self._sampled_ns, self._last.t_ns - LATE_NS)
        self._outbox.hand_over(self._scribe, known_ns=known_ns, begun_ns=self._begun_ns)

    def on_step(self, step: int, steps: int) -> None:
        """`step` of `steps` is done."""
        self._num_steps = steps

    @property
    def hears_claims(self) -> bool:
        """Whether claim() is of use: without events there is nothing to name."""
        return self._scribe is not None and self._meter.has_events

    def claim(self, tensor: "torch.Tensor", owner: Owner) -> None:
        """Name the owner of a tensor's storage, as it is now; from any thread, in 2 us."""
        if self._scribe is not None:
            self._outbox.claim(tensor, owner)

    def begin_collective(self) -> Reading | None:
        """Read the meter as a collective begins; None on other threads than the model's: nothing is recorded."""
        if not self._hears():
            return None
        began = time.perf_counter_ns()
        try:
            with self._lock:
                reading = self._read()
                self._others_began, self._is_in_collective = self._ledger.others, True
                self._spend(began)
                return reading
        except Exception as error:
            self._is_in_collective = False
            self._problems.note("a collective could not be recorded", error)
            return None

    def end_collective(
        self, before: Reading, *, op: str, num_bytes: int, group: str, group_size: int
    ) -> None:
        """The collective has returned: growth of device memory outside the allocator is booked to NCCL."""
        if not self._hears():
            return  # the program has forked inside it
        began = time.perf_counter_ns()
        with self._problems.noting("a collective could not be recorded"), self._lock:
            reading, self._is_in_collective = self._read("nccl", group=group), False
            grown = (reading.device_used - reading.reserved) - (before.device_used - before.reserved)
            grown -= self._ledger.others - self._others_began
            self._outbox.parcel.collectives.append(
                Collective(
                    start_ns=before.t_ns,
                    end_ns=reading.t_ns,
                    span_id=self._open[-1].span_id if self._open else 0,
                    op=op,
                    bytes=num_bytes,
                    group=group,
                    group_size=group_size,
                    non_torch_growth_bytes=grown,
                )
            )
            self._sequence += 1
            self._settle(began)

    def tick(self, sample: Sample, *, is_whole: bool = True) -> None:
        """Receive a sample, on the sampler's thread: its row, and what others hold.

        Args:
            sample: counts for every span that was open at its time, ended by now or not.
            is_whole: False: its reserved bytes are older than the rest, so memory outside the allocator is not known.
        """
        if self._is_child:
            return
        with self._problems.noting("a sample could not be recorded"), self._lock:
            self._others.note(sample)
            sample = self._with_books(sample)
            self._outbox.parcel.samples.append(sample)
            if is_whole and not self._ledger.has_context and self._meter.is_on:
                self._book_context()
            self._sampled_ns = max(self._sampled_ns, sample.t_ns)
            for span in reversed(self._outbox.parcel.spans):
                if span.end is not None and span.end.t_ns < sample.t_ns:
                    break
                span.note_sample(sample, is_whole=is_whole)
            for span in self._open:
                span.note_sample(sample, is_whole=is_whole)

    def _with_books(self, sample: Sample) -> Sample:
        """In a run of the CPU, take the sample anew together with its books: between spans, the heap comes and goes."""
        pages = None if self._last is None else self._last.pages
        if pages is None or self._scribe is None or self._is_in_collective:
            return sample
        now = self._read(look=self._meter.peek)
        return replace(
            sample,
            t_ns=now.t_ns,
            device_used_bytes=now.device_used,
            allocated_bytes=now.allocated,
            reserved_bytes=now.reserved,
            host_rss_bytes=now.host_rss,
        )

    def _book_context(self) -> None:
        """Book the context as soon as a sample sees it: later a communicator may have been made on it.

        A collective that failed leaves _is_in_collective set. Then the context is booked at the next reading.
        """
        if self._scribe is not None and not self._is_in_collective and self._groups.is_quiet():
            self._read(look=self._meter.peek)

    def relieve(self) -> None:
        """Take the waiting events, if a span lasts so long that they must be taken inside it.

        Called on the sampler's thread, while the meter answers.
        """
        if self._is_child or not self._is_due():
            return
        with self._problems.noting("events that wait could not be taken"), self._lock:
            # The time of this thread counts as the model's too: the meter copies its events while it holds Python's
            # lock. Where the model waits for self._lock, that is counted on the model's thread.
            began = time.thread_time_ns()
            self._flush()
            self._add_spent(time.thread_time_ns() - began)

    def _is_due(self) -> bool:
        """Whether the last flush was long ago, or many events wait and no boundary has come for a while."""
        now = time.monotonic()
        if now - self._last_flush >= 2 * FLUSH_S:
            return True
        if self._last is None or now - self._settled_s < RELIEF_S:
            return False
        return self._meter.pending(self._last) >= RELIEF_EVENTS

    def answers(self) -> bool:
        """Whether seal() returns soon on this thread: the model's thread may hang in the allocator."""
        return self._meter.answers()

    def seal(self, wait_s: float = SEAL_S) -> None:
        """End the recording because the process is about to be killed; from any thread. Waits for the disk.

        It also waits for the allocator, which may hang: only the allocator has the last events of a rank that waits in
        a collective. A rank in which this call does not return is killed, and only what was written before remains.

        Open spans end here as failed ones, otherwise their rows would be missing; no span is recorded afterwards.
        """
        if self._is_child:
            return
        self._hurry()
        with self._lock:
            # Where it is closing, the model's thread already writes the rest, after an error that ended the model.
            done = self._closed if self._is_closing else self._seal()
        done.wait(wait_s)

    def _hurry(self) -> None:
        """The end comes: before the lock, for who holds it may wait for the scribe."""
        if (scribe := self._scribe) is not None:
            scribe.hurry()

    def _seal(self) -> Flag:
        """Hand over all records; the returned flag is set once they are written."""
        self._flush()  # before the device is read: it may be in a state in which it does not answer
        reading = self._read(look=self._meter.peek)
        while self._open:
            self._close_span(self._open[-1], reading, failed=True)
        self._outbox.parcel.communicators += self._groups.rows(reading.t_ns, is_last=True)
        self._is_sealed = True
        done = Flag()
        self._outbox.parcel.seal, self._outbox.parcel.done = True, done
        self._flush()
        if self._scribe is None:
            done.set()
        return done

    def beat(self) -> Beat:
        """A sign of life, from any thread: without the lock, which a flush that waits for the disk may hold."""
        span = next(iter(self._open[-1:]), None)  # read once
        reading, scribe = self._last, self._scribe
        return Beat(
            rank=self._rank,
            sequence=self._sequence,
            path=span.path if span else "",
            stage=span.stage if span else "",
            step=self._step,
            num_steps=self._num_steps,
            allocated_bytes=reading.allocated if reading else 0,
            reserved_bytes=reading.reserved if reading else 0,
            device_used_bytes=reading.device_used if reading else 0,
            problem="" if scribe is None or scribe.error is None else str(scribe.error),
        )

    def failure(self) -> tuple[str, int, int, int] | None:
        """Path and step of the innermost span that an exception left, allocated and reserved bytes; None: none."""
        return self._open.failure()

    def device_used_at_failure(self) -> int | None:
        """Return the device bytes in use when an exception left that span; None: no exception, or not known."""
        return self._open.device_used_at_failure()

    @property
    def num_open(self) -> int:
        """How many spans are open."""
        return len(self._open)

    def close(self) -> None:
        """Close what is open, write everything and compare the peaks; on the model's thread."""
        if self._is_child:
            return  # a child left the block that records; its parent is still inside the block
        try:
            self._close()
        finally:
            self._closed.set()

    def _close(self) -> None:
        peaks, scribe = (0, 0), self._scribe
        self._hurry()
        try:
            with self._problems.noting("the recording did not end as it should"), self._lock:
                self._is_closing = True
                reading = self._read()
                while self._open:
                    self._close_span(self._open[-1], reading, failed=True)
                self._outbox.parcel.communicators += self._groups.rows(reading.t_ns, is_last=True)
                self._flush()
                peaks = self._meter.peaks() if self._meter.has_events else (0, 0)
                # Inside the lock: what a late sample handed over after the end mark would vanish without a word.
                self._scribe = None
                self._meter.stop()
        finally:
            self._scribe = None
            # Even if the device fails by now, what was recorded is written.
            if scribe is not None:
                scribe.close()
        if scribe is not None:
            self._check = scribe.verdict(
                peaks, recorder_ns=self._recorder_ns, longest_pause_ns=self._longest_pause_ns
            )
            if scribe.error is not None:
                raise scribe.error

    def check(self) -> ReplayCheck | None:
        """How replay and counters compare; None before close()."""
        return self._check
