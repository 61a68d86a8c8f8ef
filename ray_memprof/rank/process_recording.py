"""What every recording of a process has: it begins once, on the thread that it records, and ends once.

class Session(ProcessRecording): ...           # a process that something else has started
class ScriptRecording(ProcessRecording): ...   # a process that a rank has started
"""

import threading
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from ray_memprof.errors import ConfigError, RunError
from ray_memprof.recorder.forks import silent_in_children
from ray_memprof.wording import error_line, first_line

if TYPE_CHECKING:
    from ray_memprof.recorder.recorder import Recorder


class ProcessRecording(ABC):
    """A recording of one thread of this process.

    Args:
        on_any_thread: False: of the main thread. A whole program runs there, and what it starts elsewhere is not what
            it is about.
    """

    def __init__(self, *, on_any_thread: bool = False) -> None:
        self._on_any_thread = on_any_thread
        self.recorder: Recorder | None = None
        """None: nothing is recorded, or not yet."""
        self._stack = ExitStack()
        self._has_begun = self._is_over = False
        silent_in_children(self)

    def forked(self) -> None:
        """In a forked child: nothing is recorded, and nothing is left to end."""
        self._is_over = True

    def begin(self) -> None:
        """Begin to record this thread; a second call does nothing. Never raises."""
        if self._has_begun or self._is_over:
            return
        self._has_begun = True
        try:
            if not (self._on_any_thread or threading.current_thread() is threading.main_thread()):
                raise ConfigError(
                    "recording began on another thread than the main thread",
                    hint="import torch on the main thread first",
                )
            self._begin()
        except Exception as error:
            self.recorder = None
            with suppress(Exception):
                self._stack.close()
            self._tell(f"nothing is recorded: {line_of(error)}")
            if hint := getattr(error, "hint", ""):
                self._tell(f"hint: {hint}")
            self._not_begun(error)

    def missed(self, why: str) -> None:
        """Say that nothing is recorded, if begin() was not called."""
        if not (self._has_begun or self._is_over):
            self._tell(f"nothing is recorded: {why}")

    def _close(self, error: BaseException | None) -> BaseException | None:
        """End what begin() has entered; returns what was raised because not all could be written."""
        try:
            self._stack.__exit__(*((type(error), error, error.__traceback__) if error else (None,) * 3))
        except Exception as failed:
            return None if failed is error else failed
        return None

    @abstractmethod
    def _begin(self) -> None:
        """Enter the recording into self._stack."""

    def _not_begun(self, error: Exception) -> None:  # noqa: B027 - most have nothing to add
        """Recording could not begin, which is told already; the program runs on."""

    @abstractmethod
    def _tell(self, text: str) -> None:
        """Say what is wrong with the recording."""


def line_of(error: BaseException) -> str:
    """An error in one line; our own without the name of its class."""
    return first_line(error) if isinstance(error, RunError) else error_line(error)
