"""What a person sees while ranks run: a table on a terminal, elsewhere a line from time to time, all on stderr.

    with Live(config, num_ranks=4, plain=False) as live:
        with live.stage("start Ray"):
            ...                                   # leaves "start Ray: 3.1 s"
        live.update(beats)                        # as often as beats come
        live.summary(["report: profiler_logs/test/latest/report.html"])

If stderr is no terminal (or with `plain`), a line is written every logging.log_interval steps and whenever rank 0
enters another stage, at most one line per second. With many ranks the table shows only those that are furthest behind
and those that use most device memory.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import nlargest, nsmallest
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import live as rich_live
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ray_memprof.driver.pace import Pace
from ray_memprof.recorder.status import Beat
from ray_memprof.report.words import ON_GPU, Words, words_of
from ray_memprof.wording import size_text, visible

if TYPE_CHECKING:
    from ray_memprof.config.run_config import RunConfig

LINE_EVERY_S = 1.0
_MEASURES = ("allocated", "reserved", "device_used")
"""What a beat tells of memory."""
_BAR_WIDTH = 40
MOST_RANKS = 24
"""With more ranks, the table shows the HALF ranks furthest behind, the HALF ranks with most device used, and rank 0;
the others are only counted."""
HALF = 8
_MOST_STAGES = 3


class _Console(Console):
    """Prints nothing more once its reader has gone (`| head`); rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Live:
    """Draws the newest beats.

    Args:
        config: of the run.
        num_ranks: of the run.
        plain: write lines even on a terminal.
        console: where to write; None: stderr.
        clock: seconds, from any start.
        stages_s: filled with the seconds of each stage, by name.
    """

    def __init__(
        self,
        config: "RunConfig",
        num_ranks: int,
        plain: bool,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        stages_s: dict[str, float] | None = None,
    ) -> None:
        self._console = (
            _Console(stderr=True, highlight=False, markup=False, emoji=False) if console is None else console
        )
        self._log_interval = config.logging.log_interval
        self._words = words_of(config.model.device)
        self._beats: list[Beat | None] = [None] * num_ranks
        self._pace = Pace(config.optimization.batch_size, clock)
        self._clock, self._stage = clock, ""
        self._stages_s = {} if stages_s is None else stages_s
        self._said: tuple[str, int] = ("", -1)
        self._last_line = float("-inf")
        self._live: rich_live.Live | None = None
        if self._console.is_terminal and not plain:
            self._live = rich_live.Live(
                console=self._console, get_renderable=self._draw, transient=True, redirect_stdout=False
            )

    def __enter__(self) -> "Live":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def say(self, line: str | RenderableType) -> None:
        """Write a line, or anything rich can draw, above the table."""
        if isinstance(line, str):
            self._console.print(visible(line), markup=False, emoji=False, soft_wrap=True)
        else:  # only a terminal has a width at which lines must be broken
            self._console.print(line, soft_wrap=not self._console.is_terminal)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of starting or ending a run; writes one line when the stage is over."""
        outer, self._stage = self._stage, name
        start = self._clock()
        ended = "failed after "
        try:
            yield
            ended = ""
        finally:
            self._stage = outer
            self._took(name, self._clock() - start, ended)

    def reached(self, name: str, seconds: float, *, from_launch_s: float) -> None:
        """Write one line for a moment of the run: seconds since the ranks began to work, and since the launch."""
        self._stages_s[f"launch to {name}"] = round(from_launch_s, 3)
        self._took(name, seconds, "after ", f", {from_launch_s:.1f} s from the launch")

    def _took(self, name: str, seconds: float, how: str = "", more: str = "") -> None:
        self._stages_s[name] = round(seconds, 3)
        self.say(f"  {name}: {how}{seconds:.1f} s{more}")

    def summary(self, lines: Sequence[str]) -> None:
        """Remove the table and write the last lines."""
        self._stop()
        for line in lines:
            self.say(line)

    def update(self, beats: Iterable[Beat]) -> None:
        """Show the latest beats; a rank that sent none keeps its last one."""
        for beat in beats:
            self._beats[beat.rank] = beat
        first = self._beats[0] if self._beats else None
        if first is None:
            return
        self._pace.see(first)
        if self._live is None:
            self._say_progress(first)

    def _say_progress(self, first: Beat) -> None:
        """Write a line if rank 0 entered a stage or reached the next multiple of log_interval since the last line.

        If less than LINE_EVERY_S has passed, nothing is written now: a later beat writes the line.
        """
        stage, mark = self._said
        steps = -1 if first.step < 0 else first.step - first.step % self._log_interval
        now = self._clock()
        if (first.stage, steps) == (stage, mark) or now - self._last_line < LINE_EVERY_S:
            return
        if not first.stage:
            return
        self._said, self._last_line = (first.stage, steps), now
        self.say(f"  {self._line(first)}")

    def _line(self, first: Beat) -> str:
        return progress_text(
            first, [beat for beat in self._beats if beat is not None], self._pace.text(), self._words
        )

    def pace(self) -> dict[str, Any]:
        """How many steps are done and how many there are, and the pace in words."""
        return {
            "num_done": self._pace.num_done,
            "num_total": self._pace.num_total,
            "text": self._pace.text(),
        }

    def _draw(self) -> RenderableType:
        parts: list[RenderableType] = []
        if any(beat is not None for beat in self._beats):
            parts += rank_table(self._beats, self._words)
        parts += pace_bar(**self.pace())
        if self._stage:
            parts.append(Text(f"{self._stage} ..."))
        return Group(*parts)


def rank_table(beats: Sequence[Beat | None], words: Words = ON_GPU) -> list[RenderableType]:
    """The table of ranks, and a line that counts those without a row."""
    table = Table(box=None, pad_edge=False)
    for name in ("rank", "stage", "step", *columns(words)):
        table.add_column(name, justify="left" if name in ("stage", "step") else "right")
    ranks = shown_ranks(beats)
    for rank in ranks:
        table.add_row(*map(Text, row(rank, beats[rank], words)))
    if len(ranks) == len(beats):
        return [table]
    others = [beat for rank, beat in enumerate(beats) if rank not in ranks]
    return [table, Text(f"and {len(others):,} more ranks: {_stage_counts(others)}")]


def pace_bar(num_done: int, num_total: int, text: str) -> list[RenderableType]:
    """The bar of steps, and the pace below it; nothing where the number of steps is not known."""
    if num_total <= 0:
        return []
    return [ProgressBar(total=num_total, completed=num_done, width=_BAR_WIDTH), Text(f" {text}")]


def progress_text(first: Beat, known: Sequence[Beat], pace: str, words: Words = ON_GPU) -> str:
    """Where the ranks are, in one line.

    Args:
        first: of the lowest rank.
        known: of all ranks that have sent one.
        pace: the pace and the time left; "": not known.
        words: of the kind of run.
    """
    step = f" {_step(first)}" if first.step >= 0 else ""
    left = f", {pace}" if pace else ""
    most = max(known, key=lambda beat: beat.device_used_bytes)
    held = ", ".join(f"{size_text(amount)} {name}" for name, amount in amounts_of(most, words).items())
    whose = f" (rank {most.rank}, the most of {len(known)})" if len(known) > 1 else ""
    return f"{first.stage}{step}: {held}{whose}{left}"


def shown_ranks(beats: Sequence[Beat | None]) -> list[int]:
    """The ranks that have a row: all up to MOST_RANKS, else those furthest behind and those with most device used."""
    if len(beats) <= MOST_RANKS:
        return list(range(len(beats)))
    got_on = [-1 if beat is None else beat.sequence for beat in beats]
    held = [-1 if beat is None else beat.device_used_bytes for beat in beats]
    behind = nsmallest(HALF, range(len(beats)), key=got_on.__getitem__)
    fullest = nlargest(HALF, range(len(beats)), key=held.__getitem__)
    return sorted({0, *behind, *fullest})


def _stage_counts(beats: Sequence[Beat | None]) -> str:
    """The stages in which ranks are, each with the number of ranks there, most ranks first."""
    counts = Counter(map(_stage_text, beats))
    counted = [f"{visible(stage)} ({count:,})" for stage, count in counts.most_common(_MOST_STAGES)]
    left = counts.total() - sum(count for _, count in counts.most_common(_MOST_STAGES))
    return ", ".join([*counted, f"elsewhere ({left:,})"] if left else counted)


def _stage_text(beat: Beat | None) -> str:
    if beat is None:
        return "waiting"
    return f"{beat.stage} {_step(beat)}" if beat.step >= 0 else beat.stage or "between stages"


def columns(words: Words) -> tuple[str, ...]:
    """The names of the columns of sizes."""
    named = (words.measures[name] for name in _MEASURES if name in words.measures)
    return (*named, "outside the allocator" if words.has_device else "other than tensors")


def amounts_of(beat: Beat, words: Words) -> dict[str, int]:
    """Bytes by the name of their measure."""
    return {
        words.measures[name]: getattr(beat, f"{name}_bytes") for name in _MEASURES if name in words.measures
    }


def row(rank: int, beat: Beat | None, words: Words = ON_GPU) -> tuple[str, ...]:
    """The row of a rank in the table; a rank that has sent no beat yet has a row, too."""
    if beat is None:
        return (str(rank), "waiting", "", *("" for _ in columns(words)))
    outside = max(0, beat.device_used_bytes - beat.reserved_bytes)
    amounts = [*amounts_of(beat, words).values(), outside]
    return (str(rank), visible(beat.stage), _step(beat) if beat.step >= 0 else "", *map(size_text, amounts))


def _step(beat: Beat) -> str:
    return f"step {beat.step + 1}" + (f" of {beat.num_steps}" if beat.num_steps > 0 else "")
