"""Moves records from a node to the run folder: sent in chunks, received whole, and removed from the node.

    remote = Remote(where="host:/tmp/x", ranks=(4, 5), chunks=send(folder, (4, 5)))
    receive(run_dir, remote)

Knows no network: the caller brings the chunks from the node.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath

from ray_memprof.store.run_files import (
    LOGS_DIR,
    TABLES_DIR,
    TRACE_DIR,
    manifest_path,
    name_in_run,
)
from ray_memprof.store.whole_file import driver_writing, replacing
from ray_memprof.store.writer_lock import has_ended
from ray_memprof.wording import rank_text

CHUNK_BYTES = 8 * 2**20

Chunk = tuple[str, bytes]
"""Path relative to the run folder, with slashes, and the next bytes of that file."""


class TransportError(Exception):
    """Raised by the iterator of a Remote when no more chunks will come; its text becomes a problem of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A folder of another node, whose files are sent to this one."""

    where: str
    """For messages: host and folder, so that a user finds the files there."""
    ranks: tuple[int, ...]
    chunks: Iterable[Chunk]
    """As send() yields them on that node."""


def send(folder: Path, ranks: Iterable[int], *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Yield the files of these ranks in a scratch folder, in chunks; manifests first, to notice a torn transfer.

    A process that still writes what a rank left to it is waited for.

    Raises:
        TransportError: at the end, if it still does: then not all is sent.
    """
    ranks = list(ranks)
    unended = [rank for rank in ranks if not has_ended(manifest_path(folder, rank))]
    for path in files_of(folder, ranks):
        with open(path, "rb") as file:
            data = file.read(chunk_bytes)
            yield name_in_run(folder, path), data
            while data := file.read(chunk_bytes):
                yield name_in_run(folder, path), data
    if unended:
        raise TransportError(f"the records of {rank_text(unended)} are still being written")


def remove(folder: Path, ranks: Iterable[int]) -> None:
    """Remove from a scratch folder what send() sends of these ranks, and every folder that is empty then.

    Another node of the same host may have ranks in the same folder: the files of those ranks stay.
    """
    for path in files_of(folder, ranks):
        path.unlink()
    for path in [*sorted(folder.rglob("*/"), reverse=True), folder]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def files_of(folder: Path, ranks: Iterable[int]) -> list[Path]:
    """The files of these ranks in a folder: what send() sends."""
    names = []
    for rank in ranks:
        names += [manifest_path(folder, rank)]
        names += sorted(folder.glob(f"{TABLES_DIR}/*/rank={rank}/*"))
        # This includes the flight record of NCCL, whose name ends with the rank.
        patterns = (LOGS_DIR, f"rank{rank}.*"), (LOGS_DIR, f"*_rank{rank}"), (TRACE_DIR, f"rank{rank}.*")
        names += [path for kind, pattern in patterns for path in sorted((folder / kind).glob(pattern))]
    return [name for name in names if name.is_file()]


def receive(run_dir: Path, remote: Remote) -> None:
    """Write what a Remote sends into the run folder; a file appears once all of it is here.

    Raises:
        DiskFull: no room here; the message says where the records still are.
        TransportError: the remote's iterator ended early; files that were complete stay.
        ValueError: a path that leads out of the run folder.
    """
    whole = f"of {rank_text(remote.ranks)} are in {remote.where}"
    with driver_writing(run_dir, whole):
        for name, chunks in groupby(remote.chunks, key=itemgetter(0)):
            path = _inside(run_dir, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, open(temporary, "wb") as file:
                for _, data in chunks:
                    file.write(data)


def _inside(run_dir: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError(f"a file of a run must lie in its folder, not at {name!r}")
    return run_dir / pure
