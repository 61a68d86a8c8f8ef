"""One recording at a time in a process: two at once would take each other's events.

    claimed(run_dir)             # raises ConfigError if this process is recorded already
    released()

So a program's own ray_memprof.recording() is refused where the program is recorded as a whole.
"""

from pathlib import Path

from ray_memprof.errors import ConfigError

RECORDED = "RAY_MEMPROF_RANK"
"""Set in a process that records, and so in its children, which are not recorded: the number of its rank."""
_run_dir: Path | None = None
"""The run folder of the recording that goes on."""


def check_free() -> None:
    """Raise ConfigError if this process is recorded already."""
    if _run_dir is not None:
        raise ConfigError("this process is recorded already", hint=f"its run folder is {_run_dir}")


def claimed(run_dir: Path) -> None:
    """Keep this process for one recording; raises ConfigError if it is recorded already."""
    global _run_dir
    check_free()
    _run_dir = run_dir


def released() -> None:
    """The recording has ended, or this is a forked child of its process: another one may begin."""
    global _run_dir
    _run_dir = None
