"""The process of a script: runs the script as its own main program, records it, and answers the rank that started it.

    main(questions, reports, parent)         # called by script_main.py; the process ends as the script does

The script has the main thread, the signals and sys.modules to itself: until it imports torch there is nothing of ours
but the standard library and the few modules imported here. A thread of ours answers beat, where and seal. At the end
the rank is sent the Outcome; a process that is killed sends none. Nothing here raises into the script.
"""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray_memprof.rank.channel import Channel
from ray_memprof.rank.claim import RECORDED
from ray_memprof.rank.log import CLOSED, NOT_FOR_CONSOLE, dump_flight_record, log_writer
from ray_memprof.rank.process_end import ProcessEnd
from ray_memprof.rank.pulse import Pulse
from ray_memprof.rank.script_messages import ScriptOrders, message_of
from ray_memprof.rank.script_recording import ScriptRecording
from ray_memprof.recorder.after_import import after_import
from ray_memprof.recorder.forks import silent_in_children
from ray_memprof.workload import main_program
from ray_memprof.workload.script import run_script

_PR_SET_PDEATHSIG = 1


def main(questions: int, reports: int, parent: int) -> None:
    """Run the script that the rank orders.

    Args:
        questions: file descriptor of the channel on which the rank asks.
        reports: file descriptor of the channel with the orders, and for the Outcome.
        parent: pid of the rank.
    """
    _die_with(parent)
    _take_signals_back()
    faulthandler.enable(all_threads=True)
    # As in a rank: where the disk of the log is full, no print() of the script fails.
    sys.stdout, sys.stderr = log_writer(sys.stdout), log_writer(sys.stderr)
    asked, told = Channel.of(questions), Channel.of(reports)
    message = told.receive()
    assert message is not None
    orders = ScriptOrders.of(message)
    os.environ.update(orders.environment)
    # Whatever the script starts inherits this, and is not recorded, even where RAY_MEMPROF is set.
    os.environ[RECORDED] = str(orders.recording.rank)
    recording = ScriptRecording(orders, lambda outcome: told.send(message_of(outcome)))
    answers = _Answers(orders, recording, asked, told)
    threading.Thread(target=answers.give, name="ray-memprof", daemon=True).start()
    sys.argv[1:] = []
    _run(orders, recording)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread of the rank ends that has started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before
        os._exit(1)


def _take_signals_back() -> None:
    """Undo what this process has inherited of a worker of Ray, which blocks SIGINT."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def _run(orders: ScriptOrders, recording: ScriptRecording) -> None:
    end = ProcessEnd(recording)
    with after_import("torch", recording.begin):
        try:
            run_script(orders.path, orders.module, orders.args)
        except SystemExit as error:
            end.note(exit_code=main_program.exit_code_of(error))
            recording.leave_by(error)
            raise
        except BaseException as error:
            end.note(error, exit_code=main_program.exit_code_of(error))
            sys.excepthook = _reporting(error, recording)
            raise
        finally:
            recording.missed("the script did not import torch")


def _reporting(error: BaseException, recording: ScriptRecording) -> Callable[..., None]:
    """What Python is to call with the error: writes its traceback as usual, for the log only, and reports it at once.

    Not at the end of the process: a script may have threads that wait for the other ranks, which wait for this one.
    """
    from pathlib import Path

    hook = sys.excepthook
    ours = Path(__file__).resolve().parents[1]
    trace = main_program.without_our_frames(error.__traceback__, ours)
    if trace is None:  # raised by us: the script could not be started
        trace = error.__traceback__

    def told(kind: type[BaseException], error: BaseException, _: Any) -> None:
        with suppress(*CLOSED):
            sys.stdout.flush()
        with suppress(*CLOSED):
            sys.stderr.write(f"{NOT_FOR_CONSOLE}\n")
        try:
            hook(kind, error.with_traceback(trace), trace)
        finally:
            recording.leave_by(error)

    return told


class _Answers:
    """Answers the questions of the rank, one after the other, on a thread of its own.

    Args:
        orders: of the script.
        recording: of the script.
        asked: where the questions come from.
        told: the other channel.
    """

    def __init__(
        self, orders: ScriptOrders, recording: ScriptRecording, asked: Channel, told: Channel
    ) -> None:
        self._recording, self._asked, self._told = recording, asked, told
        self._options = orders.recording
        main = threading.main_thread().ident
        assert main is not None
        self._pulse = Pulse(self._options.rank, orders.num_ranks, main)
        self._known = {"beat": self._beat, "where": self._where, "seal": self._seal}
        silent_in_children(self)

    def forked(self) -> None:
        """In a forked child: it has nothing to tell the rank."""
        self._asked.close()
        self._told.close()

    def give(self) -> None:
        """Answer until the rank is gone."""
        while True:
            try:
                question = self._asked.receive()
                assert question is not None
                answer = self._answer(question["ask"])
                self._asked.send({"answer": answer})
            except (EOFError, OSError):
                return

    def _answer(self, what: str) -> Any:
        try:
            return self._known[what]()
        except Exception as error:
            self._recording.problem(f"the rank asked for {what}: {type(error).__name__}: {error}")
            return None

    def _beat(self) -> Any:
        return message_of(self._pulse.beat(self._recording.recorder))

    def _where(self) -> Any:
        if self._options.device != "cpu":
            # On a thread of its own: the dump may take longer than the rank waits, and the disk may be full.
            dump = (self._options.run_dir, self._options.rank)
            threading.Thread(target=dump_flight_record, args=dump, daemon=True).start()
        return message_of(self._pulse.where())

    def _seal(self) -> Any:
        if self._recording.recorder is not None:
            self._recording.recorder.seal()
        return True
