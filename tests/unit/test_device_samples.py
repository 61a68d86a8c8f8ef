"""Samples: one row from a meter and a driver, taken on a thread of their own."""

import os
import threading
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
    """Answers every look with the same reading."""

    def peek(self) -> Reading:
        return READING


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
    assert sample(FakeMeter(), None) == ROW  # type: ignore[arg-type]


def test_the_driver_tells_who_holds_what() -> None:
    device = FakeDevice(Holder(ME, 30), Holder(ME + 1, 15))
    wanted = replace(
        ROW, device_used_bytes=50, process_used_bytes=30, others_used_bytes=15, utilisation_fraction=0.5
    )
    assert sample(FakeMeter(), device) == wanted  # type: ignore[arg-type]


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
    assert sample(FakeMeter(), FakeDevice(utilisation=None, is_mig=True)) == wanted  # type: ignore[arg-type]


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
    assert (set(rows), names) == ({ROW}, {"sampler"})
    assert "sampler" not in {thread.name for thread in threading.enumerate()}
    assert len(rows) == num_rows


def test_a_block_that_fails_ends_the_thread_at_once() -> None:
    with pytest.raises(KeyError), sampling(lambda row: None, FakeMeter(), None, 1000.0):  # type: ignore[arg-type]
        raise KeyError
    assert "sampler" not in {thread.name for thread in threading.enumerate()}
