"""A process of its own for the writing: following the events takes Python's lock, which a busy model needs itself.

    writer = WriterProcess(plan, problems)
    writer.write(parcel, rest)            # on the scribe's thread; returns when its rows are with the kernel
    writer.close()

The events of a parcel cross a socket as plain bytes: 0.5 us an event on this side, where following and writing them
takes 2 to 4. The process is no child of the program, which may wait for children of its own, and takes part in none of
its signals; it ends when the program ends or closes the socket. What it was given by then is written.

Where no such process can be started, the writer works in this one, and a problem says so.
"""

import fcntl
import marshal
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from ray_memprof.errors import DiskFull
from ray_memprof.recorder.forks import silent_in_children
from ray_memprof.recorder.handler_errors import pass_on, suppressed
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.rows import Parcel
from ray_memprof.recorder.writer import Followed, Writer, WriterPlan, writer_of
from ray_memprof.store.rank_store import claim
from ray_memprof.store.run_files import manifest_path
from ray_memprof.store.writer_lock import hold
from ray_memprof.wording import error_line

EVENTS_AT_ONCE = 1024
"""Events that become bytes between two rests: a third of a millisecond."""
START_S = 60.0
"""Seconds that the process may take to import what it needs, where the disk is busy; mostly it takes half a second."""
_CODE = """
import os, signal, sys
# A terminal or a scheduler sends these to all processes of a job; the program says what follows from them.
for name in "HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "XCPU":
    signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
if os.fork():
    os._exit(0)
os.setsid()
# Nothing in the folder in which the program was started takes the place of a module, and nothing of ours does.
if sys.path[:1] == [""]:
    del sys.path[0]
sys.path.insert(0, sys.argv[2])
import ray_memprof
sys.path.append(sys.path.pop(0))
sys.path += sys.argv[3:]
from ray_memprof.recorder.writer_process import serve
serve(int(sys.argv[1]))
"""
"""What the process runs: first it leaves its parent."""
_END = b"end"
"""The message that follows the last parcel."""
_NOT_SENT = "what was recorded could not be sent to the process that writes it"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the process says once it is ready, and after each parcel."""

    followed: Followed = Followed()
    problems: tuple[str, ...] = ()
    """Those of this parcel."""
    full: tuple[str, str] | None = None
    """Text and hint of the DiskFull that ended the writing."""
    is_read: bool = True
    """False: the parcel could not be read, and its events are lost."""
    pid: int = 0


class WriterProcess:
    """The side of the program; see writer.Writes. Used by one thread at a time.

    Args:
        plan: of the writer.
        problems: where it notes what it could not write.

    Raises:
        DiskFull: the manifest could not be made, or another writer has made it.
    """

    def __init__(self, plan: WriterPlan, problems: Problems) -> None:
        options = plan.options
        claim(options.run_dir, options.rank)
        # The program may change its working folder.
        options = replace(options, run_dir=options.run_dir.absolute())
        self._plan = replace(plan, options=options, is_claimed=True)
        self.problems = problems
        self.error: DiskFull | None = None
        self._followed, self._num_lost = Followed(), 0
        self._near: Writer | None = None
        self._has_begun, self._pid = False, 0
        self._ends: tuple[Connection, ...] = ()
        """Of the socket that are open here, ours first: while the process starts, its end, too."""
        silent_in_children(self)  # before there is a socket: another thread may fork while the process starts
        self._start()

    def forked(self) -> None:
        """In a forked child: its copy of the socket would keep the process waiting when the program has ended."""
        self._has_begun = True
        self._leave()

    def _leave(self) -> None:
        ends, self._ends = self._ends, ()
        for end in ends:
            with suppressed():  # the program may have closed all files
                end.close()

    def _start(self) -> None:
        """Start the process, which gets ready by itself; where none can be started, the writer is in this one."""
        try:
            self._ends = ours, theirs = _connected()
            with theirs:
                _launch(theirs.fileno())
        except Exception as error:
            self._leave()
            pass_on(error)
            self._stay(error_line(error))
            return
        with suppressed():  # it has ended: no answer will come
            ours.send_bytes(pickle.dumps(self._plan))

    def _stay(self, why: str) -> None:
        """Write in this process."""
        self.problems.add(
            f"no process of its own writes what is recorded ({why}): the program is slowed down where it makes "
            "thousands of allocations a second"
        )
        self._has_begun = True
        try:
            self._near = writer_of(self._plan, self.problems)
        except DiskFull as error:
            self.error = error

    def write(self, parcel: Parcel, rest: Callable[[], None]) -> None:
        """Write the rows of a parcel; `rest` is called again and again, a few tenths of a millisecond apart.

        The events of the parcel are gone afterwards.
        """
        self._begin()
        if self._near is not None:
            self._near.write(parcel, rest)
        elif self.error is None:
            num_events = parcel.num_events
            if not self._has_sent(parcel, rest):
                self._num_lost += num_events

    def _has_sent(self, parcel: Parcel, rest: Callable[[], None]) -> bool:
        try:
            message = _message(parcel, rest)
        except Exception as error:
            self.problems.note(_NOT_SENT, error)
            return False
        return self._exchange(message)

    def close(self) -> None:
        """Seal the store, and let the process end."""
        try:
            self._begin()
            if self._near is not None:
                self._near.close()
            elif self._exchange(_END):
                # It is a child only of a program that adopts orphans, such as the first process of a container.
                with suppressed():
                    os.waitpid(self._pid, 0)
        finally:
            self._leave()

    def followed(self) -> Followed:
        """How the events so far add up."""
        if self._near is not None:
            return self._near.followed()
        return replace(self._followed, num_lost_events=self._followed.num_lost_events + self._num_lost)

    def _begin(self) -> None:
        """Wait until the process is ready, before the first parcel; until then it imports what it needs."""
        if self._has_begun:
            return
        self._has_begun = True
        try:
            if not self._ends[0].poll(START_S):
                raise TimeoutError(f"it was not ready within {START_S:.0f} s")
            self._pid = self._hear().pid
        except Exception as error:
            pass_on(error)
            self._leave()
            self._stay("it ended while it got ready" if isinstance(error, EOFError) else error_line(error))
        if self.error is not None:  # it could not begin, and has ended
            self._leave()

    def _exchange(self, message: bytes) -> bool:
        """Send a message and hear the answer; whether it was read there."""
        if not self._ends:
            return False
        try:
            self._ends[0].send_bytes(message)
            return self._hear().is_read
        except Exception as error:
            pass_on(error)
            self.problems.add("the process that writes what is recorded has ended: nothing more is written")
        self._leave()
        return False

    def _hear(self) -> _Answer:
        answer: _Answer = pickle.loads(self._ends[0].recv_bytes())
        self._followed = answer.followed
        for text in answer.problems:
            self.problems.add(text)
        if answer.full is not None:
            self.error = self.error or DiskFull(answer.full[0], hint=answer.full[1])
        return answer


def _connected() -> tuple[Connection, Connection]:
    """Two ends of a socket.

    None of them is in the place of a standard stream that the program has closed: libraries write there, and the
    process has streams of its own. Calls wait, also where the program has set a timeout for all new sockets.
    """
    ends = []
    for one in socket.socketpair():
        with one:
            ends.append(Connection(fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 3)))
        os.set_blocking(ends[-1].fileno(), True)
    ours, theirs = ends
    return ours, theirs


def _launch(number: int) -> None:
    """Start the process with the end of the socket that has this file descriptor.

    Raises:
        OSError: it could not be started.
    """
    # Frozen: it would start the program itself once more.
    if not sys.executable or getattr(sys, "frozen", False):
        raise FileNotFoundError(f"sys.executable is no Python: {sys.executable!r}")
    # As the program was started: "python -I" means that the environment has no say.
    flags = ["-E"] * sys.flags.ignore_environment + ["-s"] * sys.flags.no_user_site
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(
            [sys.executable, *flags, "-c", _CODE, str(number), *_places()],
            pass_fds=[number],
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            timeout=START_S,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"it was not started within {START_S:.0f} s") from error
    if done.returncode:
        raise ChildProcessError(f"{sys.executable} has ended with {done.returncode}")


def _places() -> list[str]:
    """Folders in which the process finds this package, and then the library that writes."""
    import pyarrow

    return [str(Path(__file__).absolute().parents[2]), str(Path(pyarrow.__file__).absolute().parents[1])]


def _message(parcel: Parcel, rest: Callable[[], None]) -> bytes:
    """A parcel as one message: each message costs a thread that needs Python's lock two waits for it.

    Segments and events are plain dicts, which marshal takes twice as fast as pickle.
    """
    batch, events = parcel.batch, []
    segments = marshal.dumps((parcel.base, [] if batch is None else batch.segments))
    if batch is not None:
        events, batch = batch.events, replace(batch, events=[], segments=[])
    parts = []
    while events:
        rest()
        part = events[-EVENTS_AT_ONCE:]
        del events[-EVENTS_AT_ONCE:]
        parts.append(marshal.dumps(part))
    rest()
    head = replace(parcel, base=[], batch=batch, done=None)
    return pickle.dumps((head, segments, parts), pickle.HIGHEST_PROTOCOL)


def _parcel(message: bytes) -> Parcel:
    """The parcel of a message."""
    parcel: Parcel
    parcel, held, parts = pickle.loads(message)
    parcel.base, segments = marshal.loads(held)
    if parcel.batch is not None:
        events = [event for part in reversed(parts) for event in marshal.loads(part)]
        parcel.batch = replace(parcel.batch, events=events, segments=segments)
    return parcel


def serve(number: int) -> None:
    """Write what comes through the socket with this file descriptor, until it is closed."""
    connection = Connection(number)
    problems = Problems()
    with suppress(EOFError, OSError):
        plan: WriterPlan = pickle.loads(connection.recv_bytes())
        manifest = manifest_path(plan.options.run_dir, plan.options.rank)
        try:
            held, writer = hold(manifest), writer_of(plan, problems)
        except DiskFull as error:
            connection.send_bytes(pickle.dumps(_Answer(full=(str(error), error.hint))))
            return
        with held:
            connection.send_bytes(pickle.dumps(_Answer(pid=os.getpid())))
            _write_all(connection, writer)


def _write_all(connection: Connection, writer: Writer) -> None:
    """Write parcels as they come, and answer each."""
    is_over = False
    while not is_over:
        message = connection.recv_bytes()
        is_over, is_read = message == _END, True
        problems = writer.problems = Problems()  # each is told once
        try:
            if is_over:
                writer.close()
            else:
                writer.write(_parcel(message), lambda: None)
        except Exception as error:  # it has what only the program knows; what follows is written
            problems.note(_NOT_SENT, error)
            is_read = False
        full = None if writer.error is None else (str(writer.error), writer.error.hint)
        connection.send_bytes(pickle.dumps(_Answer(writer.followed(), problems.texts, full, is_read)))
