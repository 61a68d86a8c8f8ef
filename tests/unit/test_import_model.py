"""Imports of random allocator histories: curves equal the truth at every event, or are called inexact with a bound."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from allocator_model import DEFAULT, VERSIONS, Model, Scenario, Settings, Version, play
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_memprof.importers.certainty import Followed, follow
from ray_memprof.importers.rows import Written
from ray_memprof.importers.spool import Spool
from ray_memprof.importers.torch_snapshot import _segments, _settings
from ray_memprof.replay import BlockReplay

MIB = 2**20
PRIVATE, OWN = (0, 1), (0, 2)
Curve = list[tuple[int, int, int]]


class Curves:
    """In place of Rows: keeps the curves of an import, event by event."""

    def __init__(self) -> None:
        self.replay = BlockReplay()
        self.curve: Curve = []

    def write(self, at_start: Iterable[Mapping[str, Any]], chunks: Iterable[Any], stacks: object) -> Written:
        replay = self.replay
        replay.prime(at_start, 0)
        self.curve = [(replay.allocated, replay.reserved, replay.active)]
        for _, events in chunks:
            for event in events:
                replay.feed([event])
                self.curve.append((replay.allocated, replay.reserved, replay.active))
        return Written(replay.num_events, 0, 0, replay.allocated_peak, replay.reserved_peak)

    def discard(self) -> None:
        """Nothing is on disk."""


def imported(content: dict[str, Any], folder: Path) -> tuple[Followed, Curve]:
    """What an import makes of a snapshot."""
    spool = Spool(folder)
    for event in content["device_traces"][0]:
        spool.add(dict(event), -1)
    spool.flush()
    made: list[Curves] = []

    def make_rows() -> Curves:
        made.append(Curves())
        return made[-1]

    segments = _segments(folder, content, 0)
    followed = follow(make_rows, spool, segments, _settings(content.get("allocator_settings")), {})  # type: ignore[arg-type]
    spool.close()
    return followed, made[-1].curve


def off_by(curve: Curve, truth: Curve) -> int:
    """The largest difference at any moment of any curve."""
    assert len(curve) == len(truth)
    return max(
        abs(a - b) for one, other in zip(curve, truth, strict=True) for a, b in zip(one, other, strict=True)
    )


def check(model: Model, version: Version, start: int, folder: Path) -> Followed:
    """An import is right, or says by how much it may be off; and that the peak may lie before it."""
    followed, curve = imported(model.snapshot(version, start), folder)
    written, truth = followed.written, model.counters[start:]
    assert off_by(curve, truth) <= written.inexact_bytes
    assert written.peak_at_least or model.counters[start][1] == 0
    if start == 0:
        assert not written.peak_at_least
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
    changes=st.booleans(),
)


@given(
    scenario=SCENARIOS,
    version=st.sampled_from(VERSIONS),
    seed=st.integers(0, 2**32),
    operations=st.integers(1, 120),
    late=st.floats(0, 1),
)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_an_import_is_right_or_says_by_how_much_it_may_be_off(
    tmp_path: Path, scenario: Scenario, version: Version, seed: int, operations: int, late: float
) -> None:
    model = play(seed, fit(scenario, version), operations)
    start = 0 if late < 0.3 else int(late * (len(model.events) - 1))
    check(model, version, start, tmp_path)
