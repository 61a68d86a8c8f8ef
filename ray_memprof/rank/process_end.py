"""Ends a recording with its process, however the program ends it: well, by an exception, by sys.exit or by os._exit.

    watch = ProcessEnd(session)          # before the program registers anything with atexit
    watch.note(error, exit_code=1)       # whoever runs the program and knows how it ended

A process that a signal kills says nothing; what its recorder wrote until then is kept all the same.
"""

import atexit
import os
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

from ray_memprof.rank.session import Session


class ProcessEnd:
    """Calls session.end() when the process ends.

    Args:
        session: the recording of this process.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._error: BaseException | None = None
        self._exit_code: int | None = None
        self._leave = os._exit
        # atexit runs in the reverse order: after what the program registers, and when its other threads have ended.
        atexit.register(self._end)
        os._exit = self._at_once

    def note(self, error: BaseException | None = None, exit_code: int | None = None) -> None:
        """How the program has ended; for session.end()."""
        self._error, self._exit_code = error, exit_code

    def listen(self) -> None:
        """Learn from Python itself how a program ends that nobody here runs."""
        hook, leave = sys.excepthook, sys.exit

        def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            self.note(error, exit_code=1)
            hook(kind, error, trace)

        def leaving(status: object = None, /) -> None:
            if threading.current_thread() is threading.main_thread():
                self.note(exit_code=exit_code_of(status))
            leave(status)  # type: ignore[arg-type] # as Python takes it: any object

        sys.excepthook, sys.exit = told, leaving  # type: ignore[assignment]

    def _end(self) -> None:
        self._session.end(self._error, self._exit_code)

    def _at_once(self, status: int) -> NoReturn:
        """os._exit ends the process without another word, atexit included."""
        with suppress(Exception):
            if threading.current_thread() is threading.main_thread():
                self._session.end(exit_code=status)
            else:
                self._session.seal()
        self._leave(status)


def exit_code_of(status: object) -> int:
    """The exit code that Python ends with for sys.exit(status): a text or another object means 1."""
    return 0 if status is None else status & 0xFF if isinstance(status, int) else 1
