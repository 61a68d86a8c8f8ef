"""Ends a recording with its process, however the program ends it: well, by an exception, by sys.exit or by os._exit.

    end = ProcessEnd(session)            # before the program registers anything with atexit
    end.note(error, exit_code=1)         # whoever runs the program and knows how it ended

A process that a signal kills says nothing; what its recorder wrote until then is kept all the same.
"""

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import NoReturn, Protocol

from ray_memprof.workload.main_program import code_of, exit_code_of


class Ending(Protocol):
    """A recording that ends with its process: a Session, or that of a script."""

    def end(self, error: BaseException | None = None, exit_code: int | None = None) -> None:
        """The process ends, by this error or with this exit code; neither: it has ended well."""

    def leave(self, exit_code: int) -> None:
        """Another thread than the main thread is about to end the process."""


class ProcessEnd:
    """Calls session.end() when the process ends.

    Args:
        session: the recording of this process.
    """

    def __init__(self, session: Ending) -> None:
        self._session = session
        self._error: BaseException | None = None
        self._exit_code: int | None = None
        self._listens = False
        self._leave, self._pid = os._exit, os.getpid()
        atexit.register(self._end_by_interrupt)
        # atexit runs in the reverse order: after what the program registers, and when its other threads have ended.
        atexit.register(self._end)
        os._exit = self._at_once

    def note(self, error: BaseException | None = None, exit_code: int | None = None) -> None:
        """How the program has ended; for session.end()."""
        self._error, self._exit_code = error, exit_code

    def listen(self) -> None:
        """Learn from Python itself how a program ends that nobody here runs."""
        self._listens = True
        leave = sys.exit

        def exit(status: object = None, /) -> NoReturn:
            if threading.current_thread() is threading.main_thread():
                self.note(exit_code=code_of(status))
            leave(status)  # type: ignore[arg-type] # as Python takes it: any object

        # pickle finds a function by these names.
        exit.__module__, exit.__qualname__ = "sys", "exit"
        sys.exit = exit

    def _end(self) -> None:
        if self._listens and not self._is_child() and not (sys.flags.interactive or hasattr(sys, "ps1")):
            # Python keeps the exception that ended the main program; one at a prompt ends nothing.
            error = getattr(sys, "last_value", None)
            if error is not None:
                self.note(error, exit_code_of(error))
        self._session.end(self._error, self._exit_code)

    def _end_by_interrupt(self) -> None:
        """End by SIGINT after a KeyboardInterrupt, as Python does; code that ran since has made Python forget it."""
        if isinstance(self._error, KeyboardInterrupt) and not self._is_child():
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            with suppress(Exception):
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(self._pid, signal.SIGINT)

    def _is_child(self) -> bool:
        return os.getpid() != self._pid

    def _at_once(self, status: int) -> NoReturn:
        """os._exit ends the process without another word, atexit included."""
        try:
            with suppress(Exception):
                if threading.current_thread() is threading.main_thread():
                    self._session.end(exit_code=status)
                else:
                    self._session.leave(status)
        finally:
            self._leave(status)
