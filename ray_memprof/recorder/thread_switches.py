"""How often the kernel started the threads that run a model: whether they wanted Python's lock while we had it.

    switches = ThreadSwitches(threading.get_native_id())
    before = switches.count()
    work(piece)                                    # holds Python's lock
    time.sleep(50e-6)                              # whoever wanted the lock has it now
    was_wanted = before is None or switches.count() != before

A thread that wants Python's lock while another one has it sleeps, and is started again when it gets the lock. A thread
that waits for a device is not started, nor is one that works in C++, as a backward pass does. So an unchanged count
says that nobody needed the lock. A busy host starts threads for other reasons, too; then the count says "wanted" where
nobody did.

Linux only: the third number of /proc/self/task/<thread>/schedstat. Elsewhere count() is None.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress

TASKS = "/proc/self/task"
NAME = "pt_autograd"
"""How torch's threads of backward passes are called: hooks of a model in Python run there."""
LOOK_S = 1.0
"""Seconds between two searches for new threads: autograd starts its own with the first backward pass."""


class ThreadSwitches:
    """Counts for one thread and for autograd's threads; used by one thread, and closed by it.

    Args:
        thread: native id of the thread that runs the model.
        tasks: folder of the kernel's files about this process's threads.
    """

    def __init__(self, thread: int, tasks: str = TASKS) -> None:
        self._tasks = tasks
        self._files: dict[str, int] = {}
        self._seen: set[str] = set()
        self._looked_s = 0.0
        self._model = str(thread)

    def count(self) -> int | None:
        """How often these threads were started so far; None: the kernel does not tell, or the model's has ended."""
        now = time.monotonic()
        if now - self._looked_s >= LOOK_S:
            self._looked_s = now
            self._look()
        total = 0
        for thread, file in list(self._files.items()):
            started = _started(file)
            if started is None:
                self._drop(thread)
            else:
                total += started
        return total if self._model in self._files else None

    def close(self) -> None:
        """Close the kernel's files."""
        for thread in list(self._files):
            self._drop(thread)

    def _look(self) -> None:
        new = set(_listed(self._tasks)) - self._seen
        self._seen |= new
        for thread in new:
            if thread == self._model or _name(f"{self._tasks}/{thread}/comm").startswith(NAME):
                with suppress(OSError):
                    self._files[thread] = os.open(f"{self._tasks}/{thread}/schedstat", os.O_RDONLY)

    def _drop(self, thread: str) -> None:
        with suppress(OSError):
            os.close(self._files.pop(thread))


def _listed(folder: str) -> Iterator[str]:
    with suppress(OSError):
        yield from os.listdir(folder)


def _name(path: str) -> str:
    # The thread may have ended since it was listed.
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""


def _started(file: int) -> int | None:
    """The third number; None where the thread has ended, or the kernel does not count (all three are 0 then)."""
    try:
        numbers = os.pread(file, 128, 0).split()
        return int(numbers[2]) or None
    except (OSError, ValueError, IndexError):
        return None
