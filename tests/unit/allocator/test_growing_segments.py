"""The caching allocator where segments can grow: pages, holes, and what is given back."""

from small_allocators import MIB, NEXT, counters, freed, made, told

from ray_memprof.allocator.growing_segments import GROWING_FROM as G
from ray_memprof.allocator.rules import Rules

# --------------------------------------------------------------------------------
# Segments that grow


def test_a_segment_grows_by_whole_pages_and_requests_split_to_512_bytes() -> None:
    allocator = made(expandable_segments=True)
    allocator.alloc(700)
    allocator.alloc(5 * MIB + 1)
    allocator.alloc(20 * MIB)
    assert told(allocator) == [
        ("segment_map", G, 2 * MIB),
        ("alloc", G, 1024),
        ("segment_map", G + NEXT, 20 * MIB),
        ("alloc", G + NEXT, 5 * MIB + 512),
        # 15 MiB are mapped: one page is enough for the others.
        ("segment_map", G + NEXT + 20 * MIB, 20 * MIB),
        ("alloc", G + NEXT + 5 * MIB + 512, 20 * MIB),
    ]
    assert counters(allocator) == (25 * MIB + 1536, 42 * MIB, 25 * MIB + 1536)


def test_each_stream_and_pool_has_a_segment_of_its_own() -> None:
    allocator = made(expandable_segments=True)
    allocator.alloc(512, 3)
    allocator.alloc(512, 4)
    allocator.alloc(512, 3)
    allocator.alloc(512, 3, (0, 7))
    assert [(action, address) for action, address, _ in told(allocator)] == [
        ("segment_map", G), ("alloc", G), ("segment_map", G + NEXT), ("alloc", G + NEXT), ("alloc", G + 512),
        ("segment_map", G + 2 * NEXT), ("alloc", G + 2 * NEXT),
    ]  # fmt: skip


def test_the_page_of_large_segments_is_a_setting() -> None:
    allocator = made(expandable_segments=True, large_segment_bytes=32 * MIB)
    allocator.alloc(33 * MIB)
    assert told(allocator) == [("segment_map", G, 64 * MIB), ("alloc", G, 33 * MIB)]


def test_the_block_at_the_end_counts_as_large_as_it_can_become() -> None:
    """A larger block inside is taken before it; without one, it is."""
    allocator = made(expandable_segments=True)
    first = allocator.alloc(12 * MIB)
    allocator.alloc(4 * MIB)  # 4 MiB are left at the end
    allocator.free(first)
    told(allocator)
    allocator.alloc(3 * MIB)
    allocator.alloc(10 * MIB)  # the rest of the 12 is too small: the end grows
    allocator.alloc(10 * MIB)
    assert told(allocator) == [
        ("alloc", G, 3 * MIB),
        ("segment_map", G + 20 * MIB, 20 * MIB),
        ("alloc", G + 16 * MIB, 10 * MIB),
        ("alloc", G + 26 * MIB, 10 * MIB),
    ]


def test_cache_given_back_is_whole_pages_and_the_hole_is_filled_first() -> None:
    allocator = made(expandable_segments=True)
    low, high = allocator.alloc(50 * MIB), allocator.alloc(30 * MIB)
    allocator.free(low)
    told(allocator)
    allocator.empty_cache()
    # 50 MiB are free from 0 on: two pages; 10 MiB stay. The last page has all but nothing free.
    assert told(allocator) == [("segment_unmap", G, 40 * MIB)]
    assert allocator.segments()[0]["address"] == G + 40 * MIB
    allocator.alloc(45 * MIB)
    # 40 MiB of the hole and 10 behind it are one place: the lowest.
    assert told(allocator) == [("segment_map", G, 40 * MIB), ("alloc", G, 45 * MIB)]
    allocator.free(high)
    allocator.empty_cache()
    assert told(allocator) == [*freed(G + 50 * MIB, 30 * MIB), ("segment_unmap", G + 60 * MIB, 20 * MIB)]
    assert counters(allocator) == (45 * MIB, 60 * MIB, 45 * MIB)


def test_a_hole_that_is_too_small_is_passed_over() -> None:
    allocator = made(expandable_segments=True)
    low = allocator.alloc(20 * MIB)
    allocator.alloc(20 * MIB)
    allocator.free(low)
    allocator.empty_cache()
    told(allocator)
    allocator.alloc(21 * MIB)
    allocator.alloc(19 * MIB)  # the end has 19 MiB
    allocator.alloc(2 * MIB)
    assert told(allocator) == [
        ("segment_map", G + 40 * MIB, 40 * MIB),
        ("alloc", G + 40 * MIB, 21 * MIB),
        ("alloc", G + 61 * MIB, 19 * MIB),
        ("segment_map", G, 20 * MIB),
        ("alloc", G, 2 * MIB),
    ]


def test_holes_side_by_side_are_one_place() -> None:
    allocator = made(expandable_segments=True)
    first, second, _ = (allocator.alloc(20 * MIB) for _ in range(3))
    for block in (second, first):
        allocator.free(block)
        allocator.empty_cache()
    told(allocator)
    allocator.alloc(40 * MIB)
    allocator.alloc(20 * MIB)
    assert told(allocator) == [
        ("segment_map", G, 40 * MIB),
        ("alloc", G, 40 * MIB),
        ("segment_map", G + 60 * MIB, 20 * MIB),
        ("alloc", G + 60 * MIB, 20 * MIB),
    ]


def test_of_equal_blocks_inside_a_segment_that_grows_the_lowest_address_is_taken() -> None:
    allocator = made(expandable_segments=True)
    blocks = [allocator.alloc(5 * MIB) for _ in range(4)]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    assert allocator.alloc(4 * MIB).address == G


def test_a_segment_without_memory_ends_and_another_begins_anew() -> None:
    allocator = made(expandable_segments=True)
    allocator.free(allocator.alloc(20 * MIB))
    allocator.empty_cache()
    assert allocator.segments() == []
    allocator.configure(Rules(expandable_segments=True, large_segment_bytes=40 * MIB))
    allocator.alloc(2 * MIB)
    assert told(allocator)[-2:] == [("segment_map", G, 40 * MIB), ("alloc", G, 2 * MIB)]


def test_while_the_setting_is_off_blocks_of_segments_that_grow_are_left_alone() -> None:
    allocator = made(expandable_segments=True)
    allocator.free(allocator.alloc(8 * MIB))
    allocator.configure(Rules())
    allocator.alloc(8 * MIB)
    allocator.configure(Rules(expandable_segments=True))
    allocator.alloc(8 * MIB)
    # A segment that does not grow is one more cache, which is split finely now.
    allocator.alloc(11 * MIB + 512)
    allocator.alloc(2 * MIB)
    assert told(allocator) == [
        ("segment_map", G, 20 * MIB),
        ("alloc", G, 8 * MIB),
        *freed(G, 8 * MIB),
        ("segment_alloc", 0, 20 * MIB),
        ("alloc", 0, 8 * MIB),
        ("alloc", 8 * MIB, 8 * MIB),
        ("alloc", G, 11 * MIB + 512),
        ("alloc", 16 * MIB, 2 * MIB),
    ]
