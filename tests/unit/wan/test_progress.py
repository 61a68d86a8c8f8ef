"""What a person reads while a video is made: which stages and steps get a line, and with which times."""

import time
from collections.abc import Iterator

import pytest

from wan.progress import Progress


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now_s)
    yield clock


def test_nothing_happened_is_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("cpu") as progress:
        assert progress.where == "start"
    assert capsys.readouterr() == ("", "")


def test_stages_that_take_a_twentieth_of_a_second_have_a_line(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("cpu") as progress:
        for name, seconds in (("load.t5", 0.0625), ("decode", 0.03125), ("denoise", 9.0), ("save", 2.5)):
            progress.enter(name, {})
            progress.enter("inner", {"step": 3})
            assert progress.where == f"{name}/inner 3"
            clock.wait(seconds)
            progress.exit("inner", False)
            progress.exit(name, False)
        progress.enter("encode.text", {})
        clock.wait(7)
        progress.exit("encode.text", True)
        progress.enter("residency.offload", {})
        # Clean-up that follows does not hide where it failed.
        assert progress.where == "encode.text"
    assert capsys.readouterr().err.splitlines() == ["  load.t5: 0.1 s", "  save: 2.5 s"]


def test_steps_have_a_line_after_ten_seconds_and_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("cpu") as progress:
        for step in range(1, 6):
            clock.wait(5.0 if step < 4 else 6.0)
            progress.step(step, 5)
        progress.finish("x.mp4: 5 frames of 64*48")
    assert capsys.readouterr().err.splitlines() == [
        "  denoise: step 3 of 5, 15.0 s",
        "  denoise: step 5 of 5, 27.0 s",
        "x.mp4: 5 frames of 64*48, 27.0 s",
    ]


def test_a_quiet_one_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("cpu", quiet=True) as progress:
        progress.enter("save", {})
        clock.wait(3)
        progress.exit("save", False)
        progress.step(1, 1)
        progress.finish("x.png")
    assert capsys.readouterr() == ("", "")
