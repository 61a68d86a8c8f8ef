"""Finds the rank of a memory snapshot from its path and from the devices that have events in it.

    files = files_by_rank([Path("dump/rank3.pickle"), Path("dump/rank7.pickle")])    # {3: ..., 7: ...}
    numbered([(3, {0: 120, 3: 8000}), (7, {7: 9000})])                                   # [{0: 8, 3: 3}, {7: 7}]

The rank is the number after the word "rank" (rank3, rank_3, Rank 3, rank=3) in the name of the file, or else in the
nearest folder that has one. Gaps between ranks stay. If no path names a rank, the files are numbered from 0 in natural
order: file2 comes before file10.

A process that worked on several devices gets a rank for each device. These ranks follow one another in the order of
the devices if the numbers in the paths leave room for them and every file has the same number of devices. Otherwise
the busiest device keeps the number of the file, and the other devices get numbers above the highest one. So a rank
that left something on cuda:0 keeps its own number.
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
    """The rank that a path names; None: it names no rank.

    Raises:
        NotASnapshot: the name of the file or folder names two ranks, or a rank above MAX_RANK.
    """
    for part in reversed(path.parts):
        found = [
            (prefix.lower(), int(number[:9]))
            for prefix, word, number in _RANK.findall(part)
            if _is_word(prefix, word)
        ]
        # In rank12_local_rank4 the rank is 12; a local_rank4 alone counts, because nothing better is there.
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
    """Whether `word` is a word of its own after these letters: it is in myRank and globalrank, but not in frank."""
    return prefix.lower().rstrip("_-. =") in _PREFIXES or (word[0] == "R" and prefix[-1].islower())


def files_by_rank(paths: Sequence[Path]) -> tuple[dict[int, Path], bool]:
    """Files by rank, in the order of ranks; and whether the paths name the ranks.

    Raises:
        NotASnapshot: there is no file, one is listed twice, two are of one rank, or only some paths name a rank.
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
            f"{_listed(unnamed)}: no number after the word rank in the path, but {named} has one",
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
    """Check that every file can be read at all, before hours are spent on the others.

    Raises:
        NotASnapshot: some files cannot be read; the message lists them.
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
    _NO_MATCH: "the shell found no file for this pattern: check the folder",
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


def numbered(files: Sequence[tuple[int, Mapping[int, int]]], *, named: bool) -> list[dict[int, int]]:
    """For each file, the rank of each of its devices.

    Args:
        files: for each file, in order, its number and how many events each of its devices has.
        named: whether the numbers are the ranks that the paths name.
    """
    if not named:  # the numbers only count the files
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
    """The ranks below the highest one that have no file, as in "0-2, 4"; empty: every rank has one."""
    texts, expected = [], 0
    for rank in sorted(ranks):
        if rank > expected:
            texts.append(str(expected) if rank == expected + 1 else f"{expected}-{rank - 1}")
        expected = rank + 1
    return ", ".join(texts)
