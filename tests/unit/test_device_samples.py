"""Samples: one row from a meter and a driver, taken on a thread of their own."""

import os
import threading
import time
from dataclasses import replace

import pytest

from ray_memprof.device import Device, Holder
from ray_memprof.meters import Reading
from ray_memprof.sampler import sample, sampling, split
from ray_memprof.scribe import Sample

READING = Reading(
    t_ns=1, allocated=2, reserved=3, active=4, device_used=5, host_rss=6, allocated_peak=-1, reserved_peak=-1,
    active_peak=-1, num_allocs=7, num_segments=8, num_retries=9,
)  # fmt: skip
ROW = Sample(
    t_ns=1, device_used_bytes=5, process_used_bytes=None, others_used_bytes=None, allocated_bytes=2,
    reserved_bytes=3, host_rss_bytes=6, utilisation_fraction=None,
)  # fmt: skip
ME = os.getpid()


class FakeMeter:
    """Answers every look with one reading, and then, where it is stuck, no more."""

    def __init__(self, stuck: bool = False) -> None:
        self.num_looks, self._stuck = 0, stuck

    def peek(self) -> Reading:
        self.num_looks += 1
        return READING

    def answers(self) -> bool:
        return not self._stuck


def at_once(row: Sample) -> Sample:
    """The same row; its time is that of the look."""
    assert 0 <= time.time_ns() - row.t_ns < 60e9
    return replace(row, t_ns=1)


class FakeDevice(Device):
    """A GPU with these holders."""

    def __init__(self, *holders: Holder, utilisation: float | None = 0.5, is_mig: bool = False) -> None:
        self._holders, self._utilisation = None if is_mig else list(holders), utilisation

    def used_bytes(self) -> int:
        return 50

    def holders(self) -> list[Holder] | None:
        return self._holders

    def utilisation(self) -> float | None:
        return self._utilisation


def test_without_a_driver_a_row_has_what_the_meter_knows() -> None:
    assert at_once(sample(READING, None)) == ROW


def test_the_driver_tells_who_holds_what() -> None:
    device = FakeDevice(Holder(ME, 30), Holder(ME + 1, 15))
    wanted = replace(
        ROW, device_used_bytes=50, process_used_bytes=30, others_used_bytes=15, utilisation_fraction=0.5
    )
    assert at_once(sample(READING, device)) == wanted


@pytest.mark.parametrize(
    ("holders", "own", "others"),
    [
        ((), None, None),
        ((Holder(ME, 30),), 30, 0),
        ((Holder(ME, 30), Holder(1, None)), 30, None),
        ((Holder(ME, None), Holder(1, 15)), None, None),
        ((Holder(1, 15), Holder(2, 16)), None, None),  # numbers of the host, seen from a container
    ],
)
def test_what_the_driver_does_not_tell_stays_empty(
    holders: tuple[Holder, ...], own: int | None, others: int | None
) -> None:
    assert split(FakeDevice(*holders), ME) == (own, others)


def test_a_driver_that_names_no_process_tells_neither() -> None:
    wanted = replace(ROW, device_used_bytes=50)
    assert at_once(sample(READING, FakeDevice(utilisation=None, is_mig=True))) == wanted


def test_rows_come_from_a_thread_that_ends_with_the_block() -> None:
    rows: list[Sample] = []
    names: set[str] = set()
    enough = threading.Event()

    def tick(row: Sample) -> None:
        names.add(threading.current_thread().name)
        rows.append(row)
        if len(rows) == 3:
            enough.set()

    with sampling(tick, FakeMeter(), None, 0.001):  # type: ignore[arg-type]
        assert enough.wait(20)
    num_rows = len(rows)
    assert ({at_once(row) for row in rows}, names) == ({ROW}, {"sampler"})
    assert "sampler" not in {thread.name for thread in threading.enumerate()}
    assert len(rows) == num_rows


def test_an_allocator_that_does_not_answer_is_not_asked_and_rows_go_on() -> None:
    rows: list[Sample] = []
    enough = threading.Event()
    meter = FakeMeter(stuck=True)

    def tick(row: Sample) -> None:
        rows.append(row)
        if len(rows) == 3:
            enough.set()

    with sampling(tick, meter, FakeDevice(), 0.001):  # type: ignore[arg-type]
        assert enough.wait(20)
    assert meter.num_looks == 1
    assert {(row.allocated_bytes, row.device_used_bytes) for row in rows} == {(2, 50)}


def test_a_block_that_fails_ends_the_thread_at_once() -> None:
    with pytest.raises(KeyError), sampling(lambda row: None, FakeMeter(), None, 1000.0):  # type: ignore[arg-type]
        raise KeyError
    assert "sampler" not in {thread.name for thread in threading.enumerate()}
