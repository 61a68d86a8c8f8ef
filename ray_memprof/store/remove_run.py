"""Removes runs from the disk; never one that goes on, and no folder that is not a run's.

    remove_run(run_dir)                      # the bytes that are free now
    surplus(Path("profiler_logs"), keep=20)  # the runs that are older than the newest 20 and have ended

The link `latest` of a name follows: to its newest run that is left, or it goes with the last one.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ray_memprof.errors import ConfigError
from ray_memprof.store.find_run import list_runs
from ray_memprof.store.run_files import LATEST_LINK, RUN_FILE, TABLES_DIR
from ray_memprof.store.run_folder import point
from ray_memprof.store.run_json import run_facts
from ray_memprof.store.run_summary import loose_bytes, records_bytes
from ray_memprof.store.standing import RUNNING, standing
from ray_memprof.wording import size_text


def check_removable(run_dir: Path) -> None:
    """Raise ConfigError if the folder is not that of a run that has ended."""
    try:
        facts = run_facts(run_dir) or {}
    except ConfigError as error:  # it may still go on, and nothing says so
        raise ConfigError(
            f"{run_dir} is not removed: {error}",
            hint="if nothing in it is needed, remove the folder yourself",
        ) from error
    # Any folder may have a folder "tables" in it, and a path leads to any folder.
    if "run_id" not in facts and not (run_dir / TABLES_DIR / "runs").is_dir():
        raise ConfigError(
            f"{run_dir} is not removed: it has no {RUN_FILE} that says that it is a run",
            hint="if nothing in it is needed, remove the folder yourself",
        )
    now = standing(run_dir)
    if now is not None and now.status == RUNNING:
        raise ConfigError(
            f"{run_dir.parent.name}/{run_dir.name} is not removed: {now.text}",
            hint="end the run first; if nothing writes there any more, remove the folder yourself",
        )


def removed_lines(run_dirs: Sequence[Path], *, dry_run: bool) -> Iterator[str]:
    """Remove runs, or only say which; yields a line for each, and one for all. Raises ConfigError as remove_run()."""
    did, total = "would remove" if dry_run else "removed", 0
    for run_dir in run_dirs:
        size = size_of(run_dir) if dry_run else remove_run(run_dir)
        total += size
        yield f"{did} {run_dir.parent.name}/{run_dir.name} ({size_text(size)})"
    num = len(run_dirs)
    yield f"{did} {num} run{'s' * (num != 1)}, {size_text(total)}" if num else "nothing to remove"


def size_of(run_dir: Path) -> int:
    """The bytes of all files of a run."""
    return records_bytes(run_dir) + loose_bytes(run_dir)


def remove_run(run_dir: Path) -> int:
    """Remove a run; returns the bytes of its files.

    Raises:
        ConfigError: it goes on, it is no run, or its files cannot be removed.
    """
    check_removable(run_dir)
    size = size_of(run_dir)
    try:
        shutil.rmtree(run_dir)
        _follow(run_dir.parent)
    except OSError as error:
        raise ConfigError(f"cannot remove {error.filename or run_dir}: {error.strerror or error}") from error
    return size


def surplus(output_dir: Path, *, keep: int) -> list[Path]:
    """The runs to remove so that the newest `keep` stay, the oldest first; one that goes on stays, too."""
    runs = list_runs(output_dir, begun=True)
    return [run for run in runs[: max(0, len(runs) - keep)] if _is_over(run)]


def _is_over(run_dir: Path) -> bool:
    try:
        check_removable(run_dir)
    except ConfigError:
        return False
    return True


def _follow(folder: Path) -> None:
    """Point the link `latest` in the folder of a name to its newest run; without a run, both go."""
    link = folder / LATEST_LINK
    if not link.is_symlink() or link.exists():
        return
    marks = (*folder.glob(f"*/{TABLES_DIR}"), *folder.glob(f"*/{RUN_FILE}"))
    if left := {mark.parent.name for mark in marks if mark.parent != link}:
        point(link, max(left))
        return
    link.unlink()
    with suppress(OSError):  # something else lies there
        folder.rmdir()
