"""Questions against sums made in Python: random runs of several ranks, streams and nested spans, with ties."""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from empty_run import EmptyRun
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_runs import Moment, Rank, State, as_run, play
from run_tables import Row, blank

from ray_memprof.query.questions import QUESTIONS, question
from ray_memprof.store import schema

Key = tuple[Any, ...]
MOMENTS = ("t_ns", "first_ns", "start_ns", "end_ns")
"""Columns with a moment; all others in ns have a duration."""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmptyRun]:
    with EmptyRun(Path(tmp_path_factory.mktemp("run"))) as run:
        yield run


class Asked:
    """A random run and its answers."""

    def __init__(self, empty: EmptyRun, seed: int, later_ns: int = 0) -> None:
        self._connection = empty.connection
        self.ranks = play(random.Random(seed))
        tables, counters = as_run(self.ranks)
        for row in (row for rank in tables for rows in rank.values() for row in rows):
            row |= {name: row[name] + later_ns for name in MOMENTS if name in row}
        empty.fill(*tables)
        empty.insert("runs", [blank("runs", num_ranks=len(tables), status="ok", config="{}")])
        for rank, row in enumerate(counters):
            empty.insert("ranks", [blank("ranks", **row)], rank)

    def rows(self, name: str) -> list[Row]:
        return self._connection.sql(question(name)).to_arrow_table().to_pylist()  # type: ignore[no-any-return]

    def by_rank(self, name: str) -> dict[int, list[Row]]:
        found: dict[int, list[Row]] = defaultdict(list)
        for row in self.rows(name):
            found[row["rank"]].append(row)
        return found


def for_random_runs(test: Any) -> Any:
    """Some examples, the same each time."""
    told = settings(
        max_examples=6,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    return told(given(seed=st.integers(0, 2**32))(test))


def peak_state(one: Rank) -> State | None:
    """The allocation of the peak, as peak_event says which of several."""
    tops = [state.allocated for state in one.states]
    if not one.has_events or not tops or max(tops) == 0:
        return None
    peak = max(tops)
    inside = [row["allocated_peak_bytes"] for row in one.spans]
    at_peak = [state for state in one.states if state.action == "alloc" and state.allocated == peak]
    reached = [
        row
        for row in one.spans
        if row["allocated_peak_bytes"] == peak and row["allocated_start_bytes"] < peak
    ]
    if inside and max(inside) == peak and reached:
        place = min(reached, key=lambda row: (-row["depth"], row["span_id"]))
        own = [
            state.seq
            for state in one.states
            if state.span_id == place["span_id"] and state.action in ("alloc", "free_requested")
        ]
        at_peak = [state for state in at_peak if own[0] <= state.seq <= own[-1]]
    return at_peak[0]


def path_of(one: Rank, span_id: int) -> str | None:
    return next((row["path"] for row in one.spans if row["span_id"] == span_id), None)


@for_random_runs
def test_peaks_and_what_made_them(empty: EmptyRun, seed: int) -> None:
    run = Asked(empty, seed)
    by_rank, moments, alive = (run.by_rank(name) for name in ("peak_by_rank", "peak_event", "alive_at_peak"))
    for rank, one in run.ranks.items():
        found = by_rank.get(rank)
        assert bool(found) == bool(one.spans or one.samples)
        if found:
            (row,) = found
            seen = [moment.used for moment in one.moments]
            tops = [max([0, *(getattr(s, what) for s in one.states)]) for what in ("allocated", "reserved")]
            assert [row["allocated_peak_bytes"], row["reserved_peak_bytes"]] == tops
            assert row["device_used_peak_bytes"] == max(seen)
            assert row["num_samples"] == len(one.samples)
            bound = row["device_used_bound_bytes"]
            assert bound is None if not one.spans else bound >= max(seen)
        state = peak_state(one)
        assert bool(moments.get(rank)) == (state is not None)
        if state is not None:
            (event,) = moments[rank]
            assert (event["seq"], event["allocated_bytes"]) == (state.seq, state.allocated)
            assert event["path"] == path_of(one, state.span_id)
            assert found is None or found[0]["path"] == event["path"]
            assert sum(part["bytes"] for part in alive[rank]) == state.allocated
            held: dict[Key, int] = defaultdict(int)
            for size, category, span_id in state.alive.values():
                held[category, path_of(one, span_id)] += size
            told: dict[Key, int] = defaultdict(int)
            for part in alive[rank]:
                told[part["category"], part["path"]] += part["bytes"]
            assert told == held


@for_random_runs
def test_stages_and_ranks(empty: EmptyRun, seed: int) -> None:
    run = Asked(empty, seed)
    peaks: dict[Key, list[Row]] = defaultdict(list)
    for rank, one in run.ranks.items():
        for row in one.spans:
            if row["depth"] == 0:
                peaks[rank, row["stage"]].append(row)
    for row in run.rows("peak_by_stage"):
        spans = peaks.pop((row["rank"], row["stage"]))
        most = ("allocated_peak_bytes", "reserved_peak_bytes", "active_peak_bytes", "device_used_peak_bytes")
        assert [row[name] for name in (*most, "device_used_bound_bytes")] == [
            max(span[name] for span in spans) for name in (*most, "device_used_bound_bytes")
        ]
        assert row["num_spans"] == len(spans)
        assert row["duration_ns"] == sum(span["end_ns"] - span["start_ns"] for span in spans)
        assert [row["num_samples"], row["num_allocs"]] == [
            sum(span[name] for span in spans) for name in ("num_samples", "num_allocs")
        ]
    assert not peaks
    tops: dict[Key, dict[int, int]] = defaultdict(dict)
    for rank, one in run.ranks.items():
        for row in one.spans:
            for measure in ("allocated", "reserved", "device_used"):
                for stage in (row["stage"], None):
                    top = max(tops[stage, measure].get(rank, 0), row[f"{measure}_peak_bytes"])
                    tops[stage, measure][rank] = top
    for row in run.rows("imbalance"):
        ranks = tops.pop((row["stage"], row["measure"]))
        assert (row["max_bytes"], row["min_bytes"]) == (max(ranks.values()), min(ranks.values()))
        assert row["max_rank"] == min(rank for rank in ranks if ranks[rank] == row["max_bytes"])
        assert row["num_ranks"] == len(ranks)
        assert abs(row["mean_bytes"] - mean(ranks.values())) <= 0.5
    assert not tops
    for row in run.rows("activation_by_step"):
        steps = run.ranks[row["rank"]].spans
        grown = [span["allocated_peak_bytes"] - span["allocated_start_bytes"] for span in steps
                 if span["depth"] == 0 and (span["stage"], span["step"]) == (row["stage"], row["step"])]  # fmt: skip
        assert row["activation_peak_bytes"] in grown
        assert row["activation_peak_bytes"] == row["allocated_peak_bytes"] - row["began_bytes"]


def fullest(one: Rank) -> tuple[int, int] | None:
    """Device used and active memory, by going through every moment: as books_at_peak says."""
    looks = sorted(one.moments, key=lambda look: look.t_ns)
    if not looks or not (used := max(look.used for look in looks)):
        return None
    sure: list[int] = []
    vague: list[int] = []
    for number, look in enumerate(looks):
        if look.used != used:
            continue
        (vague if look.kind == "sample" and one.has_events and one.states else sure).append(look.active)
        before = looks[number - 1].t_ns if number else 0
        after = looks[number + 1].t_ns if number + 1 < len(looks) else 2**62
        sure += list(_between(one, look, before, after))
    return used, max(sure or vague)


def _between(one: Rank, look: Moment, before: int, after: int) -> Iterator[int]:
    if one.has_events and one.states:
        for state, following in zip(one.states, [*one.states[1:], None], strict=True):
            until = following.t_ns if following else 2**62
            if state.reserved == look.reserved and state.t_ns < after and until > before:
                yield state.active
    elif look.kind == "end":
        span = next(row for row in one.spans if row["span_id"] == look.span_id)
        if span["reserved_peak_bytes"] == look.reserved:
            yield span["active_peak_bytes"]


@for_random_runs
def test_the_books(empty: EmptyRun, seed: int) -> None:
    run = Asked(empty, seed)
    for row in run.rows("books"):
        parts = ("active", "cached", "context", "nccl", "libraries", "others", "unexplained")
        assert sum(row[f"{part}_bytes"] for part in parts) == row["device_used_bytes"]
    found = run.by_rank("books_at_peak")
    for rank, one in run.ranks.items():
        expected = fullest(one)
        if expected is None:
            continue
        accounts = {row["account"]: row["bytes"] for row in found[rank]}
        assert (sum(accounts.values()), accounts["active"]) == expected
        assert {row["device_used_bytes"] for row in found[rank]} == {expected[0]}
        levels = {look.reserved for look in one.moments if look.used == expected[0]}
        assert accounts["active"] + accounts["cached"] in levels
    for row in run.rows("fragmentation"):
        one = run.ranks[row["rank"]]
        if row["stage"] is not None:
            continue
        peak = max([0, *(state.reserved for state in one.states)])
        assert row["reserved_peak_bytes"] == peak
        grew = next((n for n, s in enumerate(one.states) if s.reserved == peak), None)
        made = one.events[grew + 1]["category"] if grew is not None and one.has_events else "before"
        expected_bytes = None if made == "before" else peak - one.states[grew + 1].active  # type: ignore[operator]
        assert row["fragmentation_bytes"] == expected_bytes


@for_random_runs
def test_memory_over_time(empty: EmptyRun, seed: int) -> None:
    run = Asked(empty, seed)
    over_time, by_account, slices = (
        run.by_rank(name) for name in ("categories_over_time", "timeline_by_account", "timeline")
    )
    for rank, one in run.ranks.items():
        if one.moments:
            assert max(row["device_used_bytes"] or 0 for row in slices[rank]) == max(
                look.used for look in one.moments
            )
        if not (one.has_events and one.states):
            continue
        top = max(state.active for state in one.states)
        assert max(row["active_bytes"] for row in over_time[rank]) == top
        assert max(row["active_bytes"] for row in by_account[rank]) == top
        states = {(state.t_ns, state.active, state.reserved) for state in one.states}
        for row in over_time[rank]:
            # Each of them is a moment that was, and every tensor has its category.
            assert (row["t_ns"], row["active_bytes"], max(row["reserved_bytes"], 0)) in states
            assert sum(row[f"{name}_bytes"] for name in schema.CATEGORIES) == row["active_bytes"]


def churned(one: Rank) -> Mapping[Key, list[int]]:
    """By path: tensors, those that were freed where they were born, and their bytes."""
    found: dict[Key, list[int]] = defaultdict(lambda: [0, 0, 0])
    born: dict[int, int] = {}
    for row in one.events:
        path = path_of(one, row["span_id"])
        if row["action"] == "alloc":
            born[row["address"]] = row["span_id"]
            found[path,][0] += 1
        elif row["action"] == "free_requested" and born[row["address"]] == row["span_id"]:
            found[path,][1] += 1
            found[path,][2] += row["size_bytes"]
    return {key: sums for key, sums in found.items() if sums[0]}


@for_random_runs
def test_sums(empty: EmptyRun, seed: int) -> None:
    run = Asked(empty, seed)
    calls: dict[Key, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for rank, one in run.ranks.items():
        for row in one.collectives:
            sums = calls[rank, row["op"], row["group"]]
            sums[0] += 1
            sums[1] += row["bytes"]
            sums[2] = max(sums[2], row["bytes"])
            sums[3] += row["end_ns"] - row["start_ns"]
    assert calls == {
        (row["rank"], row["op"], row["group_name"]): [
            row[name] for name in ("num_calls", "total_bytes", "largest_bytes", "duration_ns")
        ]
        for row in run.rows("collectives_summary")
    }
    calls_of = run.by_rank("device_calls")
    churn: dict[int, dict[Key, list[int]]] = defaultdict(dict)
    for row in run.rows("churn"):
        churn[row["rank"]][row["path"],] = [row[name] for name in ("num_allocs", "num_short", "short_bytes")]
    for rank, one in run.ranks.items():
        assert churn[rank] == (churned(one) if one.has_events else {})
        taken = sum(row["taken_bytes"] or 0 for row in calls_of.get(rank, []))
        inside = [
            row["size_bytes"] for row in one.events if row["action"] == "segment_alloc" and row["span_id"]
        ]
        assert taken == (sum(inside) if one.has_events else 0)


def test_when_a_run_was_recorded_changes_nothing_but_its_moments(empty: EmptyRun) -> None:
    later_ns = 1_764_000_000_123_456_789  # as the recorder counts: since 1970
    first = Asked(empty, 1)
    expected = {name: first.rows(name) for name in QUESTIONS}
    second = Asked(empty, 1, later_ns)
    for name, rows in expected.items():
        moved = [
            {
                key: value + later_ns if key in MOMENTS and value is not None else value
                for key, value in row.items()
            }
            for row in rows
        ]
        assert second.rows(name) == moved, name
    assert all(expected[name] for name in ("timeline", "timeline_by_account", "categories_over_time"))
