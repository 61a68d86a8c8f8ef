"""The reader of torch's ring: all events written between copies come once, in order, or the loss is reported."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_ring import TorchHistory

from ray_memprof.recorder.meters.ring import MARKER, RingReader, is_marker


class Desk:
    """A ring, its reader, and events numbered by their address."""

    def __init__(self, most: int) -> None:
        self.torch = TorchHistory()
        self.torch.record("all", None, "python", most, True)
        self.reader = RingReader(most)
        self.num_written = self.num_copies = 0

    @property
    def ring(self) -> Any:
        return self.torch.rings[0]

    def write(self, num_events: int) -> None:
        for _ in range(num_events):
            # The same few sizes again and again: events cannot be told apart by their values.
            self.torch.event("alloc", 512, self.num_written % 3, number=self.num_written)
            self.num_written += 1

    def take(self, num_between: int = 0) -> tuple[list[int], bool]:
        self.num_copies += 1
        marker = f"{MARKER}{self.num_copies}"
        self.torch.during_copy = lambda: self.write(num_between)
        own, self.torch.local.text = self.torch.get_metadata(), marker
        copy = self.torch.snapshot()["device_traces"][0]
        self.torch.local.text = own
        new, is_whole = self.reader.take(copy, marker)
        return [event["number"] for event in new if not is_marker(event)], is_whole

    def resize(self, most: int) -> None:
        self.ring.most = most
        self.reader.resized(most)


def test_an_empty_ring_has_nothing_new() -> None:
    assert Desk(4).take() == ([], True)


def test_events_come_once_while_the_ring_grows() -> None:
    desk = Desk(100)
    desk.write(3)
    assert desk.take() == ([0, 1, 2], True)
    assert desk.take() == ([], True)
    desk.write(2)
    assert desk.take(num_between=1) == ([3, 4], True)
    assert desk.take() == ([5], True)


def test_events_come_once_where_they_take_the_places_of_old_ones() -> None:
    desk = Desk(100)
    desk.write(5)
    desk.take()
    desk.resize(10)
    taken = []
    for _ in range(40):
        desk.write(4)
        new, is_whole = desk.take()
        assert is_whole
        taken += new
    assert taken == list(range(5, 165))
    assert len(desk.ring.entries) == 10


def test_what_was_overwritten_before_it_was_taken_is_told() -> None:
    desk = Desk(10)
    desk.write(3)
    desk.take()
    desk.write(30)
    new, is_whole = desk.take()
    assert (new, is_whole) == (list(range(23, 33)), False)


def test_a_ring_that_somebody_else_emptied_is_told() -> None:
    desk = Desk(10)
    desk.write(5)
    desk.take()
    desk.ring.clear()
    desk.write(2)
    assert desk.take() == ([5, 6], False)


def test_a_full_ring_that_takes_more_keeps_the_order() -> None:
    desk = Desk(8)
    desk.write(3)
    desk.take()
    taken = []
    for _ in range(5):
        desk.write(3)
        taken += desk.take()[0]
    # WHEN other threads write before it takes more, and after it
    desk.write(2)
    desk.resize(32)
    desk.write(6)
    new, is_whole = desk.take(num_between=2)
    assert is_whole
    taken += new
    for _ in range(30):
        desk.write(9)
        new, is_whole = desk.take()
        assert is_whole
        taken += new
    assert taken == list(range(3, desk.num_written))


STEPS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 3), st.sampled_from(["", "", "", "grow", "empty"])),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(steps=STEPS, first=st.integers(0, 20), most=st.integers(24, 40))
def test_whatever_happens_between_copies_nothing_comes_twice_or_out_of_order(
    steps: list[tuple[int, int, str]], first: int, most: int
) -> None:
    desk = Desk(1000)
    desk.write(first)
    taken, is_whole = desk.take()
    desk.resize(most)
    for num_events, num_between, change in steps:
        desk.torch.shift_us = num_between - 1  # times are computed anew
        desk.write(num_events)
        new, is_whole = desk.take(num_between=num_between)
        # Twelve events, three between copies and markers: less than half of the ring, as its user must make sure.
        assert is_whole
        taken += new
        if change == "grow":
            desk.write(num_between)  # before it takes more
            desk.resize(desk.ring.most * 2)
        elif change == "empty":
            taken += desk.take()[0]
            taken += desk.take()[0]
            desk.ring.clear()
            desk.reader.emptied(desk.ring.most)
    taken += desk.take()[0]
    taken += desk.take()[0]
    assert taken == list(range(desk.num_written))


@pytest.mark.parametrize("num_events", [1, 10, 11, 50])
def test_a_first_copy_of_a_full_ring_is_not_called_whole(num_events: int) -> None:
    desk = Desk(10)
    desk.write(num_events)
    new, is_whole = desk.take()
    assert (new, is_whole) == (list(range(num_events))[-10:], num_events < 10)
