"""Takes the folders of one start together: hosts that share no disk keep one each (store/joint_folder.py).

    run_dir = joined([Path("nano/20260102-030405-ab12"), Path("/mnt/host2/nano/20260102-030407-91f0")])

Takes folders of the same start, copied here or mounted, in any order. Leaves all ranks in the folder that has rank 0,
with the times of its host's clock (clock_offsets.py); the other folders stay as they are. A second call changes
nothing. driver/recorded.py completes the run.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from ray_memprof.driver.clock_offsets import shift_rank, told_offset
from ray_memprof.driver.recorded import CLOCK_OFFSET, alone, is_recorded
from ray_memprof.errors import ConfigError
from ray_memprof.recorder.clock import Offset
from ray_memprof.store.gather import gather
from ray_memprof.store.rank_notes import note_rank, rank_note, still_running
from ray_memprof.store.run_files import CONFIG_FILE, rank_file
from ray_memprof.store.run_folder import RunFolder
from ray_memprof.store.transfer import Remote, TransportError, files_of, receive, send
from ray_memprof.wording import rank_text

_CLOCKS_APART_S = 120.0
"""Two folders whose times are further apart than this are of two starts: clocks of hosts differ by less."""
_OWN_VIEW = ("MASTER_ADDR",)
"""Variables that a person may write differently on each host of one start."""
_ONE_PROCESS = ("host", "pid", "started")
"""Facts of a rank that tell its process from every other."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A folder, and what its ranks say of themselves."""

    folder: RunFolder
    notes: Mapping[int, dict[str, Any]]

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def program(self) -> str:
        """The program without its folders, which may differ between hosts."""
        script = yaml.safe_load((self.path / CONFIG_FILE).read_text(encoding="utf-8"))["script"]
        return str(script.get("module") or Path(script["path"]).name)

    def times_ns(self) -> tuple[int, int | None]:
        """When recording began and ended; None: a rank has not said when."""
        ends = [int(note.get("end_ns", 0)) for note in self.notes.values()]
        return self.folder.facts["start_ns"], max(ends) if all(ends) else None


def joined(run_dirs: Sequence[Path], *, wait_s: float = 0.0) -> tuple[Path, list[str]]:
    """Bring the ranks of all folders into the one that has rank 0; returns it, and a line on each clock that was off.

    Args:
        run_dirs: at least one.
        wait_s: how long to wait for ranks that still run.

    Raises:
        ConfigError: the folders are not of one start, a rank is in two of them, or a rank still runs.
        DiskFull: no room in the folder of rank 0.
    """
    if len(run_dirs) == 1:
        return run_dirs[0], []
    parts = [_part(path) for path in _each_once(run_dirs)]
    for one, other in combinations(parts, 2):
        _check_pair(one, other)
    # Without rank 0, which may have left nothing, the first of the others stands in its place.
    home, *others = sorted(parts, key=lambda part: min(part.notes))
    for part in parts:
        if left := still_running(part.path, part.folder.facts["num_ranks"], wait_s=wait_s):
            raise ConfigError(
                f"{part.path} has not ended: still running: {rank_text(left)}",
                hint="wait until they have ended, or say how long to wait: --wait SECONDS",
            )
    with alone(home.path):
        return home.path, [line for part in others for line in _taken_in(home, part)]


def _each_once(run_dirs: Sequence[Path]) -> list[Path]:
    for one, other in combinations(run_dirs, 2):
        if one.resolve() == other.resolve():
            raise ConfigError(f"{other} is named twice", hint="name the folder of each host once")
    return list(run_dirs)


def _part(run_dir: Path) -> _Part:
    if not is_recorded(run_dir):
        raise ConfigError(
            f"{run_dir} was not recorded by its ranks: a launcher made it",
            hint="name one run; --from takes copies of its hosts' scratch folders",
        )
    folder = RunFolder.open(run_dir)
    found = {rank: rank_note(run_dir, rank) for rank in range(folder.facts["num_ranks"])}
    notes = {rank: note for rank, note in found.items() if note is not None}
    if not notes:
        raise ConfigError(f"no rank has recorded anything in {run_dir}", hint="leave it out")
    return _Part(folder, notes)


def _check_pair(one: _Part, other: _Part) -> None:
    """Raise ConfigError unless both are of one start, and no rank is in both of them."""
    for what, ours, theirs in _to_compare(one, other):
        if ours != theirs:
            raise ConfigError(
                f"{one.path} and {other.path} are not of one start: {what} {ours} and {theirs}",
                hint="name the folders that the hosts of one start have left, and no others",
            )
    for rank in sorted(one.notes.keys() & other.notes.keys()):
        if not _is_same(one.notes[rank], other.notes[rank]):
            raise ConfigError(
                f"rank {rank} is in {one.path} and in {other.path}",
                hint="name the folders that the hosts of one start have left, and no others",
            )
    (began, ended), (other_began, other_ended) = one.times_ns(), other.times_ns()
    for start_ns, end_ns in ((began, other_ended), (other_began, ended)):
        if end_ns is not None and start_ns - end_ns > _CLOCKS_APART_S * 1e9:
            raise ConfigError(
                f"{one.path} and {other.path} are not of one start: one began {(start_ns - end_ns) / 1e9:.0f} s "
                "after the other had ended",
                hint="name the folders that the hosts of one start have left, and no others",
            )


def _to_compare(one: _Part, other: _Part) -> Iterator[tuple[str, Any, Any]]:
    ours, theirs = one.folder.facts, other.folder.facts
    yield "number of ranks", ours["num_ranks"], theirs["num_ranks"]
    yield "program", one.program, other.program
    yield "name", ours["name"], theirs["name"]
    known, also = ours.get("start", {}), theirs.get("start", {})
    for name in known.keys() & also.keys() - set(_OWN_VIEW):
        yield name, known[name], also[name]


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both are of one process: the folder of a host that has been taken in already."""
    return all(one[name] == other[name] for name in _ONE_PROCESS)


def _taken_in(home: _Part, part: _Part) -> Iterator[str]:
    """Copy what the ranks of `part` wrote, and bring it to the clock of `home`; yields a line if that was off."""
    new = tuple(sorted(part.notes.keys() - home.notes.keys()))
    if not new:
        return
    # What a rank says of itself comes last: a rank that has it is here as a whole.
    notes = {rank_file(rank): rank for rank in new}
    chunks = ((name, data) for name, data in send(part.path, new) if name not in notes)
    try:
        receive(home.path, Remote(where=str(part.path), ranks=new, chunks=chunks))
    except TransportError as error:
        raise ConfigError(f"{part.path}: {error}", hint="take it in again once they are") from error
    gather(home.path, new)  # whole parts, also of ranks that were killed
    same_host = {note["host"] for note in home.notes.values()} & {
        note["host"] for note in part.notes.values()
    }
    offset = None if same_host else told_offset(home.path, sorted(home.notes), new)
    for rank in new:
        note = part.notes[rank]
        if offset is not None:
            shift_rank(home.path, rank, offset.ns)
            moved = {
                CLOCK_OFFSET: offset.ns,
                **({"end_ns": note["end_ns"] - offset.ns} if "end_ns" in note else {}),
            }
            note = {**note, **moved}
        note_rank(home.path, rank, note)
    for path in files_of(part.path, new):
        # Their age shows that a rank of another host which was killed has ended.
        seen = path.stat()
        with suppress(FileNotFoundError):  # an open stream is a part now
            os.utime(home.path / path.relative_to(part.path), ns=(seen.st_atime_ns, seen.st_mtime_ns))
    if offset is not None:
        yield _offset_text(home, part, new, offset)


def _offset_text(home: _Part, part: _Part, new: Sequence[int], offset: Offset) -> str:
    return (
        f"note: the clock of {part.notes[new[0]]['host']} is {abs(offset.ns) / 1e9:.3f} s "
        f"{'ahead of' if offset.ns > 0 else 'behind'} that of {home.notes[min(home.notes)]['host']} "
        f"(to {offset.error_ns / 1e9:.3f} s, by their collectives); times of {rank_text(new)} are shifted"
    )
