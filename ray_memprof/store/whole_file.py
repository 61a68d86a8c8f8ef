"""Writes files that are there whole or not at all, and names the error where the disk has no room for them.

with whole_file(path) as temporary:
    temporary.write_text(...)

A link stays a link: the file that it points to is written. A device or a FIFO cannot be replaced: all content is
written to it at the end.
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
    """Refuse a file that cannot be written, before any work is done for it; None is the standard output.

    Raises:
        ConfigError: an empty name, a folder, or a place where no file can be made.
        DiskFull: no room for one.
    """
    if path is None:
        return
    if path == Path():  # also the path of an empty name
        raise ConfigError("the name of the file to write is empty, or a folder", hint="name a file")
    try:
        if path.is_dir():
            raise ConfigError(f"cannot write {path}: it is a folder", hint=f"name a file: {path / 'file'}")
        if not _is_special(path):
            folder = next(one for one in _end_of_links(path).parents if one.exists())
            with tempfile.TemporaryFile(dir=folder):  # only trying it tells
                pass
    except OSError as error:
        raise _write_error(path, error) from error


def is_full(error: OSError) -> bool:
    """Whether the disk has no room; errors of DuckDB have only the system's words and no number."""
    return error.errno in _FULL or any(os.strerror(number) in str(error) for number in _FULL)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; it becomes `path` when the block ends without an error.

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
        raise _write_error(path, error) from error


def _is_special(path: Path) -> bool:
    """Whether `path` exists and is no regular file. The system follows links: only it knows /dev/stdout."""
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


def _write_error(path: Path, error: OSError) -> RunError:
    if is_full(error):
        return disk_error("export", path, error, instead="write to another one")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ConfigError(f"cannot write {path}: {reason}", hint="name a place that you may write to")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it becomes `path` when the block ends without an error, and else it is removed.

    `path` is there whole or not at all, even if the power fails. Only one writer of a path at a time.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()  # on a full disk, other files need its bytes
        raise


def write_whole_text(path: Path, text: str) -> None:
    """Leave a text file, all of it or none."""
    with replacing(path) as temporary:
        # A traceback may quote names that are no valid text, and a locale may know only ASCII.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def run_file(path: Path) -> Iterator[Path]:
    """Like replacing(), for files that the driver makes from the tables of a run.

    Raises:
        DiskFull: it could not be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise disk_error("the driver", path, error) from error


def replace(temporary: Path, path: Path) -> None:
    """Rename, and make sure that the new name is on the disk too."""
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
    """Return the error for a file that could not be written, with the reason in the system's own words.

    Args:
        who: tried to write it.
        path: the file.
        error: the reason.
        instead: what to do if no room can be made on that disk; the default is for a run that is recorded.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    return DiskFull(f"{who}: cannot write {path}: {reason}", hint=f"make room on that disk, or {instead}")


@contextmanager
def driver_writing(run_dir: Path, records: str) -> Iterator[None]:
    """Add to an error of the disk which `records` are left, and where they are.

    Raises:
        DiskFull: the block ended in an error of the system.
    """
    try:
        yield
    except OSError as error:
        found = disk_error("the driver", Path(error.filename or run_dir), error)
        raise DiskFull(f"{found}; the records {records}", hint=found.hint) from error
