"""Whether requests fit on a device with memory outside the allocator, and on how small a one."""

from ray_memprof.allocator.caching import CachingAllocator
from ray_memprof.allocator.replay import Columns
from ray_memprof.allocator.requests import Recorded, Requests
from ray_memprof.allocator.rules import Rules
from ray_memprof.allocator.what_if import Outcome, play, smallest_device

MIB = 2**20


def requests_of(columns: Columns) -> Requests:
    return Requests.of(
        Recorded(columns.action, columns.address, columns.requested_bytes, columns.stream, [0] * len(columns.action))
    )  # fmt: skip


def program() -> Requests:
    """30 MiB, then 40: 70 of them in use at once; then 60 MiB, for which the cache is needed.

    Events: 0 segment, 1 alloc, 2 segment, 3 alloc, 4 - 7 two frees, 8 segment, 9 alloc.
    """
    allocator = CachingAllocator()
    blocks = [allocator.alloc(30 * MIB), allocator.alloc(40 * MIB)]
    for block in blocks:
        allocator.free(block)
    allocator.alloc(60 * MIB)
    return requests_of(allocator.take_events())


def test_nothing_asked_for_fits_anywhere_and_needs_what_is_outside() -> None:
    assert play(Requests(), [], Rules(), 0) == Outcome(True, 0, 0, 0)
    assert smallest_device(Requests(), [], Rules()) == 0
    assert smallest_device(Requests(), [(0, 5 * MIB)], Rules()) == 5 * MIB
    assert play(Requests(), [(0, 5 * MIB)], Rules(), 4 * MIB) == Outcome(False, 0, 0, 0, 0, 5 * MIB, True)


def test_without_a_limit_the_cache_is_kept() -> None:
    assert play(program(), [], Rules(), None) == Outcome(True, 130 * MIB, 130 * MIB, 0)


def test_other_settings_have_another_peak() -> None:
    # Pages of 20 MiB: 70 MiB are in use at once, and the 60 MiB fit into the same pages.
    assert play(program(), [], Rules(expandable_segments=True), None) == Outcome(True, 80 * MIB, 80 * MIB, 0)


def test_on_a_smaller_device_the_cache_is_given_back_on_the_way() -> None:
    assert play(program(), [], Rules(), 70 * MIB) == Outcome(True, 70 * MIB, 70 * MIB, 1)
    assert smallest_device(program(), [], Rules()) == 70 * MIB


def test_a_request_that_does_not_fit_ends_it_and_is_told() -> None:
    assert play(program(), [], Rules(), 69 * MIB) == Outcome(False, 30 * MIB, 30 * MIB, 1, 3, 40 * MIB)


def test_what_is_outside_is_not_the_allocators_from_then_on() -> None:
    outside = [(0, 10 * MIB), (9, 12 * MIB)]
    assert play(program(), outside, Rules(), None) == Outcome(True, 130 * MIB, 142 * MIB, 0)
    assert play(program(), outside, Rules(), 82 * MIB) == Outcome(True, 70 * MIB, 82 * MIB, 1)
    assert play(program(), outside, Rules(), 80 * MIB - 1) == Outcome(
        False, 30 * MIB, 40 * MIB, 1, 3, 40 * MIB
    )
    assert smallest_device(program(), outside, Rules()) == 82 * MIB


def test_what_grows_outside_gets_nothing_of_the_cache() -> None:
    # 70 MiB of cache when 20 more are wanted outside, before the last request.
    outside = [(0, 10 * MIB), (8, 30 * MIB)]
    assert play(program(), outside, Rules(), 99 * MIB) == Outcome(
        False, 70 * MIB, 80 * MIB, 0, 9, 20 * MIB, True
    )
    assert play(program(), outside, Rules(), 100 * MIB).fits
    assert smallest_device(program(), outside, Rules()) == 100 * MIB


def test_what_grows_after_the_last_event_counts_too_and_what_shrinks_never_fails() -> None:
    outside = [(0, 10 * MIB), (99, 80 * MIB)]
    assert play(program(), outside, Rules(), 139 * MIB) == Outcome(
        False, 70 * MIB, 80 * MIB, 1, 9, 70 * MIB, True
    )
    assert play(program(), [(0, 10 * MIB), (4, 5 * MIB)], Rules(), 80 * MIB).fits


def test_the_smallest_device_fits_and_one_step_less_does_not() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.alloc(size * MIB) for size in (3, 21, 5, 44, 7, 9, 90, 13)]
    for index in (1, 3, 6, 0):
        allocator.free(blocks[index])
    for size in (70, 33, 18, 50):
        allocator.alloc(size * MIB)
    requests = requests_of(allocator.take_events())
    for rules in (Rules(), Rules(expandable_segments=True), Rules(max_split_bytes=20 * MIB)):
        size = smallest_device(requests, [(0, 7 * MIB)], rules)
        assert play(requests, [(0, 7 * MIB)], rules, size).fits
        assert not play(requests, [(0, 7 * MIB)], rules, size - 2 * MIB).fits
