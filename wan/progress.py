"""What a person sees while a video is made: the stages with their times, a bar over the steps, the peak at the end.

    with Progress("cuda") as progress, listening(progress):
        pipeline.generate(request, on_step=progress.step)

Everything goes to stderr; on a terminal the bar is live, elsewhere a line is written about every 10 s.
"""

import time
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from wan.spans import Attribute

GIB = 2**30
STAGES = ("prompt_extend", "load.", "encode.", "decode", "save", "residency.")
LINE_EVERY_S = 10.0


class Progress:
    """A spans.Listener that writes a line for each stage, and a bar for the steps; with `quiet` it writes neither."""

    def __init__(self, device: str, *, quiet: bool = False) -> None:
        self._device = torch.device(device)
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._bar = Bar(
            *columns, TextColumn("left"), TimeRemainingColumn(), console=self._console, transient=True
        )
        self._open: list[tuple[str, float]] = []
        self._failed_in = ""
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar.live.is_started:  # stopping one that never started prints an empty line
            self._bar.stop()

    @property
    def where(self) -> str:
        """Path of the first span that an exception left, as clean-up opens others; else of the innermost open one."""
        return self._failed_in or "/".join(name for name, _ in self._open) or "start"

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        self._console.print(line, markup=False, soft_wrap=True)

    def enter(self, name: str, attributes: dict[str, Attribute]) -> None:
        """A span begins."""
        detail = "".join(f" {value}" for value in attributes.values())
        self._open.append((name + detail, time.monotonic()))

    def exit(self, name: str, failed: bool) -> None:
        """A span ends."""
        if failed and not self._failed_in:
            self._failed_in = "/".join(opened for opened, _ in self._open)
        title, start = self._open.pop()
        if not failed and name.startswith(STAGES) and time.monotonic() - start >= 0.05:
            self.say(f"  {title}: {time.monotonic() - start:.1f} s")

    def step(self, step: int, steps: int) -> None:
        """`step` of `steps` is done."""
        if not self._bar.tasks:
            self._bar.add_task("denoise", total=steps)
        self._bar.update(self._bar.tasks[0].id, completed=step)
        now = time.monotonic()
        if not self._console.is_terminal and (step == steps or now - self._last_line > LINE_EVERY_S):
            self._last_line = now
            self.say(f"  denoise: step {step} of {steps}, {now - self._start:.1f} s")

    def finish(self, what: str) -> None:
        """The last line: what was made, how long it took, and the peak of device memory."""
        self.say(f"{what}, {time.monotonic() - self._start:.1f} s{self._peak()}")

    def _peak(self) -> str:
        if self._device.type != "cuda":
            return ""
        allocated = torch.cuda.max_memory_allocated(self._device) / GIB
        reserved = torch.cuda.max_memory_reserved(self._device) / GIB
        return f", peak {allocated:.2f} GiB allocated, {reserved:.2f} GiB reserved"
