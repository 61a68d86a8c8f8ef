"""The recording of a script in its own process, from its import of torch to its end, and the Outcome of the rank.

    recording = ScriptRecording(orders, report)
    recording.begin()                      # once torch is imported; never raises
    recording.leave_by(error)              # an exception that ends the script: reported at once
    recording.end()                        # the process ends: reported now, unless it was before

Unlike a Session it has a run folder and a rank already: those of the launch.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ray_memprof.errors import EXIT_RANK_DIED
from ray_memprof.rank.claim import claimed, released
from ray_memprof.rank.messages import Outcome
from ray_memprof.rank.outcome import free_at_failure, outcome_of
from ray_memprof.rank.process_recording import ProcessRecording
from ray_memprof.rank.script_messages import ScriptOrders
from ray_memprof.rank.variables import in_force
from ray_memprof.recorder.clock import Clock
from ray_memprof.wording import error_line
from ray_memprof.workload.script import explained


class ScriptRecording(ProcessRecording):
    """Records the main thread of this process.

    Args:
        orders: what is recorded.
        report: sends the Outcome to the rank; it may raise OSError.
    """

    def __init__(self, orders: ScriptOrders, report: Callable[[Outcome], None]) -> None:
        super().__init__()
        self._orders, self._options, self._report = orders, orders.recording, report
        self._problems: list[str] = []

    def problem(self, text: str) -> None:
        """Note what is wrong with the recording; from any thread."""
        self._problems.append(text)
        with suppress(Exception):  # a script may have closed its standard error
            sys.stderr.write(f"warning: recording: {text}\n")

    def _tell(self, text: str) -> None:
        self.problem(text)

    def _begin(self) -> None:
        from ray_memprof.recorder.recording import recording
        from ray_memprof.workload.observed import observed

        claimed(self._options.run_dir)
        self._stack.callback(released)
        clock = None if self._orders.clock is None else Clock.of(self._orders.clock)
        self.recorder = recorder = self._stack.enter_context(recording(self._options, clock))
        if self._orders.trace is not None and self._orders.trace_file is not None:
            from ray_memprof.recorder.torch_trace import TraceSchedule, tracing

            schedule = TraceSchedule(**self._orders.trace)
            self._stack.enter_context(tracing(schedule, self._orders.trace_file, recorder.problem))
        orders = self._orders
        self._stack.enter_context(
            observed(
                recorder,
                module_spans=orders.module_spans,
                components=orders.components,
                ranges=orders.ranges,
            )
        )

    def leave_by(self, error: BaseException) -> None:
        """The script has ended by an exception: end the recording, and report it unless it means success."""
        found = explained(error, self._orders.name)
        if found is not None:
            self._end(lambda: self._failed(found), error)

    def end(self, error: BaseException | None = None, exit_code: int | None = None) -> None:
        """The process ends: end the recording and report.

        Args:
            error: that ended the script; None: none, or it was reported before.
            exit_code: that the script gave to os._exit; None or 0: it has ended well.
        """
        if error is not None:
            self.leave_by(error)
        self._end(lambda: self._by_code(exit_code), None)

    def leave(self, exit_code: int) -> None:
        """Another thread than the main thread is about to end the process by os._exit: write what is recorded."""
        recorder = self.recorder
        if self._is_over:
            return
        self._is_over = True
        if recorder is not None and recorder.answers():  # the main thread may hang in the allocator
            recorder.seal()
        self._send(self._by_code(exit_code))

    def _end(self, outcome_at_end: Callable[[], Outcome], error: BaseException | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        try:
            lost = self._close(error)
        except BaseException as failed:  # an interrupt: the rank still waits for the Outcome
            lost = failed
        outcome = outcome_at_end()
        if lost is not None:
            self.problem(f"the recording did not end as it should: {error_line(lost)}")
            if outcome.status == "ok":
                outcome = outcome_of(lost, self._options.rank, None)
        self._send(outcome)

    def _failed(self, error: BaseException) -> Outcome:
        recorder = self.recorder
        if recorder is None:
            return outcome_of(error, self._options.rank, None)
        free = free_at_failure(recorder, self._options.device_total_bytes)
        return outcome_of(error, self._options.rank, recorder.failure(), free_bytes=free)

    def _by_code(self, exit_code: int | None) -> Outcome:
        if not exit_code:
            return Outcome(rank=self._options.rank, status="ok")
        reason = f"exit code {exit_code}"
        return Outcome(rank=self._options.rank, status="died", exit_code=EXIT_RANK_DIED, reason=reason)

    def _send(self, outcome: Outcome) -> None:
        recorder = self.recorder
        known: dict[str, Any] = {"environment": in_force(os.environ), "problems": tuple(self._problems)}
        if recorder is not None:
            known |= {"check": recorder.check(), "problems": (*recorder.problems, *self._problems)}
        with suppress(OSError):  # the rank is gone
            self._report(replace(outcome, **known))
