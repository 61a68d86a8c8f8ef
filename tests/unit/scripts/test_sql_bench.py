"""scripts/bench_sql.py: every way of running it, on runs of a second."""

import subprocess
import sys
from pathlib import Path

from ray_memprof.query import questions

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench_sql.py"


def bench(*args: str) -> list[str]:
    """The lines of its standard output."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--events", "9000", *args], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_question_has_its_line() -> None:
    lines = bench("--ranks", "2", "--repeats", "1")
    assert [line.split()[0] for line in lines[2:]] == list(questions.QUESTIONS)


def test_each_question_of_a_large_run_is_asked_in_a_process_of_its_own() -> None:
    lines = bench("--large", "--ranks", "3", "--question", "imbalance", "--question", "peak_event")
    assert lines[1] == "memory_limit 3GiB"
    assert [line.split()[:2] for line in lines[3:]] == [["imbalance", "30"], ["peak_event", "3"]]


def test_sql_and_pickle_agree_on_the_peak() -> None:
    lines = bench("--pickle", "--repeats", "1")
    by_loop, bare, asked = (line.split()[-1] for line in lines[3:])
    assert bare == asked
    assert int(by_loop.replace(",", "")) <= int(asked.replace(",", ""))
