"""The kernel's counts tell whether a model's threads were started meanwhile."""

import sys
import threading
from pathlib import Path

import pytest

from ray_memprof.recorder.thread_switches import ThreadSwitches


def put(tasks: Path, thread: int, name: str, started: int | None) -> None:
    """A thread as the kernel shows it; None: it has ended, and its file cannot be read."""
    folder = tasks / str(thread)
    folder.mkdir(exist_ok=True)
    (folder / "comm").write_text(f"{name}\n", encoding="ascii")
    numbers = "" if started is None else f"123456 7890 {started}\n"
    (folder / "schedstat").write_text(numbers, encoding="ascii")


def test_where_the_kernel_tells_nothing_nothing_is_counted(tmp_path: Path) -> None:
    assert ThreadSwitches(7, str(tmp_path / "none")).count() is None
    assert ThreadSwitches(7, str(tmp_path)).count() is None
    put(tmp_path, 7, "python", 0)  # a kernel that does not count
    assert ThreadSwitches(7, str(tmp_path)).count() is None


def test_the_models_thread_and_autograds_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 7, "python", 10)
    put(tmp_path, 8, "cuda-EvtHandlr", 100)
    switches = ThreadSwitches(7, str(tmp_path))
    assert switches.count() == 10
    put(tmp_path, 7, "python", 12)
    assert switches.count() == 12
    # A thread that begins is found at the next search.
    put(tmp_path, 9, "pt_autograd_0", 1000)
    assert switches.count() == 12
    switches._looked_s -= 10
    assert switches.count() == 1012
    # One that has ended is left out, and so is everything once the model's has.
    put(tmp_path, 9, "pt_autograd_0", None)
    assert switches.count() == 12
    put(tmp_path, 7, "python", None)
    assert switches.count() is None
    switches.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's files of Linux")
def test_a_thread_that_is_started_again_is_seen_and_one_that_waits_is_not() -> None:
    go_on, went_on, end = threading.Event(), threading.Event(), threading.Event()

    def model() -> None:
        go_on.wait()
        went_on.set()
        end.wait()

    thread = threading.Thread(target=model)
    thread.start()
    assert thread.native_id is not None
    switches = ThreadSwitches(thread.native_id)
    waits = threading.Event()
    waits.wait(0.2)  # until it waits, on a busy host too
    before = switches.count()
    waits.wait(0.05)
    assert before is not None and switches.count() == before
    go_on.set()
    assert went_on.wait(20)
    after = switches.count()
    assert after is not None and after > before
    end.set()
    thread.join(20)
    switches.close()
