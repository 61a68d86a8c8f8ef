"""What a person sees while ranks run: one table on a terminal, a line now and then elsewhere, all on stderr.

    with Live(config, num_ranks=4, plain=False) as live:
        with live.stage("start Ray"):
            ...                                   # leaves "start Ray: 3.1 s"
        live.update(beats)                        # as often as beats come
        live.summary(["report: profiler_logs/test/latest/report.html"])

Elsewhere than on a terminal (or with `plain`) a line comes every logging.log_interval steps and whenever rank 0 enters
another stage, at most one a second. Of many ranks the table shows those that are furthest behind and the fullest.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import nlargest, nsmallest
from types import TracebackType
from typing import TYPE_CHECKING

from rich import live as rich_live
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ray_memprof.driver.pace import Pace
from ray_memprof.recorder.status import Beat
from ray_memprof.wording import size_text, visible

if TYPE_CHECKING:
    from ray_memprof.config.run_config import RunConfig

LINE_EVERY_S = 1.0
_COLUMNS = ("rank", "stage", "step", "allocated", "reserved", "device used", "outside the allocator")
_BAR_WIDTH = 40
MOST_RANKS = 24
"""Of more, the table shows the HALF that got on least, the HALF that use most, and rank 0; the others are counted."""
HALF = 8
_MOST_PLACES = 3


class _Console(Console):
    """Falls silent where its reader has gone (`| head`): no reason to end a run, as rich would."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Live:
    """Draws beats as they come.

    Args:
        config: of the run.
        num_ranks: rows of the table.
        plain: write lines even on a terminal.
        console: where to; None: stderr.
        clock: seconds, from any start.
        stages_s: takes the seconds of each stage, by name.
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
        self._beats: list[Beat | None] = [None] * num_ranks
        self._pace = Pace(config.optimization.batch_size, clock)
        self._clock, self._stage = clock, ""
        self._stages_s = {} if stages_s is None else stages_s
        self._told: tuple[str, int] = ("", -1)
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
        else:  # a file has no edge at which lines would have to be broken
            self._console.print(line, soft_wrap=not self._console.is_terminal)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of starting or ending a run; one line when it is over."""
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
        """A moment of the run, in seconds since the ranks were set to work and since the launch; one line."""
        self._stages_s[f"launch to {name}"] = round(from_launch_s, 3)
        self._took(name, seconds, "after ", f", {from_launch_s:.1f} s from the launch")

    def _took(self, name: str, seconds: float, how: str = "", more: str = "") -> None:
        self._stages_s[name] = round(seconds, 3)
        self.say(f"  {name}: {how}{seconds:.1f} s{more}")

    def summary(self, lines: Sequence[str]) -> None:
        """Take the table away and write the last lines."""
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
            self._tell(first)

    def _tell(self, first: Beat) -> None:
        """A line, if rank 0 got far enough since the last one; what comes too soon is told by a later beat."""
        stage, mark = self._told
        steps = -1 if first.step < 0 else first.step - first.step % self._log_interval
        now = self._clock()
        if (first.stage, steps) == (stage, mark) or now - self._last_line < LINE_EVERY_S:
            return
        if not first.stage:
            return
        self._told, self._last_line = (first.stage, steps), now
        self.say(f"  {self._line(first)}")

    def _line(self, first: Beat) -> str:
        step = f" {_step(first)}" if first.step >= 0 else ""
        left = f", {told}" if (told := self._pace.told()) else ""
        known = [beat for beat in self._beats if beat is not None]
        most = max(known, key=lambda beat: beat.device_used_bytes)
        held = (
            f"{size_text(most.allocated_bytes)} allocated, {size_text(most.reserved_bytes)} reserved, "
            f"{size_text(most.device_used_bytes)} device used"
        )
        whose = f" (rank {most.rank}, the most of {len(known)})" if len(known) > 1 else ""
        return f"{first.stage}{step}: {held}{whose}{left}"

    def _draw(self) -> RenderableType:
        parts: list[RenderableType] = []
        if any(beat is not None for beat in self._beats):
            parts += self._table()
        if self._pace.num_total > 0:
            bar = ProgressBar(total=self._pace.num_total, completed=self._pace.num_done, width=_BAR_WIDTH)
            parts += [bar, Text(self._pace.told())]
        if self._stage:
            parts.append(Text(f"{self._stage} ..."))
        return Group(*parts)

    def _table(self) -> list[RenderableType]:
        table = Table(box=None, pad_edge=False)
        for name in _COLUMNS:
            table.add_column(name, justify="left" if name in ("stage", "step") else "right")
        ranks = shown_ranks(self._beats)
        for rank in ranks:
            table.add_row(*map(Text, row(rank, self._beats[rank])))
        if len(ranks) == len(self._beats):
            return [table]
        others = [beat for rank, beat in enumerate(self._beats) if rank not in ranks]
        return [table, Text(f"and {len(others):,} more ranks: {_places(others)}")]


def shown_ranks(beats: Sequence[Beat | None]) -> list[int]:
    """Ranks that have a row: all of a few, of many those furthest behind and the fullest."""
    if len(beats) <= MOST_RANKS:
        return list(range(len(beats)))
    got_on = [-1 if beat is None else beat.sequence for beat in beats]
    held = [-1 if beat is None else beat.device_used_bytes for beat in beats]
    behind = nsmallest(HALF, range(len(beats)), key=got_on.__getitem__)
    fullest = nlargest(HALF, range(len(beats)), key=held.__getitem__)
    return sorted({0, *behind, *fullest})


def _places(beats: Sequence[Beat | None]) -> str:
    """Where ranks are, with how many are there, the most first."""
    counts = Counter(map(_place, beats))
    told = [f"{visible(place)} ({count:,})" for place, count in counts.most_common(_MOST_PLACES)]
    left = counts.total() - sum(count for _, count in counts.most_common(_MOST_PLACES))
    return ", ".join([*told, f"elsewhere ({left:,})"] if left else told)


def _place(beat: Beat | None) -> str:
    if beat is None:
        return "waiting"
    return f"{beat.stage} {_step(beat)}" if beat.step >= 0 else beat.stage or "between stages"


def row(rank: int, beat: Beat | None) -> tuple[str, ...]:
    """A rank in the table; a rank that sent nothing yet has a row, too."""
    if beat is None:
        return (str(rank), "waiting", "", "", "", "", "")
    outside = max(0, beat.device_used_bytes - beat.reserved_bytes)
    amounts = beat.allocated_bytes, beat.reserved_bytes, beat.device_used_bytes, outside
    return (str(rank), visible(beat.stage), _step(beat) if beat.step >= 0 else "", *map(size_text, amounts))


def _step(beat: Beat) -> str:
    return f"step {beat.step + 1}" + (f" of {beat.num_steps}" if beat.num_steps > 0 else "")
