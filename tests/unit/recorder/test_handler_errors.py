"""What a signal's handler raises reaches the program, wherever the recorder is; spans end all the same."""

import functools
import gc
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from desks import Desk, at_work
from recorder_fakes import FakeMeter
from torch import nn
from torch.profiler import record_function

from ray_memprof.recorder import handler_errors
from ray_memprof.recorder.handler_errors import from_handler, pass_on, suppressed, surely
from ray_memprof.recorder.meters.meter import Reading
from ray_memprof.recorder.spans import span
from ray_memprof.workload.observed import observed

ALARM_S = 2e-4
"""The longest time until an alarm: some spans."""


class Alarm(Exception):
    """Raised by the handlers of these tests."""


def plain(number: int, frame: Any) -> None:
    raise Alarm


def forgetful(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # it is not installed any more
    raise Alarm


def blind(number: int, frame: Any) -> None:
    del number, frame
    raise Alarm


def any_arguments(*args: Any) -> None:
    raise Alarm


class Handlers:
    def method(self, number: int, frame: Any) -> None:
        raise Alarm

    def __call__(self, number: int, frame: Any) -> None:
        raise Alarm


def with_more(more: str, number: int, frame: Any) -> None:
    raise Alarm(more)


@pytest.fixture
def alarm() -> Iterator[Callable[[Any], None]]:
    """Installs a handler of SIGALRM, for the test alone."""
    before = signal.getsignal(signal.SIGALRM)
    yield lambda handler: signal.signal(signal.SIGALRM, handler)  # type: ignore[func-returns-value]
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "handler",
    [
        plain,
        forgetful,
        blind,
        any_arguments,
        Handlers().method,
        Handlers(),
        functools.partial(with_more, "x"),
    ],
)
def test_what_a_handler_raises_is_known_as_such(alarm: Callable[[Any], None], handler: Any) -> None:
    alarm(handler)
    with pytest.raises(Alarm) as caught:
        signal.raise_signal(signal.SIGALRM)
    assert from_handler(caught.value) is caught.value
    with pytest.raises(Alarm):
        pass_on(caught.value)
    with pytest.raises(Alarm), suppressed():
        raise caught.value


def test_what_was_raised_from_it_is_the_programs_too(alarm: Callable[[Any], None]) -> None:
    alarm(plain)
    try:
        try:
            signal.raise_signal(signal.SIGALRM)
        except Alarm as error:
            raise RuntimeError("a library's words for it") from error
    except RuntimeError as error:
        assert isinstance(from_handler(error), Alarm)


def test_errors_of_our_own_are_not_the_programs(alarm: Callable[[Any], None]) -> None:
    alarm(plain)

    def fails(frame: object) -> None:
        raise KeyError("ours")

    with suppressed():
        fails(None)
    try:
        signal.raise_signal(signal.SIGALRM)
    except Alarm:
        # The program handles its alarm when the recorder fails.
        try:
            fails(None)
        except KeyError as error:
            assert isinstance(error.__context__, Alarm)
            assert from_handler(error) is None
            pass_on(error)


def test_work_is_done_however_often_it_is_interrupted(alarm: Callable[[Any], None]) -> None:
    alarm(plain)
    done: list[int] = []

    def work(times: int) -> None:
        done.append(1)
        if len(done) < times:
            signal.raise_signal(signal.SIGALRM)

    with pytest.raises(Alarm):
        surely(work, 5)
    assert len(done) == 5
    done.clear()
    surely(work, 1)
    assert len(done) == 1
    # What fails of itself is not tried again.
    with pytest.raises(ZeroDivisionError):
        surely(lambda: done.append(1 // 0))


def test_no_work_is_tried_for_ever(alarm: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_errors, "_MOST_TRIES", 3)
    alarm(plain)
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        signal.raise_signal(signal.SIGALRM)

    with pytest.raises(Alarm):
        surely(work)
    assert len(tries) == 3


@pytest.mark.parametrize("kind", [Alarm, SystemExit])
@pytest.mark.parametrize("where", ["enter", "exit"])
def test_a_handler_that_raises_while_the_meter_is_read(
    alarm: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch, where: str, kind: type[BaseException]
) -> None:
    due: list[str] = []
    read = FakeMeter.read

    def reading(meter: FakeMeter) -> Reading:
        if due:
            due.clear()
            signal.raise_signal(signal.SIGALRM)
        return read(meter)

    def handler(number: int, frame: Any) -> None:
        raise kind

    monkeypatch.setattr(FakeMeter, "read", reading)
    alarm(handler)
    with at_work() as desk:
        with span("outer"):
            with pytest.raises(kind):
                due += [where] if where == "enter" else []
                with span("inner"):
                    due += [where]
            assert desk.recorder.num_open == 1
        told = [one for one in desk.recorder.problems if "handler" in one]
    rows = [(row["path"], row["failed"]) for row in desk.store.rows["spans"]]
    # The end of a span that was interrupted has a row all the same.
    assert rows == ([] if where == "enter" else [("outer/inner", False)]) + [("outer", False)]
    expected = ["a signal's handler raised Alarm inside the recorder: a peak may be missing"]
    assert told == (expected if kind is Alarm else [])


def hammered(
    desk: Desk, work: Callable[[], Any], settle: Callable[[], Any], seconds: float
) -> tuple[int, int]:
    """Run `work` again and again under alarms, one at a time; how many were raised, and how many came out of it.

    After each, `settle` runs in peace: then no span is open but what was open before.
    """
    num_open = desk.recorder.num_open
    chance, num_seen, num_raised = random.Random(7), 0, 0

    def handler(number: int, frame: Any) -> None:
        nonlocal num_raised
        num_raised += 1
        raise Alarm

    # What an alarm raises in a callback of the garbage collector, such as that of another library, comes out nowhere.
    gc.disable()
    signal.signal(signal.SIGALRM, handler)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends or (num_seen < 20 and time.monotonic() < ends + 30):
        try:
            # An alarm that does not come out must not keep the test for ever.
            until = time.monotonic() + 1
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, ALARM_S))
            while time.monotonic() < until:
                work()
        except Alarm:
            num_seen += 1
        settle()
        assert desk.recorder.num_open == num_open, [(one.name, one.path) for one in desk.recorder._open]
    gc.enable()
    return num_raised, num_seen


def test_alarms_at_any_moment_reach_a_program_with_spans(alarm: Callable[[Any], None]) -> None:
    def work() -> None:
        with span("a"), span("b"):
            with span("a"):
                pass

    def settle() -> None:
        with span("after"):
            pass

    with at_work() as desk:
        num_raised, num_seen = hammered(desk, work, settle, 1.0)
    assert num_raised == num_seen >= 20
    rows = desk.store.rows["spans"]
    assert {row["path"] for row in rows} <= {"a", "a/b", "a/b/a", "after"}
    assert len({row["span_id"] for row in rows}) == len(rows)
    assert not [one for one in desk.recorder.problems if "handler" not in one]


def test_alarms_at_any_moment_reach_a_program_that_trains(alarm: Callable[[Any], None]) -> None:
    """Calls of modules, backward, hooks of the optimizer and ranges of the profiler."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.ones(1, 4)

    def work() -> None:
        optimizer.zero_grad()
        with record_function("batch"):
            loss = model(batch).sum()
        loss.backward()
        optimizer.step()

    with at_work(events=False) as desk:
        with observed(desk.recorder, module_spans=("*",), ranges=("record_function",)):
            work()
            num_raised, num_seen = hammered(desk, work, work, 1.0)
            with span("last"):
                work()
    # Code of other libraries may take an alarm for its own error, or run where nothing can be raised (weak references).
    assert 20 <= num_seen <= num_raised
    assert not [one for one in desk.recorder.problems if "handler" not in one]
    # THEN the last step is recorded as the first one was.
    paths = [row["path"].removeprefix("script/") for row in desk.store.rows["spans"]]
    assert paths[-1] == "script"
    last = [path.removeprefix("last/") for path in paths if path.startswith("last/")]
    assert last == paths[: len(last)]
    assert {"batch/Sequential", "backward", "optimizer"} <= {
        path.removeprefix("Optimizer.step#SGD.step/") for path in last
    }
