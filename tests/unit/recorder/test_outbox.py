"""The way to the scribe: whatever call of it a signal's handler interrupts, each row arrives, and arrives once."""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from handed_over import reading, record
from recorder_fakes import FakeMeter, FakeStore

from ray_memprof.allocator.replay import Replay
from ray_memprof.recorder.flag import Flag
from ray_memprof.recorder.outbox import Outbox
from ray_memprof.recorder.rows import Entry, Owner
from ray_memprof.recorder.scribe import QUEUE_LENGTH, Scribe
from ray_memprof.recorder.writer import Writer


class Alarm(Exception):
    """What a handler of the program raises."""


def interrupted(work: Callable[[], None], place: int) -> bool:
    """Call `work` and raise an Alarm at the call or return of this number; False: there are fewer."""
    num_left, here = place, sys._getframe()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal num_left
        num_left -= frame is not here
        if num_left < 0:
            sys.setprofile(None)
            raise Alarm

    sys.setprofile(profile)
    try:
        work()
    except Alarm:
        return True
    finally:
        sys.setprofile(None)
    return False


def outbox_with_rows() -> tuple[Outbox, FakeMeter]:
    meter = FakeMeter(has_events=True)
    outbox = Outbox(meter)
    for number in (1, 2, 3):
        outbox.parcel.ledger.append(Entry(number, 0, "nccl", 1))
        outbox.parcel.spans.append(record(number, start=reading(t_ns=number), end=reading(t_ns=10 * number)))
    return outbox, meter


def test_rows_that_a_handler_keeps_from_leaving_leave_with_the_next() -> None:
    place, was_interrupted = 0, True
    while was_interrupted:
        (outbox, _), store = outbox_with_rows(), FakeStore()
        scribe = Scribe(Writer(store, Replay(), categories={}))  # type: ignore[arg-type]

        def hand_over(known_ns: int | None = 25) -> None:
            outbox.hand_over(scribe, known_ns=known_ns, begun_ns=0)  # noqa: B023  # called at once

        was_interrupted = interrupted(hand_over, place)
        hand_over()
        hand_over(None)
        scribe.close()
        assert [row["t_ns"] for row in store.rows["ledger"]] == [1, 2, 3], place
        assert [row["span_id"] for row in store.rows["spans"]] == [1, 2, 3], place
        assert scribe.num_waiting_events == 0
        place += 1
    assert place > 20


def test_claims_leave_though_a_handler_comes() -> None:
    class Meter(FakeMeter):
        def locate(self, tensor: Any) -> Any:
            return tensor

    owner = Owner("GPT.lm_head.weight", "GPT", "weight")
    place, was_interrupted = 0, True
    while was_interrupted:
        outbox, scribe = Outbox(Meter(has_events=True)), Heard()
        outbox.claim((5, 7, 64), owner)  # type: ignore[arg-type]
        outbox.claim((6, 8, 64), owner)  # type: ignore[arg-type]

        def hand_over() -> None:
            outbox.hand_over(scribe, known_ns=None, begun_ns=0)  # type: ignore[arg-type]  # noqa: B023

        was_interrupted = interrupted(hand_over, place)
        hand_over()
        claims = {claim.time_us for parcel in scribe.parcels for claim in parcel.claims}
        assert claims == {5, 6}, place
        place += 1
    assert place > 10


class Heard:
    """A scribe that keeps what it is given."""

    def __init__(self) -> None:
        self.parcels: list[Any] = []

    def deliver(self, parcel: Any) -> None:
        self.parcels.append(parcel)


def test_stamps_and_base_of_the_first_parcel_leave_once() -> None:
    outbox, scribe = Outbox(FakeMeter(has_events=True)), Heard()
    outbox.stamp(7)
    for _ in range(2):
        outbox.hand_over(scribe, known_ns=None, begun_ns=40)  # type: ignore[arg-type]
    first, second = scribe.parcels
    assert [span_id for _, span_id in first.stamps] == [0, 7]
    assert [span_id for _, span_id in second.stamps] == [7]
    assert (first.base_ns, second.base_ns) == (40, 0)


@pytest.mark.parametrize("count", [1, QUEUE_LENGTH + 2])
def test_a_parcel_that_is_delivered_again_is_written_once(count: int) -> None:
    from ray_memprof.recorder.rows import Parcel

    store = FakeStore()
    scribe = Scribe(Writer(store, Replay(), categories={}))  # type: ignore[arg-type]
    parcels = [Parcel(ledger=[Entry(number, 0, "nccl", 1)]) for number in range(count)]
    for parcel in parcels:
        scribe.deliver(parcel)
        scribe.deliver(parcel)
    scribe.close()
    assert [row["t_ns"] for row in store.rows["ledger"]] == list(range(count))


def test_a_flag_wakes_every_thread_that_waits_and_can_be_taken_back() -> None:
    flag, seen = Flag(), []
    assert not flag.wait(0.0) and not flag.is_set()
    threads = [threading.Thread(target=lambda: seen.append(flag.wait(20))) for _ in range(3)]
    for thread in threads:
        thread.start()
    flag.set()
    for thread in threads:
        thread.join(20)
    assert seen == [True] * 3 and flag.wait(0.0)
    flag.clear()
    assert not flag.is_set() and not flag.wait(0.01)


def test_a_flag_that_is_set_again_and_again_keeps_no_more_for_it() -> None:
    flag = Flag()
    for _ in range(1000):
        flag.set()
        flag.clear()
    assert flag._wakes.qsize() == 1
    assert not flag.wait(0.01)  # what is left of earlier times wakes nobody for good
    flag.set()
    assert flag.wait(20)


def test_a_handler_at_any_moment_leaves_a_flag_that_works() -> None:
    place, was_interrupted = 0, True
    while was_interrupted:
        flag = Flag()
        was_interrupted = interrupted(flag.set, place)
        flag.set()
        assert flag.wait(0.0)
        flag.clear()
        was_interrupted |= interrupted(lambda: flag.wait(0.001), place)  # noqa: B023  # called at once
        waits = threading.Thread(target=lambda: flag.wait(20))  # noqa: B023
        waits.start()
        flag.set()
        waits.join(20)
        assert not waits.is_alive()
        place += 1
    assert place > 2
