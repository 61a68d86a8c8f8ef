"""The process of a script, seen from its rank: starts it, asks it, ends it, and tells how it ended.

    process = ScriptProcess(environ, working_dir=None)       # it waits for its orders
    outcome = process.run(orders)                            # when it has ended, or as soon as its script has failed
    process.beat(), process.where()                          # meanwhile, on other threads; None: it does not answer
    process.stop()                                           # its records are sealed, then SIGTERM, then SIGKILL

The process has a session and a process group of its own, and the standard output and error of the actor, which is the
log of the rank. It dies with the actor. script_child.py is the other side.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_memprof.errors import EXIT_RANK_DIED
from ray_memprof.rank.channel import Channel, pair
from ray_memprof.rank.messages import Outcome, Whereabouts
from ray_memprof.rank.script_messages import ScriptOrders, outcome_of_message, whereabouts_of_message
from ray_memprof.recorder.status import Beat
from ray_memprof.store.processes import started

ANSWER_S = 0.8
"""How long the process may take to answer: less than the driver waits for its rank (supervision.watch.WHERE_S)."""
SEAL_S = 1.2
"""The same for writing its open records: a little more than recorder.SEAL_S, which the writing itself may take."""
TERM_S = 0.8
"""How long it may live after SIGTERM."""
_MAIN = Path(__file__).with_name("script_main.py")


class ScriptProcess:
    """A process that runs one script.

    Args:
        environ: its environment.
        working_dir: where it runs; None, or a folder that this host does not have: where this process runs.
        command: the script and its arguments, only for people who look at the list of processes.

    Raises:
        OSError: it could not be started.
    """

    def __init__(
        self, environ: Mapping[str, str], working_dir: Path | None, command: Sequence[str] = ()
    ) -> None:
        self._environ, self._command = dict(environ), tuple(command)
        self._working_dir = working_dir if working_dir is not None and working_dir.is_dir() else None
        self._questions, asked = pair()
        self._reports, told = pair()
        self._asking = threading.Lock()
        self._num_asked = self._num_answered = 0
        self._popen: subprocess.Popen[bytes] | None = None
        self.pid = 0
        """Also the number of its process group."""
        self.started = 0
        """As in RankFacts."""
        self._error: OSError | None = None
        self._has_begun, self._has_ended = threading.Event(), threading.Event()
        # The kernel ends the process with the thread that has started it, so this thread waits for its end.
        threading.Thread(target=self._live, args=(asked, told), name="script", daemon=True).start()
        self._has_begun.wait()
        if self._error is not None:
            raise self._error

    def _live(self, asked: Channel, told: Channel) -> None:
        ends = asked.fileno(), told.fileno()
        try:
            self._popen = subprocess.Popen(
                [sys.executable, str(_MAIN), *map(str, ends), str(os.getpid()), *self._command],
                env=self._environ,
                cwd=self._working_dir,
                stdin=subprocess.DEVNULL,
                pass_fds=ends,
                start_new_session=True,  # as torchrun does: signals to its group reach what it has started
            )
            self.pid = self._popen.pid
            self.started = started(self.pid)
        except OSError as error:
            self._error = error
            return
        finally:
            asked.close()
            told.close()
            self._has_begun.set()
        self._popen.wait()
        self._has_ended.set()
        # A child of the script may hold the other ends open.
        self._reports.shut()
        self._questions.shut()

    def run(self, orders: ScriptOrders) -> Outcome:
        """Let the script run; returns how it ended: at once if it has failed, else when its process has ended."""
        rank, report = orders.recording.rank, None
        with suppress(EOFError, OSError):  # it has died, or has closed the channel, as a daemon does
            self._reports.send(orders.message())
            report = self._reports.receive()
        outcome = None if report is None else outcome_of_message(report)
        if outcome is not None and outcome.status not in ("ok", "died"):
            return outcome
        self._has_ended.wait()
        assert self._popen is not None
        return outcome_by_exit(rank, self._popen.returncode, outcome)

    def beat(self) -> Beat | None:
        """Where the script is; None: the process does not answer."""
        answer = self._ask("beat", ANSWER_S)
        return None if answer is None else Beat(**answer)

    def where(self) -> Whereabouts | None:
        """Where the script is, with its stack; None: the process does not answer."""
        if self._has_ended.is_set():
            return Whereabouts(stack="not running\n")
        answer = self._ask("where", ANSWER_S)
        return None if answer is None else whereabouts_of_message(answer)

    def stop(self) -> None:
        """End the process and what is left of its group: first its open records are written."""
        if not self._has_ended.is_set():
            self._ask("seal", SEAL_S)
            self._signal(signal.SIGTERM)
            self._has_ended.wait(TERM_S)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _ask(self, what: str, wait_s: float) -> Any:
        """The answer to a question; None: it did not come in time."""
        until = time.monotonic() + wait_s
        # Another thread that waits for an answer is not answered either.
        if not self._asking.acquire(timeout=wait_s):
            return None
        try:
            # First the late answer to an earlier question, if there is one.
            while self._num_answered < self._num_asked:
                if self._answer(until) is None:
                    return None
            self._num_asked += 1
            self._questions.send({"ask": what})
            message = self._answer(until)
            return None if message is None else message["answer"]
        except (EOFError, OSError):
            return None
        finally:
            self._asking.release()

    def _answer(self, until: float) -> dict[str, Any] | None:
        message = self._questions.receive(max(0.0, until - time.monotonic()))
        self._num_answered += message is not None
        return message


def outcome_by_exit(rank: int, returncode: int, outcome: Outcome | None) -> Outcome:
    """How a script has ended whose process has ended.

    Args:
        rank: that ran it.
        returncode: of its process, as subprocess has it: below 0 for a signal.
        outcome: what it reported: that all is well, or that it is about to leave by os._exit; None: nothing.
    """
    known = outcome or Outcome(rank=rank, status="ok")
    if returncode == 0:
        if outcome is None:
            text = "the script's process ended without Python's own end: what it recorded last may be missing"
            return replace(known, status="ok", problems=(text,))
        return replace(known, status="ok", exit_code=0, reason="")
    detail = f"exit code {returncode}"
    if returncode < 0:
        detail = f"killed by {_signal_name(-returncode)}"
    if outcome is not None and outcome.status == "ok":
        detail += " after its script had ended"
    return replace(known, status="died", exit_code=EXIT_RANK_DIED, reason=detail)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the numbers for real time
        return f"signal {number}"
