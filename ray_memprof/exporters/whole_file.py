"""A file that is there whole or not at all: what every export writes.

with whole_file(path) as temporary:
    temporary.write_text(...)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_memprof.store import TEMPORARY_SUFFIX, disk_error, replace


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write under, in the same folder; it becomes `path` when the block ends well.

    Raises:
        DiskFull: it could not be written.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
    except OSError as error:
        raise disk_error("export", path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
