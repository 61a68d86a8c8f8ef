"""What blocks took while a program runs: after every drain the replay has the allocator's counters."""

from typing import Any

import pytest
from allocator_model import DEFAULT, VERSIONS, Model, Scenario, Settings, play
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorder_fakes import FakeStore

from ray_memprof.allocator.block_sizes import BlockSizes, Found, decide
from ray_memprof.allocator.doubt import Doubt, pool_of
from ray_memprof.allocator.replay import BlockReplay
from ray_memprof.recorder.meters.meter import Batch, Reading
from ray_memprof.recorder.rows import Parcel
from ray_memprof.recorder.writer import Writer

MIB = 2**20
PRIVATE, OWN = (0, 1), (0, 2)


def test_nothing_leaves_nothing_open() -> None:
    assert BlockSizes(BlockReplay(), Doubt(setting=True)).conclude([]) == Found({}, 0, 0, False)
    assert decide(BlockReplay(), [], [], False) == {}


def test_where_nothing_is_in_doubt_nothing_is_looked_at() -> None:
    segment = {"address": 0, "total_size": 2 * MIB, "segment_pool_id": (0, 0), "is_expandable": False}
    # Neither blocks nor events have the values that would be needed.
    assert decide(BlockReplay(), [{"action": "alloc"}], [segment], False) == {}


@pytest.mark.parametrize(
    ("value", "pool"),
    [((0, 0), (0, 0)), ([3, 4], (3, 4)), (None, None), ("ab", None), ((1,), None), ((1, "x"), None)],
)
def test_pools_are_two_numbers(value: Any, pool: Any) -> None:
    assert pool_of(value) == pool


def drained(model: Model, first: int) -> Batch:
    """What the meter hands over: events since number `first`."""
    snapshot = model.snapshot(VERSIONS[-1], first)
    allocated, reserved, active = model.counters[-1]
    reading = Reading(0, allocated, reserved, active, 0, 0, -1, -1, -1, 0, 0, 0)
    return Batch(
        snapshot["device_traces"][0],
        reading,
        settings=snapshot["allocator_settings"],
        segments=snapshot["segments"],
    )


@given(
    scenario=st.builds(
        Scenario,
        settings=st.builds(Settings, expandable=st.booleans(), by_segment=st.booleans()),
        no_split=st.sampled_from((frozenset(), frozenset({PRIVATE}))),
        own=st.sampled_from((frozenset(), frozenset({OWN}))),
        pools=st.sampled_from(((DEFAULT,), (DEFAULT, PRIVATE), (DEFAULT, PRIVATE, OWN))),
        streams=st.just((0, 5)),
        toggles=st.booleans(),
    ),
    seed=st.integers(0, 2**32),
    between=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_after_every_drain_the_replay_has_the_counters(scenario: Scenario, seed: int, between: int) -> None:
    writer = Writer(FakeStore(), BlockReplay(), categories={})  # type: ignore[arg-type]
    num_taken, switched = 0, [scenario.settings.expandable]

    def look(model: Model) -> None:
        nonlocal num_taken
        switched.append(model.settings.expandable)
        if len(model.events) - num_taken >= between:
            writer.write(Parcel(batch=drained(model, num_taken)), lambda: None)
            num_taken = len(model.events)

    model = play(seed, scenario, 100, look)
    writer.write(Parcel(batch=drained(model, num_taken)), lambda: None)
    writer.close()
    followed = writer.followed()
    assert (writer.error, writer.problems.texts, followed.num_checks > 0) == (None, (), True)
    # The setting was switched off and on again between two drains: maybe no event shows it.
    if sum(a != b for a, b in zip(switched, switched[1:], strict=False)) < 2:
        assert (followed.max_error_bytes, writer.replay.num_strays) == (0, 0)
