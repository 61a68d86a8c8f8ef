"""The caching allocator from requests: each rule as a sequence with all its events; and by chance, against another."""

import random

import pytest
from allocator_model import Model, Settings
from small_allocators import MIB, Falling, Rising, counters, freed, made, told

from ray_memprof.allocator.caching import Block, CachingAllocator, OutOfDeviceMemory
from ray_memprof.allocator.growing_segments import GROWING_FROM as G
from ray_memprof.allocator.replay import Columns
from ray_memprof.allocator.rules import Rules

# --------------------------------------------------------------------------------
# One block


def test_nothing_asked_for_is_nothing_held() -> None:
    allocator = made()
    allocator.empty_cache()
    allocator.synchronize()
    assert allocator.take_events() == Columns()
    assert allocator.segments() == []
    assert counters(allocator) == (0, 0, 0)


def test_a_row_has_what_was_asked_for_what_it_took_and_its_stream() -> None:
    allocator = made()
    allocator.free(allocator.alloc(700, 9))
    assert allocator.take_events() == Columns(
        action=["segment_alloc", "alloc", "free_requested", "free_completed"],
        size_bytes=[2 * MIB, 1024, 1024, 1024],
        requested_bytes=[2 * MIB, 700, 700, 700],
        address=[0] * 4,
        stream=[9] * 4,
    )
    assert allocator.take_events() == Columns()


@pytest.mark.parametrize(
    ("requested", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (21 * MIB, 22 * MIB),
    ],
)
def test_segments_have_the_sizes_that_torch_asks_the_device_for(requested: int, segment: int) -> None:
    allocator = made()
    allocator.alloc(requested)
    assert allocator.reserved == segment


def test_the_segment_for_requests_below_10_mib_is_a_setting() -> None:
    allocator = made(large_segment_bytes=64 * MIB)
    allocator.alloc(2 * MIB)
    assert told(allocator) == [("segment_alloc", 0, 64 * MIB), ("alloc", 0, 2 * MIB)]
    assert allocator.segments()[0]["blocks"][1] == {
        "address": 2 * MIB,
        "size": 62 * MIB,
        "state": "inactive",
    }


# --------------------------------------------------------------------------------
# Which block a request gets


def test_the_smallest_block_that_is_large_enough_is_taken_and_split() -> None:
    allocator = made()
    # Three holes of 4, 3 and 2 MiB, with blocks in use between them.
    sizes = [4 * MIB, 2 * MIB, 3 * MIB, 2 * MIB, 2 * MIB, 5 * MIB]
    blocks = [allocator.alloc(size) for size in sizes]
    for index in (0, 2, 4):
        allocator.free(blocks[index])
    told(allocator)
    allocator.alloc(int(1.5 * MIB))
    allocator.alloc(3 * MIB)
    allocator.alloc(2 * MIB)
    allocator.alloc(MIB + 512)
    assert told(allocator) == [
        # 0.5 MiB is too little for another block of the large pool: all 2 MiB are taken.
        ("alloc", 11 * MIB, 2 * MIB),
        ("alloc", 6 * MIB, 3 * MIB),
        # Of the 4 MiB at 0 and the 2 MiB at the end, these are enough.
        ("alloc", 18 * MIB, 2 * MIB),
        ("alloc", 0, MIB + 512),
    ]


@pytest.mark.parametrize(("addresses", "first"), [(Rising(), 0), (Falling(), 2**40 - 40 * MIB)])
def test_of_equal_blocks_the_lowest_address_is_taken(addresses: Rising, first: int) -> None:
    allocator = CachingAllocator(addresses=addresses)
    for block in [allocator.alloc(20 * MIB), allocator.alloc(20 * MIB)]:
        allocator.free(block)
    assert allocator.alloc(20 * MIB).address == first


def test_small_requests_split_to_the_last_512_bytes() -> None:
    allocator = made()
    allocator.alloc(MIB)
    allocator.alloc(MIB - 512)
    allocator.alloc(1)
    assert told(allocator) == [
        ("segment_alloc", 0, 2 * MIB),
        ("alloc", 0, MIB),
        ("alloc", MIB, MIB - 512),
        ("alloc", 2 * MIB - 512, 512),
    ]


def test_a_freed_block_joins_its_free_neighbours_but_no_other_segment() -> None:
    allocator = made()
    first, second = allocator.alloc(10 * MIB), allocator.alloc(10 * MIB)
    allocator.free(first)
    allocator.free(second)
    assert [segment["blocks"] for segment in allocator.segments()] == [
        [{"address": 0, "size": 10 * MIB, "state": "inactive"}],
        [{"address": 10 * MIB, "size": 10 * MIB, "state": "inactive"}],
    ]
    parts = [allocator.alloc(2 * MIB) for _ in range(5)]
    for index in (0, 2, 1, 4, 3):
        allocator.free(parts[index])
    assert len(allocator.segments()[0]["blocks"]) == 1
    assert counters(allocator) == (0, 20 * MIB, 0)


def test_pools_of_size_streams_and_programs_share_no_block() -> None:
    allocator = made()
    for request in ((512, 0), (512, 5), (2 * MIB, 0), (2 * MIB, 5)):
        allocator.free(allocator.alloc(*request))
    allocator.free(allocator.alloc(512, 0, (0, 1)))
    assert allocator.reserved == 3 * 2 * MIB + 2 * 20 * MIB
    # Each finds its own again.
    told(allocator)
    for request in ((512, 0), (512, 5), (2 * MIB, 0), (2 * MIB, 5)):
        allocator.alloc(*request)
    allocator.alloc(512, 0, (0, 1))
    assert [address for _, address, _ in told(allocator)] == [0, 2 * MIB, 4 * MIB, 24 * MIB, 44 * MIB]
    assert [(one["stream"], one["pool"]) for one in allocator.segments()] == [
        (0, (0, 0)), (5, (0, 0)), (0, (0, 0)), (5, (0, 0)), (0, (0, 1)),
    ]  # fmt: skip


def test_divisions_round_requests_up() -> None:
    allocator = made(divisions=(4,))
    allocator.alloc(5 * MIB + 1)
    assert told(allocator)[-1] == ("alloc", 0, 6 * MIB)


# --------------------------------------------------------------------------------
# Blocks that are kept whole


def test_blocks_from_the_limit_on_are_kept_for_large_requests() -> None:
    allocator = made(max_split_bytes=20 * MIB)
    large = allocator.alloc(40 * MIB)
    allocator.free(large)
    allocator.alloc(19 * MIB)  # of 20 MiB, which it keeps
    allocator.alloc(20 * MIB)  # 20 MiB would be left over: not below the limit for that
    allocator.alloc(20 * MIB + 1)  # takes all 40
    assert told(allocator) == [
        ("segment_alloc", 0, 40 * MIB),
        ("alloc", 0, 40 * MIB),
        *freed(0, 40 * MIB),
        ("segment_alloc", 40 * MIB, 20 * MIB),
        ("alloc", 40 * MIB, 20 * MIB),
        ("segment_alloc", 60 * MIB, 20 * MIB),
        ("alloc", 60 * MIB, 20 * MIB),
        ("alloc", 0, 40 * MIB),
    ]


def test_on_a_full_device_whole_blocks_are_given_back_but_not_more_than_needed() -> None:
    """One that is large enough; or else several, from the largest down."""
    allocator = made(max_split_bytes=20 * MIB, device_bytes=200 * MIB)
    blocks = [allocator.alloc(size * MIB) for size in (30, 60, 20, 40, 50)]
    for block in blocks:
        allocator.free(block)
    told(allocator)
    kept = allocator.alloc(34 * MIB)  # less than 20 MiB of the 40 would be left over
    allocator.free(kept)
    allocator.alloc(80 * MIB)
    assert told(allocator) == [
        ("alloc", 110 * MIB, 40 * MIB),
        *freed(110 * MIB, 40 * MIB),
        ("segment_free", 30 * MIB, 60 * MIB),
        ("segment_free", 150 * MIB, 50 * MIB),
        ("segment_alloc", 200 * MIB, 80 * MIB),
        ("alloc", 200 * MIB, 80 * MIB),
    ]
    assert allocator.num_retries == 0
    # 90 MiB are there, unused, and 30 free on the device. The 40 alone are enough.
    allocator.alloc(65 * MIB)
    assert told(allocator)[:2] == [
        ("segment_free", 110 * MIB, 40 * MIB),
        ("segment_free", 0, 30 * MIB),
    ]


@pytest.mark.parametrize(("wanted", "num_retries", "reserved"), [(60, 0, 72), (61, 1, 62)])
def test_whole_blocks_that_are_just_enough_keep_the_cache_of_others(
    wanted: int, num_retries: int, reserved: int
) -> None:
    """GIVEN 60 MiB in whole blocks and a cache of small blocks: for 60 MiB it stays, and for more all is given back."""
    allocator = made(max_split_bytes=20 * MIB, device_bytes=72 * MIB)
    blocks = [allocator.alloc(size) for size in (40 * MIB, 20 * MIB, 10 * MIB, MIB)]
    for block in blocks:
        allocator.free(block)
    allocator.alloc(wanted * MIB)
    assert (allocator.num_retries, allocator.num_ooms) == (num_retries, 0)
    assert allocator.reserved == reserved * MIB


def test_pages_are_not_given_back_for_a_limit_of_splitting() -> None:
    allocator = made(max_split_bytes=20 * MIB, expandable_segments=True, device_bytes=100 * MIB)
    allocator.free(allocator.alloc(40 * MIB))
    allocator.configure(Rules(max_split_bytes=20 * MIB))
    allocator.free(allocator.alloc(30 * MIB))
    told(allocator)
    allocator.alloc(62 * MIB)
    # The 30 are not enough, and the pages come back only with all of the cache.
    assert told(allocator) == [
        ("segment_free", 0, 30 * MIB),
        ("segment_unmap", G, 40 * MIB),
        ("segment_alloc", 30 * MIB, 62 * MIB),
        ("alloc", 30 * MIB, 62 * MIB),
    ]
    assert allocator.num_retries == 1


# --------------------------------------------------------------------------------
# Other streams


def test_a_block_that_another_stream_uses_comes_back_at_a_request_after_that() -> None:
    allocator = made()
    block = allocator.alloc(MIB)
    allocator.record_stream(block, 5)
    allocator.record_stream(block, 6)
    allocator.free(block)
    assert counters(allocator) == (0, 2 * MIB, MIB)
    told(allocator)
    other = allocator.alloc(MIB)
    allocator.pass_stream(5)
    allocator.free(other)
    allocator.alloc(512)  # 6 has not passed
    allocator.pass_stream(6)
    allocator.pass_stream(7)  # for which nothing waits
    assert told(allocator) == [
        ("alloc", MIB, MIB), *freed(MIB, MIB), ("alloc", MIB, 512),
    ]  # fmt: skip
    allocator.alloc(512)
    assert told(allocator) == [("free_completed", 0, MIB), ("alloc", MIB + 512, 512)]


def test_the_stream_of_the_request_is_no_other_stream() -> None:
    allocator = made()
    block = allocator.alloc(512, 5)
    allocator.record_stream(block, 5)
    allocator.free(block)
    assert allocator.active == 0


def test_a_stream_passes_what_waits_until_then() -> None:
    allocator = made()
    blocks = [allocator.alloc(512) for _ in range(2)]
    for block in blocks:
        allocator.record_stream(block, 5)
    allocator.free(blocks[0])
    allocator.synchronize()
    allocator.free(blocks[1])
    told(allocator)
    allocator.alloc(512)
    assert told(allocator) == [("free_completed", 0, 512), ("alloc", 0, 512)]
    allocator.synchronize()
    allocator.alloc(512)
    assert told(allocator) == [("free_completed", 512, 512), ("alloc", 512, 512)]


def test_a_block_that_waits_is_joined_with_nothing_and_the_cache_waits_for_it() -> None:
    allocator = made()
    first, second = allocator.alloc(MIB), allocator.alloc(MIB)
    allocator.record_stream(first, 5)
    allocator.free(first)
    allocator.free(second)
    assert [block["state"] for block in allocator.segments()[0]["blocks"]] == [
        "active_pending_free", "inactive",
    ]  # fmt: skip
    told(allocator)
    allocator.empty_cache()
    assert told(allocator) == [("free_completed", 0, MIB), ("segment_free", 0, 2 * MIB)]
    # Nobody waits any more.
    allocator.synchronize()
    allocator.alloc(MIB)
    assert told(allocator) == [("segment_alloc", 2 * MIB, 2 * MIB), ("alloc", 2 * MIB, MIB)]


def test_a_stream_that_had_passed_when_the_cache_was_given_back_is_forgotten() -> None:
    allocator = made()
    block = allocator.alloc(512)
    allocator.record_stream(block, 5)
    allocator.free(block)
    allocator.synchronize()
    allocator.empty_cache()
    told(allocator)
    allocator.alloc(512)
    assert told(allocator) == [("segment_alloc", 2 * MIB, 2 * MIB), ("alloc", 2 * MIB, 512)]


def test_a_recorded_wait_ends_when_it_did_or_when_the_cache_is_given_back() -> None:
    allocator = made()
    first, second = allocator.alloc(MIB), allocator.alloc(MIB)
    allocator.free_later(first)
    allocator.free_later(second)
    allocator.complete(first)
    allocator.empty_cache()
    allocator.complete(second)
    allocator.complete(second)
    assert told(allocator)[3:] == [
        ("free_requested", 0, MIB),
        ("free_requested", MIB, MIB),
        ("free_completed", 0, MIB),
        ("free_completed", MIB, MIB),
        ("segment_free", 0, 2 * MIB),
    ]


# --------------------------------------------------------------------------------
# Pools of the program's own


def test_a_pool_may_split_nothing() -> None:
    allocator = made()
    allocator.open_pool((1, 0), splits=False)
    allocator.alloc(2 * MIB, 0, (1, 0))
    allocator.alloc(2 * MIB)
    assert [size for action, _, size in told(allocator) if action == "alloc"] == [20 * MIB, 2 * MIB]


def test_segments_of_a_pool_with_an_allocator_of_its_own_do_not_grow() -> None:
    allocator = made(expandable_segments=True)
    allocator.open_pool((1, 0), grows=False)
    allocator.alloc(19 * MIB + 512, 0, (1, 0))
    allocator.alloc(2 * MIB, 0, (0, 2))
    assert told(allocator) == [
        ("segment_alloc", 0, 20 * MIB),
        ("alloc", 0, 20 * MIB),
        ("segment_map", G, 20 * MIB),
        ("alloc", G, 2 * MIB),
    ]


def test_unused_segments_of_a_pool_are_kept_until_it_is_released() -> None:
    allocator = made()
    allocator.free(allocator.alloc(2 * MIB, 0, (0, 1)))
    allocator.free(allocator.alloc(512, 0, (0, 1)))
    told(allocator)
    allocator.empty_cache()
    assert told(allocator) == []
    allocator.release_pool((0, 1))
    allocator.empty_cache()
    assert told(allocator) == [("segment_free", 20 * MIB, 2 * MIB), ("segment_free", 0, 20 * MIB)]


def test_a_request_of_a_pool_does_not_give_the_cache_back() -> None:
    allocator = made(device_bytes=30 * MIB)
    allocator.free(allocator.alloc(20 * MIB))
    with pytest.raises(OutOfDeviceMemory):
        allocator.alloc(20 * MIB, 0, (0, 1))
    assert (allocator.num_retries, allocator.reserved) == (0, 20 * MIB)


# --------------------------------------------------------------------------------
# Against an allocator that was written without this one


SPECIAL = (0, 1)
"""A pool that splits nothing."""


class Twin:
    """Asks both for the same, by chance, and compares counters, actions and addresses after each operation."""

    def __init__(self, seed: int, max_split: int | None, divisions: int) -> None:
        self.chance = random.Random(seed)
        self.model = Model(Settings(max_split=max_split, divisions=divisions), no_split=frozenset({SPECIAL}))
        self.allocator = CachingAllocator(
            Rules(max_split_bytes=max_split, divisions=(divisions,) if divisions else ()),
            addresses=Rising(2**45),
        )
        self.allocator.open_pool(SPECIAL, splits=False)
        self.allocator.release_pool(SPECIAL)
        self.used: list[Block] = []
        self.waiting: list[Block] = []
        self.num_seen = 0

    def step(self) -> None:
        dice, chance = self.chance.random(), self.chance
        if dice < 0.5 or not self.used:
            size = chance.choice(
                (int(2 ** chance.uniform(4, 25)), 20 * MIB - int(2 ** chance.uniform(0, 21)))
            )
            pool, stream = chance.choice(((0, 0), (0, 0), SPECIAL)), chance.choice((0, 7))
            self.model.alloc(size, pool, stream)
            self.used.append(self.allocator.alloc(size, stream, pool))
        elif dice < 0.8:
            index = chance.randrange(len(self.used))
            self.model.free(index)
            self.allocator.free(self.used.pop(index))
        elif dice < 0.9:
            index = chance.randrange(len(self.used))
            self.model.free(index, waits=True)
            self.allocator.free_later(self.used[index])
            self.waiting.append(self.used.pop(index))
        elif dice < 0.97 and self.waiting:
            index = chance.randrange(len(self.waiting))
            self.model.complete(index)
            self.allocator.complete(self.waiting.pop(index))
        elif dice >= 0.97:
            while self.waiting:
                self.model.complete(0)
                self.waiting.pop(0)
            self.model.empty_cache()
            self.allocator.empty_cache()

    def compare(self) -> None:
        events, mine = self.model.events[self.num_seen :], self.allocator.take_events()
        self.num_seen = len(self.model.events)
        assert sorted(zip(mine.action, mine.address, strict=True)) == sorted(
            (event["action"], event["addr"]) for event in events
        )
        model = self.model
        assert counters(self.allocator) == (model._allocated, model._reserved, model._active)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("max_split", "divisions"), [(None, 0), (20 * MIB, 0), (None, 4), (30 * MIB, 8)])
def test_another_allocator_makes_the_same_blocks_at_the_same_addresses(
    max_split: int | None, divisions: int, seed: int
) -> None:
    twin = Twin(seed, max_split, divisions)
    for _ in range(400):
        twin.step()
        twin.compare()
    assert twin.num_seen > 500
