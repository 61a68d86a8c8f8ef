"""What was recorded and is not yet with the scribe; a signal's handler that interrupts the handing over loses nothing.

    outbox = Outbox(meter)
    outbox.parcel.spans.append(span)                 # rows come here
    outbox.stamp(span_id)                            # whose the events are from now on
    outbox.hand_over(scribe, known_ns, begun_ns)     # all of it, with the events that wait

A handler that raises may come at any call. So what is taken from one place is put into the next without a call between.
"""

import time
from typing import TYPE_CHECKING

from ray_memprof.recorder.event_spans import Stamp
from ray_memprof.recorder.meters.meter import Meter
from ray_memprof.recorder.owners import Claims
from ray_memprof.recorder.rows import Owner, Parcel

if TYPE_CHECKING:
    import torch

    from ray_memprof.recorder.scribe import Scribe


class Outbox:
    """Rows of the model's thread and of the sampler's; who calls it holds the recorder's lock, but for claim().

    Args:
        meter: where events wait.
    """

    def __init__(self, meter: Meter) -> None:
        self.parcel = Parcel()
        """What is handed over next."""
        self._meter = meter
        self._leaving: Parcel | None = None
        """On its way to the scribe."""
        self._claims = Claims(meter)
        self._stamps: list[Stamp] = [(0, 0)]
        self._is_primed = False

    def claim(self, tensor: "torch.Tensor", owner: Owner) -> None:
        """Name the owner of a tensor's storage; from any thread."""
        self._claims.add(tensor, owner)

    def stamp(self, span_id: int) -> None:
        """Stamp this thread's events from now on; events of threads without a stamp get a span by order and time."""
        if self._meter.has_events and self._meter.source != "predicted":  # that has a clock of its own
            self._stamps.append((time.time_ns() // 1000, span_id))  # by the clock of the events
        self._meter.stamp(span_id)

    def hand_over(self, scribe: "Scribe | None", *, known_ns: int | None, begun_ns: int) -> None:
        """Give the scribe what there is, and the events that wait.

        Args:
            scribe: None: nothing is kept.
            known_ns: spans that ended later wait for a sample that may belong to them; None: all go.
            begun_ns: when the recording began.
        """
        if self._leaving is not None:  # a handler has interrupted that
            self._send(self._leaving, scribe, begun_ns)
        parcel, fresh = self.parcel, Parcel()
        num = len(parcel.spans) if known_ns is None else parcel.num_ended_by(known_ns)
        spans, fresh.spans = parcel.spans[:num], parcel.spans[num:]
        parcel.spans, self._leaving, self.parcel = spans, parcel, fresh
        self._send(parcel, scribe, begun_ns)

    def _send(self, parcel: Parcel, scribe: "Scribe | None", begun_ns: int) -> None:
        """Complete a parcel and deliver it; may begin again."""
        if scribe is None:
            self._stamps, self._leaving = self._stamps[-1:], None
            return
        if not self._is_primed and self._meter.is_on:
            base = self._meter.base_segments()  # before the meter was on there were no events
            parcel.base, parcel.base_ns, self._is_primed = base, begun_ns, True
        # Before the events: all that was claimed has been allocated in these, or earlier.
        self._claims.move_to(parcel.claims)
        if parcel.batch is None:
            batch = self._meter.drain()
            parcel.batch, parcel.stamps, self._stamps = batch, self._stamps, self._stamps[-1:]
        scribe.deliver(parcel)
        self._leaving = None
