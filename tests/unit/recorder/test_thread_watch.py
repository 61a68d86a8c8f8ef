"""What the frames of a thread show from outside."""

import sys
import threading
from types import SimpleNamespace
from typing import Any

from ray_memprof.recorder.thread_watch import Moves, is_meeting


def test_no_thread() -> None:
    assert (Moves().look(None), is_meeting(None)) == (0, False)


def test_progress_without_spans() -> None:
    """GIVEN a script without spans THEN a thread found at another place has moved on, one at the same place has not."""
    progress = Moves()
    frame = sys._getframe()
    first = progress.look(None)
    second = progress.look(frame)
    third = progress.look(frame)

    # frame.f_lasti moves with this very function; the frames around it stand still.
    assert (first, second, third) == (0, 1, 2)


def test_progress_of_a_thread_that_stands_still() -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        leave.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    entered.wait()
    progress, frames = Moves(), []
    while len(frames) < 2 or frames[-1] != frames[-2]:  # until it has reached its wait
        frames.append(progress.look(sys._current_frames()[thread.ident]))
    last = frames[-1]
    again = [progress.look(sys._current_frames()[thread.ident]) for _ in range(5)]
    leave.set()
    thread.join()

    assert again == [last] * 5


def frame(function: str, file: str, back: Any = None) -> Any:
    code = SimpleNamespace(co_name=function, co_filename=file)
    return SimpleNamespace(f_code=code, f_lasti=0, f_back=back)


def test_meeting_is_a_function_of_torch_and_not_of_the_same_name_elsewhere() -> None:
    outer = frame("init_process_group", "/x/torch/distributed/distributed_c10d.py")

    assert is_meeting(frame("wait", "/x/store.py", back=outer))
    assert not is_meeting(frame("init_process_group", "/x/own.py"))
