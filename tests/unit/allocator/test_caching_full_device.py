"""The caching allocator on a device that is full: cache given back, memory refused, garbage collected."""

import pytest
from small_allocators import MIB, counters, made, told

from ray_memprof.allocator.caching import OutOfDeviceMemory
from ray_memprof.allocator.growing_segments import GROWING_FROM as G
from ray_memprof.allocator.replay import UNKNOWN_FREE, Columns
from ray_memprof.allocator.rules import Rules

# --------------------------------------------------------------------------------
# Back to the device


def test_cache_given_back_is_whole_segments_large_ones_first_by_stream_and_size() -> None:
    allocator = made()
    requests = [(MIB, 1), (30 * MIB, 1), (20 * MIB, 1), (12 * MIB, 0), (512, 0), (512, 0)]
    *unused, last = [allocator.alloc(*request) for request in requests]
    for block in unused:
        allocator.free(block)
    told(allocator)
    allocator.empty_cache()
    assert told(allocator) == [
        ("segment_free", 52 * MIB, 12 * MIB),
        ("segment_free", 32 * MIB, 20 * MIB),
        ("segment_free", 2 * MIB, 30 * MIB),
        ("segment_free", 0, 2 * MIB),
    ]
    assert counters(allocator) == (last.size, 2 * MIB, last.size)
    assert allocator.reserved_peak == 66 * MIB


def test_a_full_device_gets_the_cache_back_and_is_asked_again() -> None:
    allocator = made(device_bytes=64 * MIB)
    allocator.free(allocator.alloc(40 * MIB))
    kept = allocator.alloc(30 * MIB)  # of the 40
    allocator.free(allocator.alloc(20 * MIB))
    allocator.free(kept)
    allocator.alloc(60 * MIB)
    assert told(allocator)[-4:] == [
        ("segment_free", 40 * MIB, 20 * MIB),
        ("segment_free", 0, 40 * MIB),
        ("segment_alloc", 60 * MIB, 60 * MIB),
        ("alloc", 60 * MIB, 60 * MIB),
    ]
    assert (allocator.num_retries, allocator.num_ooms) == (1, 0)


@pytest.mark.parametrize("expandable", [False, True])
def test_out_of_memory_is_told_and_the_allocator_goes_on(expandable: bool) -> None:
    allocator = made(device_bytes=60 * MIB, expandable_segments=expandable)
    block = allocator.alloc(20 * MIB)
    told(allocator)
    with pytest.raises(
        OutOfDeviceMemory, match="41,943,552 bytes do not fit .* 41,943,040 are free"
    ) as caught:
        allocator.alloc(40 * MIB + 1, 3)
    assert (caught.value.wanted, caught.value.free_bytes) == (40 * MIB + 512, 40 * MIB)
    columns = allocator.take_events()
    assert columns == Columns(
        action=["oom"], size_bytes=[40 * MIB + 512], requested_bytes=[40 * MIB + 512], address=[40 * MIB],
        stream=[3],
    )  # fmt: skip
    assert (allocator.num_retries, allocator.num_ooms) == (1, 1)
    allocator.free(block)
    assert allocator.alloc(60 * MIB).size == 60 * MIB


def test_pages_mapped_for_a_place_that_then_does_not_fit_are_given_back_with_the_cache() -> None:
    allocator = made(device_bytes=80 * MIB, expandable_segments=True)
    first, second, third, _ = (allocator.alloc(20 * MIB) for _ in range(4))
    allocator.free(first)
    allocator.free(third)
    allocator.empty_cache()
    # Pages 0 and 2 have no memory, page 1 becomes free, and another stream takes one of the two pages.
    allocator.alloc(20 * MIB, 8)
    allocator.free(second)
    told(allocator)
    with pytest.raises(OutOfDeviceMemory):
        allocator.alloc(60 * MIB)
    assert told(allocator) == [
        ("segment_map", G, 20 * MIB),
        ("segment_unmap", G, 40 * MIB),
        ("oom", 40 * MIB, 60 * MIB),
    ]
    assert counters(allocator) == (40 * MIB, 40 * MIB, 40 * MIB)
    assert allocator.reserved_peak == 80 * MIB


def test_a_process_may_be_allowed_less_than_the_device_has() -> None:
    allocator = made(allowed_bytes=30 * MIB)
    allocator.alloc(20 * MIB)
    with pytest.raises(OutOfDeviceMemory) as caught:
        allocator.alloc(11 * MIB)
    assert caught.value.free_bytes == UNKNOWN_FREE
    allocator.alloc(10 * MIB)


def test_unused_segments_older_than_the_average_are_collected_above_the_threshold() -> None:
    allocator = made(allowed_bytes=100 * MIB, garbage_collection_fraction=0.5)
    old, young, used = allocator.alloc(20 * MIB), allocator.alloc(24 * MIB), allocator.alloc(12 * MIB)
    allocator.free(old)
    allocator.free(allocator.alloc(11 * MIB + 512))  # a search in which the 20 MiB are taken, and younger
    allocator.free(young)
    told(allocator)
    # 56 MiB are reserved, 6 above the threshold; both unused segments are as old.
    allocator.alloc(26 * MIB)
    assert told(allocator) == [
        ("segment_free", 0, 20 * MIB),
        ("segment_free", 20 * MIB, 24 * MIB),
        ("segment_alloc", 56 * MIB, 26 * MIB),
        ("alloc", 56 * MIB, 26 * MIB),
    ]
    allocator.free(used)
    assert allocator.reserved == 38 * MIB


def test_collection_stops_when_enough_is_given_back() -> None:
    allocator = made(allowed_bytes=120 * MIB, garbage_collection_fraction=0.5)
    old, young = allocator.alloc(20 * MIB), allocator.alloc(40 * MIB)
    allocator.free(old)
    allocator.alloc(10 * MIB, 7)  # a search that takes neither
    allocator.free(young)
    told(allocator)
    allocator.alloc(42 * MIB)
    # 70 MiB were reserved, 10 above the threshold.
    assert told(allocator) == [
        ("segment_free", 0, 20 * MIB),
        ("segment_alloc", 70 * MIB, 42 * MIB),
        ("alloc", 70 * MIB, 42 * MIB),
    ]


def test_collection_goes_on_with_younger_segments_until_enough_is_given_back() -> None:
    allocator = made(allowed_bytes=160 * MIB, garbage_collection_fraction=0.9)
    oldest, older, young = (allocator.alloc(size * MIB) for size in (20, 22, 24))
    allocator.free(oldest)
    for _ in range(3):
        allocator.alloc(2 * MIB, 7)  # a search that takes none of them
    allocator.free(older)
    allocator.alloc(2 * MIB, 7)
    allocator.free(young)
    told(allocator)
    allocator.configure(Rules(garbage_collection_fraction=50 / 160))
    allocator.alloc(40 * MIB)
    # 86 MiB were reserved, 36 above the threshold. Ages are 5, 2 and 1: first the one above 2.7, then that above 1.5.
    assert told(allocator) == [
        ("segment_free", 0, 20 * MIB),
        ("segment_free", 20 * MIB, 22 * MIB),
        ("segment_alloc", 86 * MIB, 40 * MIB),
        ("alloc", 86 * MIB, 40 * MIB),
    ]
