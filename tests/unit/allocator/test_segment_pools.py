"""Pools of segments: torch 2.13 names them in events, torch 2.11 only in the segments of snapshots."""

from collections.abc import Sequence
from typing import Any

import pytest

from ray_memprof.allocator.doubt import Pool
from ray_memprof.allocator.segment_pools import SegmentEvent, SegmentPools

MIB = 2**20
GRAPH, SHARED, DEFAULT = (1, 0), (0, 1), (0, 0)


def follow(events: Sequence[SegmentEvent], *segments: dict[str, Any]) -> list[tuple[int, str]]:
    rows = SegmentPools().follow(events, segments)
    return list(zip(rows.seq, rows.pool, strict=True))


def event(seq: int, action: str, address: int, pool: Pool | None, size: int = 2 * MIB) -> SegmentEvent:
    return seq, f"segment_{action}", address * MIB, size, pool


def segment(address: int, pool: Pool | None, size: int = 2 * MIB) -> dict[str, Any]:
    return {"address": address * MIB, "total_size": size, "segment_pool_id": pool}


def test_events_that_name_their_pool() -> None:
    events = [
        event(3, "alloc", 0, DEFAULT),
        event(5, "alloc", 10, GRAPH),
        event(6, "alloc", 20, SHARED),
        event(9, "free", 10, GRAPH),
    ]
    assert follow(events) == [(5, "(1, 0)"), (6, "(0, 1)"), (9, "(1, 0)")]


def test_events_without_a_pool_take_it_from_the_segments_that_are_there_afterwards() -> None:
    events = [event(3, "alloc", 0, None), event(5, "alloc", 10, None), event(6, "alloc", 30, None)]
    there = [segment(0, DEFAULT), segment(10, GRAPH), segment(30, None)]
    assert follow(events, *there) == [(5, "(1, 0)")]


def test_a_segment_that_came_and_went_between_two_snapshots_is_not_that_of_a_later_one() -> None:
    events = [event(1, "alloc", 10, None), event(2, "free", 10, None), event(3, "alloc", 10, None)]
    assert follow(events, segment(10, GRAPH)) == [(3, "(1, 0)")]


def test_what_is_freed_later_is_of_the_pool_that_was_known_before() -> None:
    pools = SegmentPools()
    pools.follow([event(1, "alloc", 10, None)], [segment(10, GRAPH)])
    rows = pools.follow([event(7, "free", 10, None), event(8, "alloc", 10, None)], [segment(10, DEFAULT)])
    assert (rows.seq, rows.pool) == ([7], ["(1, 0)"])


@pytest.mark.parametrize("named", [True, False])
def test_parts_of_an_expandable_segment(named: bool) -> None:
    pool = GRAPH if named else None
    events = [
        event(1, "map", 0, pool, 20 * MIB),
        event(2, "map", 20, pool, 20 * MIB),
        event(4, "unmap", 20, pool, 20 * MIB) if named else event(4, "map", 100, None),
    ]
    there = segment(0, GRAPH, 40 * MIB)
    assert [seq for seq, _ in follow(events, there)] == ([1, 2, 4] if named else [1, 2])
    pools = SegmentPools()
    pools.follow(events[:2], [there])
    assert pools.follow([event(9, "unmap", 30, None)], []).seq == [9]


def test_an_imported_segment_has_its_pool_as_a_pair() -> None:
    there = {"address": 10 * MIB, "total_size": 2 * MIB, "pool": SHARED}
    assert follow([event(-1, "alloc", 10, None)], there) == [(-1, "(0, 1)")]
