"""Imports of random allocator histories: curves equal the truth at every event, or are called inexact with a bound."""

import random
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from allocator_model import DEFAULT, VERSIONS, Model, Scenario, Settings, Version, play
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshots import write

from ray_memprof.allocator.replay import BlockReplay, Columns
from ray_memprof.formats.torch_snapshot.certainty import Followed, follow
from ray_memprof.formats.torch_snapshot.events_to_rows import Written
from ray_memprof.formats.torch_snapshot.read import _read, _segments, _settings
from ray_memprof.formats.torch_snapshot.spool import Spool

MIB = 2**20
PRIVATE, OWN = (0, 1), (0, 2)
Curve = list[tuple[int, int, int]]


class Curves:
    """In place of Rows: keeps the curves of an import, event by event."""

    def __init__(self) -> None:
        self.replay = BlockReplay()
        self.curve: Curve = []

    def write(
        self, at_start: Iterable[Mapping[str, Any]], chunks: Iterable[Any], stacks: object, **pools: object
    ) -> Written:
        replay = self.replay
        replay.prime(at_start, 0)
        self.curve = [(replay.allocated, replay.reserved, replay.active)]
        for chunk in chunks:
            actions = [chunk.actions[number] for number in chunk.action]
            for one in zip(actions, chunk.address.tolist(), chunk.size.tolist(), strict=True):
                action, address, size = one
                replay.follow(
                    Columns(action=[action], address=[address], requested_bytes=[size], span_id=[0])
                )
                self.curve.append((replay.allocated, replay.reserved, replay.active))
        peaks = replay.allocated_peak, replay.reserved_peak
        return Written(replay.num_events, 0, 0, *peaks, replay.num_allocs)

    def discard(self) -> None:
        """Nothing is on disk."""


def imported(content: dict[str, Any], folder: Path) -> tuple[Followed, Curve]:
    """What an import makes of a snapshot."""
    spools: dict[int, Spool] = {}
    path = write(folder / "snapshot.pickle", content)
    closing = ExitStack()
    snapshot, stacks = _read(path, folder, spools, closing)
    spool = spools.get(0) or Spool(folder)
    spool.stack_ids = stacks.ids
    made: list[Curves] = []

    def make_rows() -> Curves:
        made.append(Curves())
        return made[-1]

    segments = _segments(path, snapshot)[0].get(0, [])
    settings = _settings(snapshot.get("allocator_settings"))
    followed = follow(make_rows, spool, segments, settings, stacks.frames)  # type: ignore[arg-type]
    spool.close()
    closing.close()
    return followed, made[-1].curve


def off_by(curve: Curve, truth: Curve) -> int:
    """The largest difference at any moment of any curve."""
    assert len(curve) == len(truth)
    return max(
        abs(a - b) for one, other in zip(curve, truth, strict=True) for a, b in zip(one, other, strict=True)
    )


def check(model: Model, version: Version, start: int, folder: Path, *, may_hide: bool = False) -> Followed:
    """An import is right, or says by how much it may be off; and that the peak may lie before it.

    Args:
        model: the truth.
        version: of torch that writes it.
        start: number of the first event in the ring.
        folder: for files.
        may_hide: a setting was changed, perhaps with no trace in what the ring still has.
    """
    followed, curve = imported(model.snapshot(version, start), folder)
    written, truth = followed.written, model.counters[start:]
    if followed.doubt.everything or followed.doubt.setting or not may_hide:
        assert off_by(curve, truth) <= written.inexact_bytes
    assert written.peak_at_least == (model.counters[start][1] > 0)
    assert written.max_error_bytes <= written.inexact_bytes
    return followed


def fit(scenario: Scenario, version: Version) -> Scenario:
    """Without what that version cannot do."""
    if not version.user_pools:
        scenario = replace(scenario, no_split=frozenset(), own=frozenset())
    if not version.expandable:
        scenario = replace(scenario, settings=replace(scenario.settings, expandable=False), toggles=False)
    return scenario


SCENARIOS = st.builds(
    Scenario,
    settings=st.builds(
        Settings,
        expandable=st.booleans(),
        max_split=st.sampled_from((None, 25 * MIB)),
        divisions=st.sampled_from((0, 2, 8)),
        by_segment=st.booleans(),
    ),
    no_split=st.sampled_from((frozenset(), frozenset({PRIVATE}), frozenset({OWN}))),
    own=st.sampled_from((frozenset(), frozenset({OWN}))),
    pools=st.sampled_from(((DEFAULT,), (DEFAULT, PRIVATE), (DEFAULT, PRIVATE, OWN), (DEFAULT, OWN))),
    streams=st.sampled_from(((0,), (0, 2**64 - 2))),
    toggles=st.booleans(),
)


HISTORIES = {
    "version": st.sampled_from(VERSIONS),
    "seed": st.integers(0, 2**32),
    "operations": st.integers(1, 120),
    "late": st.floats(0, 1),
}
FAST = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def first_of(model: Model, late: float) -> int:
    """The number of the first event in a ring: mostly, earlier ones were lost."""
    return 0 if late < 0.3 else int(late * (len(model.events) - 1))


@given(scenario=SCENARIOS, **HISTORIES)
@settings(FAST, max_examples=150)
def test_an_import_is_right_or_says_by_how_much_it_may_be_off(
    tmp_path: Path, scenario: Scenario, version: Version, seed: int, operations: int, late: float
) -> None:
    model = play(seed, fit(scenario, version), operations)
    # What was switched on again, after no segment was made without it, leaves no trace.
    may_hide = scenario.toggles and model.settings.expandable
    check(model, version, first_of(model, late), tmp_path, may_hide=may_hide)


@given(scenario=SCENARIOS, **HISTORIES)
@settings(FAST, max_examples=50)
def test_limits_that_are_changed_meanwhile_make_it_inexact_where_they_show(
    tmp_path: Path, scenario: Scenario, version: Version, seed: int, operations: int, late: float
) -> None:
    model = play(seed, replace(fit(scenario, version), changes=True), operations)
    followed, curve = imported(model.snapshot(version, start := first_of(model, late)), tmp_path)
    if followed.doubt.everything:
        assert off_by(curve, model.counters[start:]) <= followed.written.inexact_bytes


@given(
    expandable=st.booleans(),
    limit=st.sampled_from((None, 25 * MIB)),
    steps=st.sampled_from((0, 4)),
    **HISTORIES,
)
@settings(FAST, max_examples=50)
def test_a_program_that_sets_its_allocator_once_is_exact_from_its_beginning(
    tmp_path: Path, expandable: bool, limit: int | None, steps: int, version: Version, seed: int, **_: Any
) -> None:
    version = VERSIONS[-1] if not version.settings else version
    scenario = Scenario(Settings(expandable, limit, steps), streams=(0, 7))
    followed = check(play(seed, scenario, 120), version, 0, tmp_path)
    assert (followed.written.inexact_bytes, followed.written.peak_at_least, followed.problems("a")) == (
        0,
        False,
        [],
    )


def test_nothing_at_all(tmp_path: Path) -> None:
    model = Model(Settings())
    model.alloc(1)
    followed = check(model, VERSIONS[-1], 0, tmp_path)
    assert followed.written.inexact_bytes == 0


# --------------------------------------------------------------------------------
# Histories by hand


def told(action: str, address: int, size: int, **more: Any) -> dict[str, Any]:
    return {"action": action, "addr": address, "size": size, "stream": 0, "time_us": 1, **more}


def freed(address: int, size: int) -> list[dict[str, Any]]:
    return [told("free_requested", address, size), told("free_completed", address, size)]


def dumped(
    events: list[dict[str, Any]], segments: list[dict[str, Any]], *, expandable: bool = False
) -> dict[str, Any]:
    """A snapshot of torch 2.11."""
    settings = {"PYTORCH_CUDA_ALLOC_CONF": "", "max_split_size": -1, "roundup_power2_divisions": {}}
    return {
        "device_traces": [events],
        "segments": segments,
        "allocator_settings": {**settings, "expandable_segments": expandable},
    }


def segment(
    address: int, *blocks: tuple[int, int, str], pool: tuple[int, int] = DEFAULT, **more: Any
) -> dict[str, Any]:
    """Blocks: (size, requested, state)."""
    placed, at = [], address
    for size, requested, state in blocks:
        placed.append({"address": at, "size": size, "requested_size": requested, "state": state})
        at += size
    return {
        "device": 0, "address": address, "total_size": at - address, "stream": 0, "segment_pool_id": pool,
        "is_expandable": False, "blocks": placed, **more,
    }  # fmt: skip


FREE, USED = "inactive", "active_allocated"


def test_the_setting_was_switched_on_after_the_peak(tmp_path: Path) -> None:
    """What a segment leaves stays with its block until then: 2.5 % more than by the setting of the end."""
    size, num = 20_222_944, 40
    events, segments = [], []
    for index in range(num):
        at = 2**40 + index * 24 * MIB
        events += [told("segment_alloc", at, 20 * MIB), told("alloc", at, size)]
        segments.append(segment(at, (20 * MIB, 0, FREE)))
    events += [told("segment_map", 2**42, 20 * MIB), told("alloc", 2**42, 8 * MIB)]
    for index in range(num):
        events += freed(2**40 + index * 24 * MIB, size)
    segments.append(segment(2**42, (8 * MIB, 8 * MIB, USED), (12 * MIB, 0, FREE), is_expandable=True))
    followed, _ = imported(dumped(events, segments, expandable=True), tmp_path)
    written = followed.written
    assert (written.allocated_peak, written.inexact_bytes, written.max_error_bytes) == (
        num * 20 * MIB + 8 * MIB,
        0,
        0,
    )
    assert followed.problems("a") == []


def test_a_block_of_which_nothing_tells_whether_the_setting_was_on_is_inexact(tmp_path: Path) -> None:
    at, size = 2**40, 20 * MIB - 512 * 3
    events = [
        told("segment_alloc", at, 20 * MIB), told("alloc", at, 20 * MIB), *freed(at, 20 * MIB),
        told("alloc", at, size), *freed(at, size),  # before or after it was switched on?
        told("segment_map", 2**42, 20 * MIB), told("alloc", 2**42, 20 * MIB), *freed(2**42, 20 * MIB),
    ]  # fmt: skip
    segments = [segment(at, (20 * MIB, 0, FREE)), segment(2**42, (20 * MIB, 0, FREE), is_expandable=True)]
    followed, _ = imported(dumped(events, segments, expandable=True), tmp_path)
    assert followed.written.inexact_bytes == 512 * 3
    assert followed.problems("a.pickle") == [
        "sizes in a.pickle may be off by up to 1,536 bytes at any moment: the rule by which the allocator splits "
        "blocks was not the same all the time, and no event shows how much 1 blocks took"
    ]


@pytest.mark.parametrize("is_on", [False, True])
def test_before_any_event_shows_the_setting_that_of_the_end_counts(tmp_path: Path, is_on: bool) -> None:
    """GIVEN a segment from before the trace; what its first block took is never shown."""
    at, size = 2**40, 20 * MIB - 512 * 3
    events = [
        told("alloc", at, size), *freed(at, size),
        told("segment_map", 2**42, 20 * MIB), told("alloc", 2**42, 20 * MIB), *freed(2**42, 20 * MIB),
        told("segment_alloc", 2**43, 20 * MIB), told("alloc", 2**43, 20 * MIB), *freed(2**43, 20 * MIB),
    ]  # fmt: skip
    segments = [
        segment(at, (20 * MIB, 0, FREE)),
        segment(2**42, (20 * MIB, 0, FREE), is_expandable=True),
        segment(2**43, (20 * MIB, 0, FREE)),
    ]
    followed, curve = imported(dumped(events, segments, expandable=is_on), tmp_path)
    held = {allocated for allocated, _, _ in curve} - {0}
    assert held == ({size, 20 * MIB} if is_on else {20 * MIB})
    assert followed.written.inexact_bytes == 512 * 3


@pytest.mark.parametrize(
    ("behind", "taken"),
    [(20 * MIB - 512 * 3, 20 * MIB - 512 * 3), (20 * MIB, 20 * MIB)],
    ids=["in what was left", "behind it"],
)
def test_the_next_block_tells_how_much_one_took(tmp_path: Path, behind: int, taken: int) -> None:
    """In a segment that has grown behind it, with the setting off or on by then."""
    at, size = 2**40, 20 * MIB - 512 * 3
    events = [
        told("segment_map", at, 20 * MIB), told("alloc", at, 20 * MIB), *freed(at, 20 * MIB),
        told("alloc", at, size),
        told("segment_alloc", 2**42, 20 * MIB), told("alloc", 2**42, 20 * MIB), *freed(2**42, 20 * MIB),
        told("segment_map", at + 20 * MIB, 20 * MIB), told("alloc", at + behind, 4 * MIB),
        *freed(at + behind, 4 * MIB), *freed(at, size),
    ]  # fmt: skip
    segments = [segment(at, (40 * MIB, 0, FREE), is_expandable=True), segment(2**42, (20 * MIB, 0, FREE))]
    followed, curve = imported(dumped(events, segments, expandable=True), tmp_path)
    assert curve[5][0] == taken
    assert followed.written.inexact_bytes == 0


@pytest.mark.parametrize("is_told", [False, True])
def test_a_pool_that_splits_nothing_is_told_by_one_block_that_stayed(tmp_path: Path, is_told: bool) -> None:
    at, pool = 2**40, (0, 1)
    events = [
        told("segment_alloc", at, 2 * MIB), told("alloc", at, 700), *freed(at, 700),
        told("segment_alloc", at + 4 * MIB, 20 * MIB), told("alloc", at + 4 * MIB, 5 * MIB),
    ]  # fmt: skip
    stays = (20 * MIB, 5 * MIB, USED)
    segments = [segment(at, (2 * MIB, 0, FREE), pool=pool), segment(at + 4 * MIB, stays, pool=pool)]
    if not is_told:  # it went, too: that it was such a pool, nobody can know
        events += freed(at + 4 * MIB, 5 * MIB)
        segments[1] = segment(at + 4 * MIB, (20 * MIB, 0, FREE), pool=pool)
    followed, curve = imported(dumped(events, segments), tmp_path)
    assert [now[0] for now in curve[:7]] == (
        [0, 0, 2 * MIB, 0, 0, 0, 20 * MIB] if is_told else [0, 0, 1024, 0, 0, 0, 5 * MIB]
    )
    assert followed.written.inexact_bytes == (0 if is_told else 15 * MIB)


@pytest.mark.parametrize("signed", [False, True])
def test_addresses_are_64_bits_without_a_sign(tmp_path: Path, signed: bool) -> None:
    """Early versions of torch write those of the upper half below zero."""
    at = 0xFFFFFF5500000000 - (2**64 if signed else 0)
    events = [*freed(at, 8 * MIB), told("alloc", at, 4 * MIB), *freed(at, 4 * MIB)]
    followed, curve = imported(dumped(events, [segment(at, (20 * MIB, 0, FREE))]), tmp_path)
    assert [now[0] // MIB for now in curve] == [8, 0, 0, 4, 0, 0]
    assert (followed.written.peak_at_least, followed.held_bytes) == (True, 20 * MIB)


def test_a_segment_ends_at_the_end_of_the_address_space(tmp_path: Path) -> None:
    at = 2**64 - 2 * MIB
    events = [told("segment_alloc", at, 2 * MIB), told("alloc", at, 512), told("alloc", at + 512, 512)]
    blocks = ((512, 512, USED), (512, 512, USED), (2 * MIB - 1024, 0, FREE))
    followed, _ = imported(dumped(events, [segment(at, *blocks)]), tmp_path)
    assert (followed.written.allocated_peak, followed.written.inexact_bytes) == (1024, 0)


@pytest.mark.parametrize("num", [1999, 2000, 2001, 2048])
def test_a_full_ring_says_that_the_peak_may_lie_before_it(tmp_path: Path, num: int) -> None:
    """Even where nothing was held at its first event: as many events as a ring is long may not be all."""
    at = 2**40
    events = [told("segment_alloc", at, 2 * MIB), told("alloc", at, 512), *freed(at, 512)]
    while len(events) < num:
        events += [told("alloc", at, 512), *freed(at, 512)]
    events = [*events[: num - 1], told("snapshot", 0, 0)]
    state = USED if events[-2]["action"] == "alloc" else FREE
    if events[-2]["action"] == "free_requested":
        state = "active_pending_free"
    first = (512, 512 if state != FREE else 0, state)
    followed, _ = imported(dumped(events, [segment(at, first, (2 * MIB - 512, 0, FREE))]), tmp_path)
    is_full = num in (2000, 2048)
    assert (followed.written.peak_at_least, followed.written.inexact_bytes) == (is_full, 0)
    assert followed.problems("a") == (
        [
            f"peaks are at least what is shown: a has {num:,} events, as many as a ring of events may hold, "
            "and older ones may have been overwritten"
        ]
        if is_full
        else []
    )


def test_what_was_held_at_the_first_event_is_told(tmp_path: Path) -> None:
    events = [told("alloc", 2**40 + 8 * MIB, 4 * MIB)]
    after = ((8 * MIB, 8 * MIB, USED), (4 * MIB, 4 * MIB, USED), (8 * MIB, 0, FREE))
    followed, curve = imported(dumped(events, [segment(2**40, *after)]), tmp_path)
    assert curve == [(8 * MIB, 20 * MIB, 8 * MIB), (12 * MIB, 20 * MIB, 12 * MIB)]
    assert followed.problems("a") == [
        "peaks are at least what is shown: 20,971,520 bytes were reserved before the first event of a, and what had "
        "happened by then is not known (a ring of events was full, or a late start)"
    ]


def test_events_that_were_lost_make_it_inexact(tmp_path: Path) -> None:
    at = 2**40
    events = [
        told("segment_alloc", at, 20 * MIB), told("alloc", at, 4 * MIB),
        told("alloc", at, 3 * MIB),  # the free before it is missing
        told("free_completed", at, 3 * MIB), told("free_completed", at, 3 * MIB),
    ]  # fmt: skip
    followed, _ = imported(dumped(events, [segment(at, (20 * MIB, 0, FREE))]), tmp_path)
    assert followed.replay.num_strays > 0
    assert followed.written.inexact_bytes >= 3 * MIB
    assert any("do not fit the blocks before them" in line for line in followed.problems("a"))


@given(scenario=SCENARIOS, **HISTORIES)
@settings(FAST, max_examples=50)
def test_whatever_is_missing_an_import_ends_and_is_not_called_exact(
    tmp_path: Path, scenario: Scenario, version: Version, seed: int, operations: int, late: float
) -> None:
    model = play(seed, fit(scenario, version), operations)
    content, chance = model.snapshot(version), random.Random(seed)
    (events,) = content["device_traces"]
    content["device_traces"] = [[one for one in events if chance.random() < late] or events[:1]]
    followed, curve = imported(content, tmp_path)
    end = model.counters[-1]
    assert max(abs(a - b) for a, b in zip(curve[-1], end, strict=True)) == followed.written.max_error_bytes
    assert followed.written.max_error_bytes + followed.replay.num_strays <= followed.written.inexact_bytes
