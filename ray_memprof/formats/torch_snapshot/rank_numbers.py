"""Which rank a memory snapshot is of: by its path, and by the devices that it tells of.

    files = files_by_rank([Path("dump/rank3.pickle"), Path("dump/rank7.pickle")])    # {3: ..., 7: ...}
    place([(3, {0: 120, 3: 8000}), (7, {7: 9000})])                                   # [{0: 8, 3: 3}, {7: 7}]

A path says it by the number behind the word "rank" (rank3, rank_3, Rank 3, rank=3): in the name of the file, else in
the folder nearest to it. Gaps stay gaps. Where no path says it, the files count from 0 in natural order, file2 before
file10.

A process that worked on several devices has a rank for each. They follow one another in the order of devices where
the numbers of the paths leave room for them, and where each file has equally many. Otherwise the busiest device keeps
the number of the file, and the others come behind the highest: a rank that left something on cuda:0 stays itself.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray_memprof.formats.torch_snapshot.pickle_window import NotASnapshot

MAX_RANK = 999_999
_RANK = re.compile(r"(local[^A-Za-z0-9]?|[A-Za-z]*?)(rank)[^A-Za-z0-9]{0,3}([0-9]+)", re.IGNORECASE)
_PREFIXES = ("", "global", "world", "local", "my")
_RENAME = "rename them to rank0.pickle, rank1.pickle, ..."
_LISTED = 3


def rank_in(path: Path) -> int | None:
    """The rank that a path names; None: it names none.

    Raises:
        NotASnapshot: the file or folder that does so names two.
    """
    for part in reversed(path.parts):
        found = [
            (prefix.lower(), int(number[:9]))
            for prefix, word, number in _RANK.findall(part)
            if _is_word(prefix, word)
        ]
        # local_rank4 of rank12_local_rank4 is another number; on its own it is all there is.
        of_all = [rank for prefix, rank in found if not prefix.startswith("local")] if len(found) > 1 else []
        ranks = sorted(set(of_all or [rank for _, rank in found]))
        if len(ranks) > 1:
            raise NotASnapshot(f"{path} names the ranks {' and '.join(map(str, ranks))}", hint=_RENAME)
        if ranks and ranks[0] > MAX_RANK:
            raise NotASnapshot(f"{path} names the rank {ranks[0]}: no run has so many", hint=_RENAME)
        if ranks:
            return ranks[0]
    return None


def _is_word(prefix: str, word: str) -> bool:
    """Whether `word` stands on its own behind these letters: myRank and globalrank do, frank does not."""
    return prefix.lower().rstrip("_-. =") in _PREFIXES or (word[0] == "R" and prefix[-1].islower())


def files_by_rank(paths: Sequence[Path]) -> tuple[dict[int, Path], bool]:
    """Files by rank, in order, and whether their paths say so.

    Raises:
        NotASnapshot: there is no file, one is listed twice, two are of one rank, or only some name theirs.
    """
    if not paths:
        raise NotASnapshot("no file to import", hint="ray-memprof import dump/rank*.pickle --name NAME")
    if len({path.resolve() for path in paths}) < len(paths):
        twice = Counter(path.resolve() for path in paths).most_common(1)[0][0]
        raise NotASnapshot(f"{twice} is listed twice", hint="name each file once")
    ranks = {path: rank_in(path) for path in paths}
    unnamed = [path for path, rank in ranks.items() if rank is None]
    if len(unnamed) == len(paths):
        return dict(enumerate(sorted(paths, key=_natural))), False
    if unnamed:
        named = next(path for path in paths if path not in unnamed)
        raise NotASnapshot(
            f"{_listed(unnamed)}: no number behind the word rank, which {named} has; nobody can tell the rank",
            hint=_RENAME,
        )
    files: dict[int, Path] = {}
    for path, rank in sorted(ranks.items(), key=lambda item: (item[1], str(item[0]))):
        assert rank is not None
        if rank in files:
            raise NotASnapshot(
                f"{files[rank]} and {path} are both of rank {rank}: a rank has one file",
                hint=f"leave one of them out, or {_RENAME}",
            )
        files[rank] = path
    return files, True


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """A key that puts file2 before file10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", str(path))
    return [(int(part[:18]), "") if part.isdecimal() else (-1, part) for part in parts], str(path)


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _LISTED:,} more" if len(paths) > _LISTED else ""
    return ", ".join(map(str, paths[:_LISTED])) + more


def check_files(paths: Sequence[Path]) -> None:
    """See that each can be read at all, before hours go into the others.

    Raises:
        NotASnapshot: some cannot; the message lists them.
    """
    faults: dict[str, list[Path]] = {}
    for path in paths:
        if fault := _fault(path):
            faults.setdefault(fault, []).append(path)
    for fault, found in faults.items():
        raise NotASnapshot(f"{_listed(found)} {fault}", hint=_HINTS.get(fault, "check the path"))


_EMPTY = "is empty (0 bytes): nothing was written to it"
_FOLDER = "is a folder"
_NO_MATCH = "matches no file"
_HINTS = {
    _EMPTY: "dump it again, or leave it out: the other files keep their ranks",
    _FOLDER: "name the files in it: dump/rank*.pickle",
    _NO_MATCH: "the shell found nothing to put in its place: check the folder",
}


def _fault(path: Path) -> str:
    try:
        if path.is_dir():
            return _FOLDER
        if not path.exists() and re.search(r"[*?\[]", str(path)):
            return _NO_MATCH
        if path.stat().st_size == 0 and path.is_file():
            return _EMPTY
        with open(path, "rb"):
            return ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:  # a zero byte in the path
        return f"cannot be read: {error}"


def place(files: Sequence[tuple[int, Mapping[int, int]]], *, named: bool) -> list[dict[int, int]]:
    """Ranks by device, for each file.

    Args:
        files: number of each, in order, and how many events each of its devices has.
        named: whether the numbers are those of the paths.
    """
    if not named:  # they only count the files
        first = 0
        placed = []
        for _, devices in files:
            placed.append({device: first + index for index, device in enumerate(sorted(devices))})
            first += len(devices)
        return placed
    in_turn = [
        {device: rank + index for index, device in enumerate(sorted(devices))} for rank, devices in files
    ]
    taken = Counter(rank for ranks in in_turn for rank in ranks.values())
    if max(taken.values()) == 1 and len({len(devices) for _, devices in files}) == 1:
        return in_turn
    free = max(rank for rank, _ in files) + 1
    placed = []
    for rank, devices in files:
        busiest = max(devices, key=lambda device: (devices[device], -device))
        ranks = {}
        for device in sorted(devices):
            ranks[device] = rank if device == busiest else free
            free += device != busiest
        placed.append(ranks)
    return placed


def gaps(ranks: Sequence[int]) -> str:
    """The ranks that no file is of, below the highest: "0-2, 4"; empty: all are there."""
    texts, expected = [], 0
    for rank in sorted(ranks):
        if rank > expected:
            texts.append(str(expected) if rank == expected + 1 else f"{expected}-{rank - 1}")
        expected = rank + 1
    return ", ".join(texts)
