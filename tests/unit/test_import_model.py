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
