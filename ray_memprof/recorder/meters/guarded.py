"""A meter whose errors never reach the program: what fails is noted once, and the recording goes on without it.

    meter = Guarded(CudaMeter(0, events=True), problems)
    meter.read()                       # where the allocator answers with an error: what it held at the last reading

Errors of meters are handled only here: neither the recorder nor the sampler asks a meter that may raise.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray_memprof.recorder.clock import Clock
from ray_memprof.recorder.handler_errors import pass_on
from ray_memprof.recorder.meters.meter import Batch, Meter, Reading
from ray_memprof.recorder.problems import Problems

_NOTHING = Reading(0, 0, 0, 0, 0, 0, -1, -1, -1, 0, 0, 0)


class Guarded:
    """A Meter that passes all calls on to `meter`, and never raises.

    Args:
        meter: the meter that is asked.
        problems: where its errors are noted.
        clock: the clock that the meter uses too.
    """

    def __init__(self, meter: Meter, problems: Problems, clock: Clock | None = None) -> None:
        self._meter, self._problems, self._clock = meter, problems, clock or Clock()
        self._last = _NOTHING
        self._is_broken = False
        """Whether the meter could not even start."""

    @property
    def source(self) -> str:
        """The source of the meter."""
        return self._meter.source

    @property
    def has_events(self) -> bool:
        """Whether the meter has events."""
        return self._meter.has_events and not self._is_broken

    @property
    def is_on(self) -> bool:
        """Whether the meter is on."""
        return self._meter.is_on and not self._is_broken

    def _ask(self, what: str, question: Callable[[], Any], otherwise: Any) -> Any:
        if self._is_broken:
            return otherwise
        try:
            return question()
        except Exception as error:
            self._problems.note(what, error)
            return otherwise

    def start(self) -> None:
        """Begin; a meter that cannot start measures nothing."""
        with self._problems.noting("no memory is recorded, for the meter could not start"):
            self._meter.start()
            return
        self._is_broken = True

    # Calls at every span boundary are guarded without _ask(): a closure for each of them would double the cost.

    def read(self) -> Reading:
        """Read the meter; where that fails, return the last reading."""
        return self._look(self._meter.read)

    def peek(self) -> Reading:
        """Read the meter without resetting peaks; where that fails, return the last reading."""
        return self._look(self._meter.peek)

    def _look(self, look: Callable[[], Reading]) -> Reading:
        try:
            reading = look() if not self._is_broken else self._stale()
        except Exception as error:
            reading = self._stale(error)
        self._last = reading
        return reading

    def stale(self) -> Reading:
        """The last reading, as if it were of now."""
        return self._stale()

    def _stale(self, error: Exception | None = None) -> Reading:
        if error is not None:
            self._problems.note("memory could not be read", error)
        return replace(
            self._last, t_ns=self._clock.now_ns(), allocated_peak=-1, reserved_peak=-1, active_peak=-1
        )

    def answers(self) -> bool:
        """Whether the meter answers; False where it fails."""
        return bool(self._ask("the meter could not be asked", self._meter.answers, False))

    def stamp(self, span_id: int) -> None:
        """Events from now on belong to `span_id`."""
        if self._is_broken:
            return
        try:
            self._meter.stamp(span_id)
        except Exception as error:
            self._problems.note("events could not be given their span", error)

    def pending(self, reading: Reading) -> int:
        """Return the meter's number of waiting events; 0 where it fails."""
        if self._is_broken:
            return 0
        try:
            return self._meter.pending(reading)
        except Exception as error:
            self._problems.note("events could not be counted", error)
            return 0

    def drain(self) -> Batch:
        """Drain the meter; no events where it fails."""
        batch: Batch = self._ask("events could not be taken", self._meter.drain, Batch([], None))
        return batch

    def base_segments(self) -> list[Any]:
        """Return the meter's segments; none where it fails."""
        return list(self._ask("what was held before is unknown", self._meter.base_segments, []))

    def locate(self, tensor: Any) -> tuple[int, int, int] | None:
        """Where the storage of a tensor is; None also where the meter fails: some tensors have no storage."""
        if self._is_broken:
            return None
        try:
            return self._meter.locate(tensor)
        except Exception as error:  # a fake tensor, or a class of the program's own, may refuse in any way
            pass_on(error)
            return None

    def peaks(self) -> tuple[int, int]:
        """Return the meter's peaks; zeros where it fails."""
        peaks: tuple[int, int] = self._ask("peaks could not be read", self._meter.peaks, (0, 0))
        return peaks

    def stop(self) -> None:
        """Stop the meter."""
        self._ask("the meter could not stop", self._meter.stop, None)
