"""Whether a process, and not a later one of the same number, still runs; and whether children work."""

import os
import subprocess
import sys
import time

import pytest

from ray_memprof.driver.node_tasks import _end
from ray_memprof.rank.work import LOOK_S, WORKS, Work, children_cpu_s
from ray_memprof.store.processes import is_alive, started

RENAMED = """
import ctypes, sys, time
ctypes.CDLL(None).prctl(15, b"ray::) S 1 (x", 0, 0, 0)
print("renamed", flush=True)
time.sleep(60)
"""


def test_no_process() -> None:
    with pytest.raises(ProcessLookupError, match="there is no process 4194305"):
        started(4194305)
    assert not is_alive(4194305, 0)


def test_a_process_by_its_number_and_its_start() -> None:
    """GIVEN a process with brackets in its name THEN it is found; one of that number with another start is not."""
    with subprocess.Popen([sys.executable, "-c", RENAMED], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"renamed\n"
        when = started(process.pid)
        assert when > started(os.getpid())
        assert is_alive(process.pid, when)
        assert not is_alive(process.pid, when - 1)
        # A process with another start is left alone, this one is ended.
        assert _end({process.pid: when - 1}, 0.0) == []
        assert process.poll() is None
        # No process waits for it: it is a zombie, which holds nothing.
        assert _end({process.pid: when}, 0.0) == []
        assert not is_alive(process.pid, when)
        process.kill()


class Host:
    """A clock and CPU time of children, which the test moves."""

    now, spent_s, num_looks = 700.0, 50.0, 0

    def clock(self) -> float:
        return self.now

    def cpu_s(self) -> float:
        self.num_looks += 1
        return self.spent_s

    def look(self, children: Work, moves: int, passed_s: float, spent_s: float = 0.0) -> int:
        self.now += passed_s
        self.spent_s += spent_s
        return children.look(moves)


def test_children_are_left_alone_while_the_rank_gets_on() -> None:
    host = Host()
    children = Work(host.clock, host.cpu_s)
    assert [host.look(children, moves, LOOK_S, 9.0) for moves in range(4)] == [0, 0, 0, 0]
    assert host.num_looks == 0


def test_children_that_work_while_the_rank_stands_still_are_seen() -> None:
    host = Host()
    children = Work(host.clock, host.cpu_s)
    worked = 10 * WORKS
    seen = [
        host.look(children, 3, passed_s, worked * passed_s) for passed_s in (1.0, LOOK_S, LOOK_S, 0.5, LOOK_S)
    ]
    # The first look only reads how much CPU time the children have spent by then.
    assert seen == [0, 0, 1, 1, 2]


def test_children_that_wait_are_no_sign_of_life() -> None:
    host = Host()
    children = Work(host.clock, host.cpu_s)
    assert [host.look(children, 3, 10.0, 9.0 * WORKS) for _ in range(9)] == [0] * 9
    # The CPU time of a child that ended, and that was not waited for, is gone with it.
    assert [host.look(children, 3, 10.0, -20.0) for _ in range(2)] == [0, 0]


def test_the_time_of_grandchildren_counts_and_of_those_that_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(1, flush=True); input()"
    before = children_cpu_s(os.getpid())
    command = [sys.executable, "-c", outer]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        until = time.monotonic() + 60
        while children_cpu_s(os.getpid()) - before < 0.2 and time.monotonic() < until:
            time.sleep(0.01)
        running = children_cpu_s(os.getpid()) - before
        process.stdout.readline()
        waited_for = children_cpu_s(os.getpid()) - before
        process.communicate("\n")
    # The kernel counts whole ticks, of user and of system time apart.
    ticks = 2 / os.sysconf("SC_CLK_TCK")
    assert 0.2 - ticks <= running <= waited_for
    assert 0.4 - ticks <= waited_for <= children_cpu_s(os.getpid()) - before
