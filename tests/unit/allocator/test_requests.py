"""The requests of a recording, put to an allocator: the same curves again, and other ones under other settings."""

import random
from collections import Counter

import pytest

from ray_memprof.allocator.caching import Block, CachingAllocator, OutOfDeviceMemory
from ray_memprof.allocator.replay import Columns
from ray_memprof.allocator.requests import Recorded, Requests
from ray_memprof.allocator.rules import Rules

MIB = 2**20


def recorded(columns: Columns, spans: list[int] | None = None) -> Recorded:
    spans = spans or [1] * len(columns.action)
    return Recorded(columns.action, columns.address, columns.requested_bytes, columns.stream, spans)


def events(*told: tuple[str, int, int]) -> Recorded:
    """Events of stream 3: action, address and requested bytes."""
    actions, addresses, sizes = zip(*told, strict=True)
    return Recorded(actions, addresses, sizes, [3] * len(told), [1] * len(told))


def put(requests: Requests, allocator: CachingAllocator) -> list[int]:
    return list(requests.put_to(allocator))


def test_nothing_recorded_is_nothing_asked_for() -> None:
    assert Requests.of(Recorded([], [], [], [], [])) == Requests()
    assert put(Requests(), CachingAllocator()) == []


def program(rules: Rules, seed: int) -> Columns:
    """What was recorded of a program by chance, which gives its cache back and has blocks that wait."""
    chance, allocator = random.Random(seed), CachingAllocator(rules)
    used: list[Block] = []
    for _ in range(600):
        dice = chance.random()
        if dice < 0.55 or not used:
            used.append(allocator.alloc(int(2 ** chance.uniform(4, 26)), chance.choice((0, 0, 5))))
            if chance.random() < 0.1:
                allocator.record_stream(used[-1], 9)
        elif dice < 0.97:
            allocator.free(used.pop(chance.randrange(len(used))))
        elif dice < 0.98:
            allocator.empty_cache()
        else:
            allocator.synchronize()
    return allocator.take_events()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "rules", [Rules(), Rules(expandable_segments=True), Rules(max_split_bytes=30 * MIB, divisions=(4,))]
)
def test_the_requests_of_a_recording_make_the_same_events_again(rules: Rules, seed: int) -> None:
    columns = program(rules, seed)
    requests = Requests.of(recorded(columns))
    allocator = CachingAllocator(rules)
    put(requests, allocator)
    again = allocator.take_events()
    assert (requests.num_strays, requests.num_retries, requests.is_cut_off) == (0, 0, False)
    # Blocks that waited when the cache was given back come back a few events earlier or later than torch notes them.
    assert Counter(zip(again.action, again.address, again.size_bytes, strict=True)) == Counter(
        zip(columns.action, columns.address, columns.size_bytes, strict=True)
    )


def test_each_request_is_told_with_the_number_of_its_event() -> None:
    requests = Requests.of(
        events(
            ("segment_alloc", 0, 2 * MIB),
            ("alloc", 0, 512),
            ("alloc", 512, 512),
            ("free_requested", 0, 512),
            ("free_completed", 0, 512),
            ("free_requested", 512, 512),
            ("snapshot", 0, 0),
            ("free_completed", 512, 512),
            ("segment_free", 0, 2 * MIB),
        )
    )
    allocator = CachingAllocator()
    assert put(requests, allocator) == [1, 2, 3, 5, 7, 8]
    assert allocator.take_events().stream == [3] * 8
    assert allocator.reserved == 0


def test_a_burst_is_one_call_of_empty_cache() -> None:
    told = [
        ("segment_alloc", 0, 2 * MIB),
        ("segment_free", 0, 2 * MIB),
        ("segment_unmap", 9, 2 * MIB),
        ("snapshot", 0, 0),
        ("segment_free", 4, 2 * MIB),
    ]
    assert put(Requests.of(events(*told)), CachingAllocator()) == [1, 4]


@pytest.mark.parametrize(("retried", "num_calls"), [({1}, 0), ({2}, 1)])
def test_what_a_full_device_gave_back_is_not_asked_for_again(retried: set[int], num_calls: int) -> None:
    requests = Requests.of(
        events(("segment_free", 0, 2 * MIB), ("segment_alloc", 0, 4 * MIB), ("alloc", 0, 4 * MIB)), retried
    )
    assert len(requests.steps) == num_calls + 1
    assert requests.num_retries == 1 - num_calls


def test_a_burst_before_anything_else_is_a_call_also_where_the_device_was_full() -> None:
    requests = Requests.of(events(("segment_free", 0, 2 * MIB), ("free_completed", 0, 4 * MIB)), {1})
    assert (len(requests.steps), requests.num_retries) == (1, 0)


def test_events_without_their_block_are_left_out_and_counted() -> None:
    requests = Requests.of(
        events(
            ("free_requested", 0, 512),
            ("free_completed", 0, 512),
            ("alloc", 0, 512),
            ("alloc", 0, 1024),
            ("free_requested", 0, 1024),
            ("free_requested", 0, 1024),
            ("alloc", 0, 2048),
        )
    )
    allocator = CachingAllocator()
    put(requests, allocator)
    assert requests.num_strays == 5
    assert (allocator.allocated, allocator.active) == (2048, 2048)


def test_a_request_that_failed_is_tried_again_and_kept_by_nobody() -> None:
    requests = Requests.of(events(("oom", 0, 50 * MIB), ("alloc", 0, 512)))
    assert requests.is_cut_off
    allocator = CachingAllocator()
    put(requests, allocator)
    assert (allocator.reserved, allocator.active) == (52 * MIB, 512)
    small = CachingAllocator(device_bytes=20 * MIB)
    put(requests, small)
    assert (small.num_ooms, small.active) == (1, 512)


def test_a_request_that_does_not_fit_on_a_smaller_device_is_an_error() -> None:
    requests = Requests.of(events(("alloc", 0, 512), ("alloc", 512, 20 * MIB)))
    steps = requests.put_to(CachingAllocator(device_bytes=20 * MIB))
    assert [next(steps), next(steps)] == [0, 1]
    with pytest.raises(OutOfDeviceMemory):
        next(steps)
