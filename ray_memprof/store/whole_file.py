"""A file that is there whole or not at all, and what to say where the disk has no room for it.

with whole_file(path) as temporary:
    temporary.write_text(...)

A link stays a link: what it points to is written. A device or a FIFO cannot be replaced: it gets the whole at the end.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_memprof.errors import ConfigError, DiskFull, RunError
from ray_memprof.store.run_files import TEMPORARY_SUFFIX

_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_target(path: Path | None) -> None:
    """Refuse what cannot be written, before anything is done for it; None is the standard output.

    Raises:
        ConfigError: an empty name, a folder, or a place where no file can be made.
        DiskFull: no room for one.
    """
    if path is None:
        return
    if path == Path():  # of an empty name too
        raise ConfigError("the name of the file to write is empty, or a folder", hint="name a file")
    try:
        if path.is_dir():
            raise ConfigError(f"cannot write {path}: it is a folder", hint=f"name a file: {path / 'file'}")
        if not _is_special(path):
            folder = next(one for one in _end_of_links(path).parents if one.exists())
            with tempfile.TemporaryFile(dir=folder):  # only that tells
                pass
    except OSError as error:
        raise _told(path, error) from error


def is_full(error: OSError) -> bool:
    """Whether the disk has no room; DuckDB leaves the system's words alone of that."""
    return error.errno in _FULL or any(os.strerror(number) in str(error) for number in _FULL)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write under; it becomes `path` when the block ends well.

    Raises:
        BrokenPipeError: `path` is a FIFO that nobody reads any longer.
        ConfigError: `path` is no file that can be written.
        DiskFull: no room for it.
    """
    check_target(path)
    try:
        with _written_straight(path) if _is_special(path) else _replaced(path) as temporary:
            yield temporary
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _told(path, error) from error


def _is_special(path: Path) -> bool:
    """Whether it is there and no regular file. Links are followed by the system: it alone knows /dev/stdout."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


@contextmanager
def _written_straight(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "whole"
        yield temporary
        with temporary.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    target = _end_of_links(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        yield temporary


def _end_of_links(path: Path) -> Path:
    # Path.resolve raises RuntimeError for links in a circle.
    return Path(os.path.realpath(path))


def _told(path: Path, error: OSError) -> RunError:
    if is_full(error):
        return disk_error("export", path, error, instead="write to another one")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ConfigError(f"cannot write {path}: {reason}", hint="name a place that you may write to")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write under; the file becomes `path` when the block ends well, and else it is gone.

    `path` is there whole or not at all, power cuts included. One writer of a path at a time.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()  # on a full disk its bytes are what others need
        raise


@contextmanager
def run_file(path: Path) -> Iterator[Path]:
    """The same for what the driver derives from the tables of a run.

    Raises:
        DiskFull: it could not be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise disk_error("the driver", path, error) from error


def replace(temporary: Path, path: Path) -> None:
    """Rename, and see that the name is on the disk too."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def disk_error(
    who: str,
    path: Path,
    error: OSError,
    *,
    instead: str = "point logging.output_dir or ray.scratch_dir at another one",
) -> DiskFull:
    """The error of what could not be written, with the reason in the system's own words.

    Args:
        who: wrote it.
        path: where to.
        error: the reason.
        instead: what to do where there can be no room on that disk; the default is for a run that is recorded.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    return DiskFull(f"{who}: cannot write {path}: {reason}", hint=f"make room on that disk, or {instead}")


@contextmanager
def driver_writing(run_dir: Path, records: str) -> Iterator[None]:
    """Tell of an error of the disk which `records` are left, and where.

    Raises:
        DiskFull: the block ended in an error of the system.
    """
    try:
        yield
    except OSError as error:
        told = disk_error("the driver", Path(error.filename or run_dir), error)
        raise DiskFull(f"{told}; the records {records}", hint=told.hint) from error
