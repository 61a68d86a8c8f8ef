"""Two signals, in a process of their own: the handlers are for a whole process."""

import subprocess
import sys

PROGRAM = """
import os, signal, sys, time
from ray_memprof.driver.interrupts import Abandoned, Interrupts
before = signal.getsignal(signal.SIGINT)
with Interrupts(lambda line: print(line)) as interrupts:
    print(interrupts.signal)
    try:
        for number in {numbers}:
            os.kill(os.getpid(), number)
            print(interrupts.signal)
        {then}
    except Abandoned as error:
        print("abandoned", error.number)
print(signal.getsignal(signal.SIGINT) is before)
"""
FIRST = "{name}: ending the ranks and keeping what they recorded; a second signal ends at once"
SECOND = "{name} again: leaving at once, what is not collected yet stays where it is"


def run(numbers: str, then: str = "pass") -> tuple[int, list[str]]:
    program = PROGRAM.format(numbers=numbers, then=then)
    done = subprocess.run(
        [sys.executable, "-uc", program], capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout.splitlines()


def test_no_signal() -> None:
    assert run("()") == (0, ["0", "True"])


def test_first_signal_is_a_flag() -> None:
    assert run("(signal.SIGTERM,)") == (0, ["0", FIRST.format(name="SIGTERM"), "15", "True"])


def test_second_signal_leaves_the_block() -> None:
    assert run("(signal.SIGTERM, signal.SIGINT)") == (
        0,
        ["0", FIRST.format(name="SIGTERM"), "15", SECOND.format(name="SIGINT"), "abandoned 2", "True"],
    )


def test_second_signal_ends_what_is_stuck() -> None:
    """GIVEN code that takes the exception and goes on THEN the process ends by force all the same."""
    code, lines = run("(signal.SIGINT, signal.SIGINT)", "pass\n    except Abandoned:\n        time.sleep(20)")

    assert (code, lines[-1]) == (130, SECOND.format(name="SIGINT"))
