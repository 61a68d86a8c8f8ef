"""Blocks rebuilt from events equal the allocator's counters, shown against an allocator written here."""

import random

import pytest
from simple_allocator import MIB, SEGMENT, Allocator, Block, event

from ray_memprof.allocator.replay import (
    BlockReplay,
    Columns,
    Event,
    Peaks,
    Replay,
)
from ray_memprof.allocator.rules import Rules


def counters(replay: Replay) -> tuple[int, int, int]:
    return replay.allocated, replay.reserved, replay.active


def fed(*events: Event, **rules: object) -> BlockReplay:
    replay = BlockReplay(rules=Rules(**rules))  # type: ignore[arg-type]
    replay.feed(events)
    return replay


# --------------------------------------------------------------------------------
# One event at a time


def test_nothing_recorded_is_nothing_held() -> None:
    replay = BlockReplay()
    assert replay.feed([]) == Columns()
    assert counters(replay) == (0, 0, 0)
    assert (replay.num_events, replay.num_allocs, replay.num_strays, replay.peaks) == (0, 0, 0, {})


def test_a_row_has_what_was_asked_for_and_what_it_took() -> None:
    replay = BlockReplay(category_of={3: "weight"}.__getitem__)
    columns = replay.feed(
        [
            event("segment_alloc", 0, 2 * MIB, span="3"),
            event("alloc", 0, 700, span="3", stream=2**64 - 1),
            event("free_requested", 0, 700),
            event("free_completed", 0, 700),
        ]
    )
    assert columns == Columns(
        seq=[0, 1, 2, 3],
        t_ns=[7000] * 4,
        action=["segment_alloc", "alloc", "free_requested", "free_completed"],
        size_bytes=[2 * MIB, 1024, 1024, 1024],
        requested_bytes=[2 * MIB, 700, 700, 700],
        address=[0] * 4,
        stream=[0, 2**64 - 1, 0, 0],
        span_id=[3, 3, 0, 0],
        category=[None, "weight", "weight", "weight"],
    )


@pytest.mark.parametrize(
    ("requested", "taken", "why"),
    [
        (1, 512, "the small pool rounds up to 512 bytes"),
        (MIB, MIB, "the small pool splits whatever is left"),
        (2 * MIB - 512, 2 * MIB, "512 bytes stay with a block of the large pool"),
        (MIB + 512, 2 * MIB, "so does all but a MiB"),
    ],
)
def test_what_a_segment_of_2_mib_gives(requested: int, taken: int, why: str) -> None:
    replay = fed(event("segment_alloc", 0, 2 * MIB), event("alloc", 0, requested))
    assert counters(replay) == (taken, 2 * MIB, taken), why


@pytest.mark.parametrize(
    ("rest", "is_split"),
    [(512, False), (MIB, False), (MIB + 512, True)],
)
@pytest.mark.parametrize("expandable", [False, True])
def test_the_large_pool_keeps_up_to_a_mib_and_an_expandable_segment_nothing(
    rest: int, is_split: bool, expandable: bool
) -> None:
    start = event("segment_map" if expandable else "segment_alloc", 0, SEGMENT)
    replay = fed(start, event("alloc", 0, SEGMENT - rest), expandable_segments=expandable)
    assert replay.allocated == (SEGMENT - rest if is_split or expandable else SEGMENT)


def test_requests_above_max_split_bytes_keep_the_whole_block() -> None:
    replay = fed(event("segment_alloc", 0, SEGMENT), event("alloc", 0, 8 * MIB), max_split_bytes=8 * MIB)
    assert replay.allocated == SEGMENT


def test_the_rule_of_splitting_comes_with_the_settings() -> None:
    replay = BlockReplay()
    replay.configure({"expandable_segments": False, "max_split_size": 8 * MIB})
    replay.feed([event("segment_alloc", 0, SEGMENT), event("alloc", 0, 8 * MIB)])
    assert replay.allocated == SEGMENT

    replay.configure({"expandable_segments": True, "max_split_size": -1})
    replay.feed([event("segment_map", SEGMENT, SEGMENT), event("alloc", SEGMENT, SEGMENT - 512)])
    assert replay.allocated == SEGMENT + SEGMENT - 512


def test_freed_neighbours_merge_so_that_a_request_fits_again() -> None:
    replay = fed(event("segment_alloc", 0, SEGMENT))
    for address in (0, 4 * MIB, 8 * MIB):
        replay.feed([event("alloc", address, 4 * MIB)])
    # The middle block is freed last: it has a free block on either side.
    for address in (0, 8 * MIB, 4 * MIB):
        replay.feed([event("free_requested", address, 4 * MIB), event("free_completed", address, 4 * MIB)])
    replay.feed([event("alloc", 0, SEGMENT)])
    assert (counters(replay), replay.num_strays) == ((SEGMENT, SEGMENT, SEGMENT), 0)


def test_adjacent_segments_do_not_merge() -> None:
    # GIVEN two cudaMalloc segments side by side, each used as a whole and freed
    replay = fed(event("segment_alloc", 0, 2 * MIB), event("segment_alloc", 2 * MIB, 2 * MIB))
    for address in (0, 2 * MIB):
        replay.feed([event("alloc", address, 2 * MIB)])
    for address in (2 * MIB, 0):
        replay.feed([event("free_requested", address, 2 * MIB), event("free_completed", address, 2 * MIB)])
    # WHEN the allocator gives them back one by one THEN each is a block of its own
    replay.feed([event("segment_free", 0, 2 * MIB), event("segment_free", 2 * MIB, 2 * MIB)])
    assert (counters(replay), replay.num_strays) == ((0, 0, 0), 0)


def test_a_block_that_another_stream_still_reads_is_active_but_not_allocated() -> None:
    replay = fed(event("segment_alloc", 0, 2 * MIB), event("alloc", 0, 512), event("free_requested", 0, 512))
    assert counters(replay) == (0, 2 * MIB, 512)
    replay.feed([event("free_completed", 0, 512)])
    assert counters(replay) == (0, 2 * MIB, 0)


def test_an_expandable_segment_grows_and_gives_back_from_its_middle() -> None:
    # GIVEN four mapped pages, the outer halves of the first and the last in use
    replay = fed(
        event("segment_map", 0, 2 * MIB),
        event("alloc", 0, MIB),
        event("segment_map", 2 * MIB, 6 * MIB),
        event("alloc", MIB, 6 * MIB),
        event("alloc", 7 * MIB, MIB),
        event("free_requested", MIB, 6 * MIB),
        event("free_completed", MIB, 6 * MIB),
        expandable_segments=True,
    )
    assert counters(replay) == (2 * MIB, 8 * MIB, 2 * MIB)
    # WHEN the two whole pages of the free block in the middle are unmapped
    replay.feed([event("segment_unmap", 2 * MIB, 4 * MIB)])
    # THEN the free halves of pages at either end of it are there still
    assert counters(replay) == (2 * MIB, 4 * MIB, 2 * MIB)
    replay.feed([event("alloc", MIB, MIB), event("alloc", 6 * MIB, MIB)])
    assert (counters(replay), replay.num_strays) == ((4 * MIB, 4 * MIB, 4 * MIB), 0)


def test_it_starts_from_what_was_held_before() -> None:
    blocks = [
        {"address": 0, "size": MIB, "requested_size": MIB - 1, "state": "active_allocated"},
        {"address": MIB, "size": 512, "state": "active_pending_free"},
        {"address": MIB + 512, "size": MIB - 512, "state": "inactive"},
    ]
    replay = BlockReplay()
    columns = replay.prime([{"address": 0, "total_size": 2 * MIB, "stream": 3, "blocks": blocks}], 70)
    assert columns == Columns(
        seq=[-4, -3, -2, -1],  # no events: what was held before the first
        t_ns=[70] * 4,
        action=["segment_alloc", "alloc", "alloc", "free_requested"],
        size_bytes=[2 * MIB, MIB, 512, 512],
        requested_bytes=[2 * MIB, MIB - 1, 512, 512],
        address=[0, 0, MIB, MIB],
        stream=[3] * 4,
        span_id=[0] * 4,
        category=["before"] * 4,
    )
    assert counters(replay) == (MIB, 2 * MIB, MIB + 512)
    assert (replay.allocated_peak, replay.reserved_peak, replay.active_peak) == counters(replay)

    columns = replay.feed(
        [
            event("free_completed", MIB, 512),
            event("alloc", MIB, MIB),
            event("free_requested", 0, MIB),
        ]
    )
    assert (counters(replay), replay.num_strays) == ((MIB, 2 * MIB, 2 * MIB), 0)
    assert (columns.seq, columns.category) == ([0, 1, 2], ["before", "activation", "before"])
    assert (replay.num_events, replay.num_allocs) == (3, 1)


@pytest.mark.parametrize(
    "stray",
    [
        event("alloc", 0, 512),
        event("free_requested", 0, 512),
        event("free_completed", 0, 512),
        event("segment_free", 0, 2 * MIB),
        event("segment_unmap", 0, 2 * MIB),
    ],
    ids=lambda stray: str(stray["action"]),
)
def test_an_event_without_its_block_is_counted(stray: Event) -> None:
    replay = fed(stray)
    assert (replay.num_strays, replay.num_events) == (1, 1)


def test_running_out_of_memory_is_an_event_without_an_address() -> None:
    out = {
        "action": "oom",
        "size": 5 * MIB,
        "device_free": 3,
        "stream": 0,
        "time_us": 1,
        "user_metadata": "2",
    }
    replay = BlockReplay()
    columns = replay.feed([out])
    assert (columns.action, columns.address, columns.size_bytes) == (["oom"], [3], [5 * MIB])
    assert columns.category == [None]
    assert (counters(replay), replay.num_strays) == ((0, 0, 0), 0)


def test_each_span_has_the_peaks_of_its_own_events() -> None:
    replay = fed(
        event("segment_alloc", 0, 2 * MIB, span="1"),
        event("alloc", 0, 1024, span="1"),
        event("alloc", 1024, 512, span="2"),
        event("free_requested", 1024, 512, span="2"),
        event("free_completed", 1024, 512, span="2"),
        event("free_requested", 0, 1024, span="text that somebody else set"),
        event("free_completed", 0, 1024, span=""),
    )
    assert replay.peaks == {
        1: Peaks(1024, 2 * MIB, 1024),
        2: Peaks(1536, 2 * MIB, 1536),
        0: Peaks(0, 2 * MIB, 1024),
    }
    assert (replay.allocated_peak, replay.reserved_peak, replay.active_peak) == (1536, 2 * MIB, 1536)


def test_peaks_take_in_others() -> None:
    peaks = Peaks()
    peaks.fold(1, 5, 2)
    peaks.fold(3, 4, 2)
    assert peaks == Peaks(3, 5, 2)


def test_a_free_has_the_category_of_its_allocation() -> None:
    replay = BlockReplay(category_of={1: "weight", 2: "cache"}.__getitem__)
    columns = replay.feed(
        [
            event("segment_alloc", 0, 2 * MIB, span="2"),
            event("alloc", 0, 512, span="1"),
            event("free_requested", 0, 512, span="2"),
            event("free_completed", 0, 512, span="2"),
        ]
    )
    assert columns.category == [None, "weight", "weight", "weight"]


def test_stacks_are_numbered_where_they_are_taken() -> None:
    replay = BlockReplay(stack_of=lambda event: event.get("frames"))
    columns = replay.feed([event("segment_alloc", 0, 2 * MIB), {**event("alloc", 0, 512), "frames": 4}])
    assert columns.stack_id == [None, 4]


def test_host_tensors_count_as_they_are() -> None:
    replay = Replay()
    columns = replay.feed([event("alloc", 1, 700), event("alloc", 2, 3)])
    assert (columns.size_bytes, counters(replay)) == ([700, 3], (703, 703, 703))
    replay.feed([event("free_requested", 1, 700), event("free_completed", 1, 700)])
    assert (counters(replay), replay.allocated_peak, replay.num_allocs) == ((3, 3, 3), 703, 2)


# --------------------------------------------------------------------------------
# Against an allocator


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_replay_equals_an_allocators_counters_after_every_event(seed: int, expandable: bool) -> None:
    chance = random.Random(seed)
    replay = BlockReplay(rules=Rules(expandable_segments=expandable))
    peaks = [0, 0, 0]

    def check(told: Event) -> None:
        replay.feed([told])
        # The allocator changes its counters before it reports events; it reports an allocation's segments one by one.
        now = (allocator.allocated, allocator.reserved, allocator.active)
        assert counters(replay) == now, (replay.num_events, told)
        peaks[:] = map(max, peaks, now)

    allocator = Allocator(check, expandable=expandable)
    used: list[Block] = []
    waiting: list[Block] = []
    for _ in range(600):
        dice = chance.random()
        if dice < 0.5 or not used:
            used.append(allocator.alloc(int(2 ** chance.uniform(0, 25))))
        elif dice < 0.9:
            block = used.pop(chance.randrange(len(used)))
            allocator.request_free(block)
            waiting.append(block)
        elif dice < 0.92:
            allocator.empty_cache()
        while waiting and chance.random() < 0.7:
            allocator.complete_free(waiting.pop())
    for block in used:
        allocator.request_free(block)
    for block in used + waiting:
        allocator.complete_free(block)
    allocator.empty_cache()
    assert counters(replay) == (0, 0, 0)
    assert [replay.allocated_peak, replay.reserved_peak, replay.active_peak] == peaks
    assert replay.num_strays == 0
