"""Whatever is asked for: a replay of the events has the allocator's counters, and blocks tile their segments."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_memprof.allocator.addresses import DriverAddresses
from ray_memprof.allocator.caching import Block, CachingAllocator, OutOfDeviceMemory
from ray_memprof.allocator.replay import BlockReplay
from ray_memprof.allocator.rules import Rules

MIB = 2**20
PLAIN, NO_SPLIT, OWN = (0, 0), (0, 1), (0, 2)

RULES = st.builds(
    Rules,
    expandable_segments=st.booleans(),
    max_split_bytes=st.sampled_from((None, 20 * MIB, 64 * MIB)),
    divisions=st.sampled_from(((), (4,), (1, 2, 8))),
    large_segment_bytes=st.sampled_from((20 * MIB, 12 * MIB, 64 * MIB)),
    garbage_collection_fraction=st.sampled_from((0.0, 0.3)),
)
SIZES = st.one_of(
    st.integers(1, 4096),
    st.integers(1, 12 * MIB),
    st.integers(9 * MIB, 60 * MIB),
    st.sampled_from((MIB, MIB + 1, 10 * MIB - 512, 10 * MIB, 20 * MIB, 20 * MIB - 512, 40 * MIB)),
)
STEPS = st.one_of(
    st.tuples(st.just("alloc"), SIZES, st.sampled_from((0, 5)), st.sampled_from((PLAIN, PLAIN, PLAIN, NO_SPLIT, OWN))),
    st.tuples(st.just("free"), st.integers(0, 99)),
    st.tuples(st.just("free_later"), st.integers(0, 99)),
    st.tuples(st.just("complete"), st.integers(0, 99)),
    st.tuples(st.just("record_stream"), st.integers(0, 99), st.sampled_from((0, 5, 9))),
    st.tuples(st.just("pass_stream"), st.sampled_from((0, 5, 9))),
    st.tuples(st.just("empty_cache")),
    st.tuples(st.just("configure"), RULES),
)  # fmt: skip


@dataclass
class Program:
    """A program on the allocator, whose events are replayed after each step."""

    allocator: CachingAllocator
    replay: BlockReplay = field(default_factory=BlockReplay)
    used: list[Block] = field(default_factory=list)
    waiting: list[Block] = field(default_factory=list)
    decided: dict[int, int] = field(default_factory=dict)

    def do(self, action: str, *arguments: Any) -> None:
        if action in ("alloc", "empty_cache", "configure", "pass_stream"):
            getattr(self, action)(*arguments)
        elif blocks := self.waiting if action == "complete" else self.used:
            index, *others = arguments
            block = blocks[index % len(blocks)]
            getattr(self.allocator, action)(block, *others)
            if action != "record_stream":
                blocks.remove(block)
            if action == "free_later":
                self.waiting.append(block)

    def alloc(self, *request: Any) -> None:
        try:
            self.used.append(self.allocator.alloc(*request))
        except OutOfDeviceMemory:
            assert self.allocator.device_bytes or self.allocator.allowed_bytes

    def empty_cache(self) -> None:
        self.allocator.empty_cache()

    def configure(self, rules: Rules) -> None:
        self.allocator.configure(rules)

    def pass_stream(self, stream: int) -> None:
        self.allocator.pass_stream(stream)

    def check(self) -> None:
        self.replay_events()
        self.check_limits()
        self.check_segments()

    def replay_events(self) -> None:
        """A replay knows no pools: it is told the sizes of theirs only."""
        allocator, replay = self.allocator, self.replay
        columns = allocator.take_events()
        sizes, columns.size_bytes = columns.size_bytes, []
        columns.span_id = [0] * len(sizes)
        number = replay.num_allocs
        special = {block.address for block in self.used if block.cache.pool != PLAIN}
        for action, address, size in zip(columns.action, columns.address, sizes, strict=True):
            if action == "alloc":
                if address in special:
                    self.decided[number] = size
                number += 1
        replay.rules, replay.decided = allocator.rules, self.decided
        replay.follow(columns)
        assert columns.size_bytes == sizes
        assert (replay.allocated, replay.reserved, replay.active, replay.num_strays) == (
            allocator.allocated, allocator.reserved, allocator.active, 0,
        )  # fmt: skip
        assert (replay.allocated_peak, replay.reserved_peak, replay.active_peak) == (
            allocator.allocated_peak, allocator.reserved_peak, allocator.active_peak,
        )  # fmt: skip

    def check_limits(self) -> None:
        allocator = self.allocator
        assert 0 <= allocator.allocated <= allocator.active <= allocator.reserved
        for limit in (allocator.device_bytes, allocator.allowed_bytes):
            assert limit is None or allocator.reserved <= limit + 64 * MIB * (
                limit is allocator.allowed_bytes
            )
        if allocator.device_bytes is not None:
            assert allocator.reserved <= allocator.device_bytes

    def check_segments(self) -> None:
        segments = self.allocator.segments()
        assert sum(segment["total_size"] for segment in segments) == self.allocator.reserved
        last = 0
        for segment in segments:
            assert segment["address"] >= last
            last = segment["address"] + segment["total_size"]
            at, was_free = segment["address"], False
            for block in segment["blocks"]:
                is_free = block["state"] == "inactive"
                assert block["address"] == at and block["size"] > 0
                assert not (is_free and was_free), "free neighbours are one block"
                at, was_free = at + block["size"], is_free
            assert at == last
        in_use = [b for segment in segments for b in segment["blocks"] if b["state"] != "inactive"]
        assert sum(block["size"] for block in in_use) == self.allocator.active
        primed = BlockReplay()
        primed.prime(segments, 0)
        assert (primed.reserved, primed.active, primed.allocated) == (
            self.allocator.reserved, self.allocator.active, self.allocator.allocated,
        )  # fmt: skip


@given(
    rules=RULES,
    device_bytes=st.sampled_from((None, 80 * MIB, 200 * MIB)),
    allowed_bytes=st.sampled_from((None, None, 100 * MIB)),
    steps=st.lists(STEPS, max_size=60),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_replay_of_the_events_agrees_and_blocks_tile_their_segments(
    rules: Rules, device_bytes: int | None, allowed_bytes: int | None, steps: list[Any]
) -> None:
    allocator = CachingAllocator(rules, device_bytes=device_bytes, allowed_bytes=allowed_bytes)
    allocator.open_pool(NO_SPLIT, splits=False)
    allocator.open_pool(OWN, grows=False)
    program = Program(allocator)
    for step in steps:
        program.do(*step)
        program.check()
    for block in program.used:
        allocator.free(block)
    for pool in (NO_SPLIT, OWN):
        allocator.release_pool(pool)
    allocator.empty_cache()
    program.used.clear()
    program.check()
    assert (allocator.reserved, allocator.segments()) == (0, [])


@given(st.lists(st.one_of(st.integers(1, 40), st.integers(-40, -1)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_addresses_of_the_device_do_not_overlap(changes: list[int]) -> None:
    addresses = DriverAddresses()
    taken: list[tuple[int, int]] = []
    for change in changes:
        if change > 0:
            taken.append((addresses.take(2 * MIB * change), 2 * MIB * change))
        elif taken:
            addresses.give_back(*taken.pop(-change % len(taken)))
        ordered = sorted(taken)
        assert all(
            start + size <= after for (start, size), (after, _) in zip(ordered, ordered[1:], strict=False)
        )
