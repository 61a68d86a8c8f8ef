"""A Chrome trace of a few denoise steps per rank, by torch.profiler: level torch_profiler.

    with tracing(TraceSchedule(wait=1, warmup=1, active=3), path):
        pipeline.generate(request)                  # leaves trace/rank0.pt.trace.json: Perfetto and TensorBoard read it

The schedule counts steps, from the first one on: `wait` steps are not traced, `warmup` steps are traced and thrown
away, `active` steps are kept. A step is a span with the attribute `step`: one of the denoise loop, or in a script one
call of an outermost module. Every span is an annotation in the trace. The file is written when the last active step
ends; the time of writing counts as time of that step's span.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function, schedule, supported_activities

from ray_memprof.errors import DiskFull
from ray_memprof.recorder.forks import silent_in_children
from ray_memprof.recorder.handler_errors import pass_on
from ray_memprof.recorder.spans import Attribute, listening
from ray_memprof.store.whole_file import replacing
from ray_memprof.wording import profiler_text


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceSchedule:
    """Which steps are traced, and what is recorded of each; the keys of logging.profiler."""

    wait: int
    """Steps before the profiler starts."""
    warmup: int
    """Steps that are traced and thrown away."""
    active: int
    """Steps that are kept."""
    record_shapes: bool = False
    profile_memory: bool = True
    with_stack: bool = False


@contextmanager
def tracing(
    schedule: TraceSchedule, path: Path, problem: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Trace the steps that `schedule` asks for, among those that run inside the block.

    Args:
        schedule: which steps.
        path: the file to write; its folder is made.
        problem: is told, in one line, that tracing failed and ended; the program goes on.

    Raises:
        DiskFull: at the end, where the trace could not be written.
    """
    trace = StepTrace(schedule, path, problem)
    try:
        with listening(trace):
            yield
    finally:
        trace.stop()
    if trace.error:
        raise DiskFull(trace.error, hint="torch.profiler writes the cause into the log of the rank")


class StepTrace:
    """A spans.Listener that annotates every span and moves torch.profiler on with every step.

    Args:
        schedule: which steps, and what is recorded of each.
        path: the file to write.
        problem: is told, in one line, that tracing failed and ended.
    """

    def __init__(
        self, schedule: TraceSchedule, path: Path, problem: Callable[[str], None] = lambda text: None
    ) -> None:
        self.error = ""
        """Why there is no trace; a listener must not raise, so tracing() raises it at the end."""
        self._schedule, self._path, self._problem = schedule, path, problem
        self._thread = threading.get_ident()
        self._profiler: profile | None = None
        self._open: list[tuple[record_function, bool]] = []
        self._num_steps = 0
        self._is_written = self._is_silent = False
        silent_in_children(self)

    def forked(self) -> None:
        """In a child nothing is traced: the profiler's threads are not there, and the file is the parent's."""
        self._is_silent, self._profiler = True, None
        self._open.clear()

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        """A span begins; the first step starts the profiler."""
        if self._is_silent or threading.get_ident() != self._thread:
            return
        with self._giving_up():
            self._enter(name, attributes)

    def _enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        is_step = "step" in attributes and not any(step for _, step in self._open)
        if is_step and self._profiler is None:
            self._profiler = self._make()
            self._profiler.start()
        words = [name, *(f"{key}={value}" for key, value in attributes.items())]
        annotation = record_function(" ".join(words))
        annotation.__enter__()
        self._open.append((annotation, is_step))

    @property
    def num_open(self) -> int:
        """How many spans are open."""
        return len(self._open)

    def exit(self, name: str, failed: bool) -> None:
        """A span ends; the end of a step moves the profiler on."""
        if self._is_silent or not self._open or threading.get_ident() != self._thread:
            return
        with self._giving_up():
            self._exit(failed)

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """An error of the profiler ends the trace, but not the program."""
        try:
            yield
        except Exception as error:
            pass_on(error)
            self._is_silent = True
            self._problem(f"there is no trace, for torch.profiler failed: {type(error).__name__}: {error}")

    def _exit(self, failed: bool) -> None:
        annotation, is_step = self._open.pop()
        annotation.__exit__(None, None, None)
        if is_step and self._profiler is not None and not failed:
            self._num_steps += 1
            self._profiler.step()

    def stop(self) -> None:
        """End the profiler, which writes what it has; warn if that is less than was asked for."""
        if self._is_silent:
            return
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            with self._giving_up():
                profiler.stop()  # writes, if steps were being kept
        self._warn()

    def _warn(self) -> None:
        asked = self._schedule
        if self._num_steps >= asked.wait + asked.warmup + asked.active:
            return
        kept = max(0, self._num_steps - asked.wait - asked.warmup)
        left = (
            f"{kept} of {asked.active} active steps are in {self._path}"
            if self._is_written
            else "no trace is left"
        )
        sys.stderr.write(
            f"warning: {profiler_text(wait=asked.wait, warmup=asked.warmup, active=asked.active)}, "
            f"{self._num_steps} were made: {left}\n"
        )

    def _make(self) -> profile:
        asked = self._schedule
        return profile(
            activities=sorted(
                supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}, key=str
            ),
            schedule=schedule(wait=asked.wait, warmup=asked.warmup, active=asked.active, repeat=1),
            on_trace_ready=self._write,
            record_shapes=asked.record_shapes,
            profile_memory=asked.profile_memory,
            with_stack=asked.with_stack,
        )

    def _write(self, profiler: Any) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as unfinished:
                profiler.export_chrome_trace(str(unfinished))
                _check(unfinished)
        except OSError as error:
            self.error = f"the trace could not be written: {error}"
            return
        self._is_written = True


def _check(path: Path) -> None:
    """Raise OSError for a file that breaks off: the profiler itself only logs that it could not write."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 16))
        if not file.read().rstrip().endswith(b"}"):
            raise OSError(f"{path} breaks off after {size:,} bytes")
