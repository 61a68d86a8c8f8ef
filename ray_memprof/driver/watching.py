"""A run that goes on, as seen from another terminal: the launcher's table, or what recorded ranks say of themselves.

    with watched_run(None, None) as watched:     # the newest run that goes on
        follow(watched, console)                 # until it has ended; then its last lines

Reads files of the run folder and nothing else (store/live_file.py, logs/rankN.json, run.json): the run takes no notice.
Imports no Ray, unless the run is only to be found in a Ray cluster (far_runs.py).
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich import live as rich_live
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ray_memprof.driver.live import pace_bar, progress_text, rank_table
from ray_memprof.errors import ConfigError
from ray_memprof.recorder.status import Beat
from ray_memprof.report.last_lines import last_lines
from ray_memprof.report.words import ON_GPU, Words, words_of
from ray_memprof.store.find_run import find_run, list_runs
from ray_memprof.store.live_file import read_live
from ray_memprof.store.processes import has_ended
from ray_memprof.store.rank_notes import rank_note
from ray_memprof.store.run_files import TABLES_DIR, rank_file
from ray_memprof.store.run_json import run_facts
from ray_memprof.store.run_summary import run_summary
from ray_memprof.store.standing import RUNNING, Standing, standing
from ray_memprof.wording import age_text, visible

LOOK_S = 0.2
"""Time between two looks at the files."""
OLD_S = 5.0
"""A launcher that has written nothing for so long is told: it is stopped, or its disk is slow."""
MOST_NOTES = 64
"""The most ranks of a recorded program that have a row; the others are counted."""
_SETTLE_S = 30.0
"""How long the last lines are waited for: the report is written after the run has ended."""


def run_to_watch(run: str | None, output_dir: Path | None) -> Path:
    """The run that is meant: the newest that goes on if none is named, and the newest of all if none goes on.

    Raises:
        ConfigError: there is no such run.
    """
    if run is None:
        for run_dir in reversed(list_runs(output_dir, begun=True)):
            if _goes_on(run_dir):
                return run_dir.resolve()
    return find_run(run or "latest", output_dir, begun=True)


@contextmanager
def watched_run(run: str | None, output_dir: Path | None, address: str | None = None) -> Iterator["Watched"]:
    """The run that is meant: of this host, or of a Ray cluster.

    Args:
        run: see run_to_watch.
        output_dir: see run_to_watch.
        address: of the cluster in which the run is looked for; None: the run is looked for on this host, and if it is
            not there, in the cluster that RAY_ADDRESS names.

    Raises:
        ConfigError: there is no such run, or Ray is needed and not installed.
        StartFailed: the cluster cannot be reached.
    """
    if address is None:
        try:
            run_dir = run_to_watch(run, output_dir)
        except ConfigError:
            address = os.environ.get("RAY_ADDRESS")
            if not address:
                raise
        else:
            yield Folder(run_dir)
            return
    from ray_memprof.driver.far_runs import far_run

    with far_run(run, address) as found:
        yield found


def _goes_on(run_dir: Path) -> bool:
    try:
        now = standing(run_dir)
    except ConfigError:  # a damaged run is not the one
        return False
    return now is not None and now.status == RUNNING


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What is known of a run at one moment."""

    title: str
    """Its name, and how far it is."""
    beats: tuple[Beat | None, ...] = ()
    """By rank; None: a rank that has sent none. Empty: the ranks do not work yet, or have no launcher."""
    pace: tuple[int, int, str] = (0, 0, "")
    """Steps done, all steps, and the pace in words."""
    words: Words = ON_GPU
    notes: tuple[tuple[str, ...], ...] = ()
    """Of ranks without a launcher: what each says of itself."""
    warning: str = ""

    def drawn(self) -> RenderableType:
        """For a terminal."""
        parts: list[RenderableType] = [Text(visible(self.title))]
        if self.beats:
            parts += [*rank_table(self.beats, self.words), *pace_bar(*self.pace)]
        if self.notes:
            parts.append(_notes_table(self.notes))
        return Group(*parts, *([Text(self.warning)] if self.warning else []))

    def line(self) -> str:
        """For a file, or a pipe: one line that changes when a rank gets on; "" between two stages."""
        known = [beat for beat in self.beats if beat is not None]
        if known:
            return visible(progress_text(known[0], known, self.pace[2], self.words)) if known[0].stage else ""
        if self.notes:
            running = sum(note[1] == RUNNING for note in self.notes)
            return f"{self.title}: {running} of {len(self.notes)} ranks run"
        return visible(self.title)

    def mark(self) -> object:
        """What must differ for another line to be worth printing."""
        known = [beat for beat in self.beats if beat is not None]
        if known:
            return (known[0].stage, known[0].step)
        return [note[1] for note in self.notes] or self.line()


def view(run_dir: Path, now: Standing, now_s: float | None = None) -> View:
    """What is known of a run that goes on."""
    now_s = time.time() if now_s is None else now_s
    who = f"{run_dir.parent.name}/{run_dir.name}"
    title = f"{who}: {now.text}"
    facts = run_facts(run_dir) or {}
    num_ranks = int(facts.get("num_ranks", 0))
    if facts.get("started_by") == "record":
        notes = tuple(_note(run_dir, rank, now_s) for rank in range(min(num_ranks, MOST_NOTES)))
        more = num_ranks - len(notes)
        return View(title=title, notes=notes, warning=f"and {more:,} more ranks" if more > 0 else "")
    live = read_live(run_dir)
    if live is None:
        return View(title=title)
    beats: list[Beat | None] = [None] * num_ranks
    for one in live["beats"]:
        beats[one["rank"]] = Beat(**one)
    pace = live["pace"]
    silent_s = now_s - live["t_ns"] / 1e9
    return View(
        title=f"{who}: {now.status}",  # how far it is, the table knows better than run.json
        beats=tuple(beats),
        pace=(pace["num_done"], pace["num_total"], pace["text"]),
        words=words_of(live["device"]),
        warning=f"the launcher has said nothing for {age_text(silent_s)}" if silent_s > OLD_S else "",
    )


_NOTE_COLUMNS = ("rank", "status", "host", "process", "device", "last rows")


def _note(run_dir: Path, rank: int, now_s: float) -> tuple[str, ...]:
    """A row for a rank without a launcher: what it has said, and how long ago it wrote rows."""
    try:
        note = rank_note(run_dir, rank)
    except ValueError:  # being copied
        note = None
    if note is None:
        return (str(rank), "waiting", "", "", "", "")
    gpu = note.get("gpu_index", -1)
    return (
        str(rank),
        str(note.get("status", "")),
        str(note.get("host", "")),
        str(note.get("pid", "")),
        f"GPU {gpu}" if gpu >= 0 else "CPU",
        f"{age_text(max(0.0, now_s - _wrote_s(run_dir, rank, now_s)))} ago",
    )


def _wrote_s(run_dir: Path, rank: int, now_s: float) -> float:
    """When a rank wrote a file last, in seconds since 1970."""
    times = []
    for file in (*run_dir.glob(f"{TABLES_DIR}/*/rank={rank}/*"), run_dir / rank_file(rank)):
        with suppress(FileNotFoundError):  # replaced a moment ago
            times.append(file.stat().st_mtime)
    return max(times, default=now_s)


def _notes_table(notes: tuple[tuple[str, ...], ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in _NOTE_COLUMNS:
        table.add_column(name, justify="right" if name in ("rank", "process") else "left")
    for note in notes:
        table.add_row(*(Text(visible(cell)) for cell in note))
    return table


class Watched(Protocol):
    """A run as follow() sees it."""

    look_s: float
    """Time between two looks."""

    def look(self) -> View | None:
        """Where it is now; None: it has ended."""
        ...

    def is_settled(self) -> bool:
        """Whether nothing more will come after its end: it is derived, or its launcher is gone."""
        ...

    def last_lines(self) -> list[str]:
        """What its launch printed last."""
        ...


class Folder:
    """A run folder of this host."""

    look_s = LOOK_S

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def look(self) -> View | None:
        """Where the run is now; None: it has ended.

        Raises:
            ConfigError: the folder cannot be read.
        """
        now = standing(self._run_dir)
        return view(self._run_dir, now) if now is not None and now.status == RUNNING else None

    def is_settled(self) -> bool:
        """Whether nothing more will come after its end: it is derived, or its launcher is gone."""
        return run_summary(self._run_dir) is not None or not self._driver_lives()

    def _driver_lives(self) -> bool:
        driver = (run_facts(self._run_dir) or {}).get("driver")
        return driver is not None and has_ended(driver) is not True

    def last_lines(self) -> list[str]:
        """What its launch printed last."""
        return last_lines(self._run_dir)

    def host(self) -> str:
        """Where the folder is."""
        return socket.gethostname()


def follow(
    watched: Watched,
    console: Console,
    *,
    once: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Show a run until it has ended, then its last lines.

    Args:
        watched: the run.
        console: where to show it: a table on a terminal, else a line whenever rank 0 gets on.
        once: show it as it is now, and return.
        sleep: waits for so many seconds.
        clock: seconds, from any start.

    Raises:
        ConfigError: its folder cannot be read.
        StartFailed: it is elsewhere, and its node does not answer any longer.
    """
    shown: _Shown = _Table(console) if console.is_terminal and not once else _Lines(console, is_whole=once)
    with shown:
        while (seen := watched.look()) is not None:
            shown.show(seen)
            if once:
                return
            sleep(watched.look_s)
    until = clock() + _SETTLE_S
    while clock() < until and not watched.is_settled():
        sleep(watched.look_s)
    for line in watched.last_lines():
        console.print(visible(line), markup=False, emoji=False, highlight=False, soft_wrap=True)


class _Lines:
    """Prints a line when rank 0 enters another stage or step."""

    def __init__(self, console: Console, *, is_whole: bool) -> None:
        self._console, self._is_whole, self._mark = console, is_whole, object()

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, seen: View) -> None:
        if self._is_whole:
            self._console.print(seen.drawn())
        elif seen.line() and seen.mark() != self._mark:
            self._mark = seen.mark()
            self._console.print(seen.line(), markup=False, emoji=False, highlight=False, soft_wrap=True)


class _Table:
    """Draws the table, and takes it away at the end."""

    def __init__(self, console: Console) -> None:
        self._live = rich_live.Live(console=console, transient=True, auto_refresh=False)

    def __enter__(self) -> "_Table":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, seen: View) -> None:
        self._live.update(seen.drawn(), refresh=True)


_Shown = _Lines | _Table
