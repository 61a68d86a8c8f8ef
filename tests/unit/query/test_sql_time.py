"""Questions about the run over time: hand-made rows in, exact rows out."""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from run_tables import Row, answer, blank, columns, event, make_ranks, make_run, span

from ray_memprof.query.database import query
from ray_memprof.store.schema import CATEGORIES, HOST_ACCOUNTS


def wide(rows: list[tuple[Any, ...]], at: int) -> list[tuple[Any, ...]]:
    """Rows whose columns of buffers, gradients, optimizers (behind weights, `at`) and temporaries are 0."""
    return [(*row[: at + 1], 0, 0, 0, row[at + 1], 0, *row[at + 2 :]) for row in rows]


@pytest.mark.parametrize(
    "name",
    [
        *("time_slices", "timeline_spread", "vae_cache", "categories_over_time", "timeline_by_account"),
        *("steps", "stage_bands"),
    ],
)
def test_nothing_recorded_gives_no_rows(tmp_path: Path, name: str) -> None:
    assert answer(make_run(tmp_path, {0: {}}), name) == []


def test_time_slices_reach_from_the_first_to_the_last_that_was_seen(tmp_path: Path) -> None:
    sample = blank("samples", t_ns=100)
    tables = {"spans": [span(1, "denoise", (200, 900))], "samples": [sample]}
    make_run(tmp_path / "a", {0: tables, 1: {"allocs": [event(500, "alloc", 1), event(1299, "alloc", 1)]}})
    assert columns(tmp_path / "a", "time_slices") == ["first_ns", "slice_ns"]
    # 100 to 1299 are 1200 ns.
    assert answer(tmp_path / "a", "time_slices") == [(100, 3)]
    make_run(tmp_path / "b", {0: {"samples": [sample]}})
    assert answer(tmp_path / "b", "time_slices") == [(100, 1)]


@pytest.mark.parametrize("table", ["spans", "samples", "allocs"])
def test_time_slices_reach_from_the_first_to_the_last_of_each_table(tmp_path: Path, table: str) -> None:
    """GIVEN three rows of each table on both ranks: of one table the first and the last are outermost."""

    def times(name: str) -> tuple[int, int, int]:
        return (40, 200, 1239) if name == table else (150, 250, 900)

    def rank(late_ns: int) -> dict[str, list[Row]]:
        begin, middle, end = (t_ns + late_ns for t_ns in times("spans"))
        spans = [span(1, "load.dit", (begin, begin + 5)), span(2, "denoise", (middle, end))]
        return {
            "spans": [*spans, span(3, "denoise/dit.block", (middle + 1, middle + 2), parent_id=2)],
            "samples": [blank("samples", t_ns=t_ns + late_ns) for t_ns in times("samples")],
            "allocs": [
                event(seq, "alloc", 1, t_ns=t_ns + late_ns) for seq, t_ns in enumerate(times("allocs"))
            ],
        }

    make_run(tmp_path, {0: rank(0), 1: rank(3)})
    # 40 to 1242 are 1203 ns, more than 400 times 3.
    assert answer(tmp_path, "time_slices") == [(40, 4)]


def test_timeline_spread_takes_a_silent_rank_as_it_was_seen_last(tmp_path: Path) -> None:
    ranks = {
        0: {"spans": [span(1, "denoise", (0, 399), device_used=(5, 6, 6))]},
        1: {"spans": [span(1, "denoise", (0, 100), device_used=(1, 9, 9))]},
        2: {"samples": [blank("samples", t_ns=250, device_used_bytes=9)]},
    }
    make_run(tmp_path, ranks)
    assert columns(tmp_path, "timeline_spread") == [
        *("slice", "start_ns", "num_ranks", "min_bytes", "max_bytes", "max_rank")
    ]
    assert answer(tmp_path, "timeline_spread") == [
        (0, 0, 2, 1, 5, 0),
        (100, 100, 2, 5, 9, 1),
        (250, 250, 3, 5, 9, 1),
        (399, 399, 3, 6, 9, 1),
    ]


def test_steps_are_the_outermost_spans_with_a_step(tmp_path: Path) -> None:
    figures = {"allocated": (0, 0, 5), "reserved": (0, 0, 6), "device_used": (0, 0, 7), "num_allocs": 8}
    spans = [
        span(1, "encode.text", (0, 1)),
        span(2, "denoise", (1, 4), step=0, **figures),
        span(3, "denoise/dit.forward", (2, 3), step=0, parent_id=2),
        span(4, "denoise", (4, 5), step=1),
    ]
    script = [
        span(1, "script", (0, 9)),
        span(2, "script/Model", (1, 4), step=3, parent_id=1, stage="Model"),
        span(3, "script/Model/Model.blocks", (1, 4), step=3, parent_id=2),
    ]
    make_run(tmp_path, {0: {"spans": spans}, 1: {"spans": script}})
    assert columns(tmp_path, "steps") == [
        *("rank", "stage", "step", "start_ns", "duration_ns", "duration_error_ns"),
        *(
            "allocated_peak_bytes",
            "reserved_peak_bytes",
            "peak_at_least",
            "device_used_peak_bytes",
            "num_samples",
            "num_allocs",
        ),
    ]
    assert answer(tmp_path, "steps") == [
        (0, "denoise", 0, 1, 3, None, 5, 6, False, 7, 1, 8),
        (0, "denoise", 1, 4, 1, None, 0, 0, False, 0, 1, 0),
        (1, "Model", 3, 1, 3, None, 0, 0, False, 0, 1, 0),
    ]
    # Of rank 0 a part was not seen.
    make_ranks(tmp_path, {"peak_at_least": True}, {})
    flags = [row["peak_at_least"] for row in query(tmp_path, "steps").to_pylist()]
    assert flags == [True, True, False]


@pytest.mark.parametrize(
    ("profile", "errors"),
    [
        ("measured on one H200", (12, 36, 120)),
        ("data sheet; the rest", (None, None, None)),
        ("", (None, None, None)),
    ],
)
def test_predicted_times_have_the_error_that_is_stated_for_their_profile(
    profile: str, errors: tuple[int | None, ...], tmp_path: Path
) -> None:
    spans = [span(1, "denoise", (0, 100), step=0), span(2, "denoise", (100, 300), step=1)]
    make_run(tmp_path, {0: {"spans": spans}})
    versions = {"torch": "2.13.0", **({"profile": profile} if profile else {})}
    make_ranks(tmp_path, {}, source="predicted", start_ns=5, end_ns=1005, versions=json.dumps(versions))
    found = [
        answer(tmp_path, name)[0][columns(tmp_path, name).index("duration_error_ns")]
        for name in ("steps", "peak_by_stage", "run_overview")
    ]
    assert tuple(found) == errors


def chunks(rank_events: list[Row]) -> dict[str, list[Row]]:
    """A decode of two chunks; its events."""
    spans = [
        span(1, "decode", (0, 400)),
        span(2, "decode/vae.chunk", (1, 100), parent_id=1, component="vae"),
        span(3, "decode/vae.chunk", (101, 200), parent_id=1, component="vae"),
    ]
    return {"spans": spans, "allocs": rank_events}


def decode_events() -> list[Row]:
    """Two tensors outlive the first chunk: one goes in the second, one after it; the second chunk leaves one for good.

    Address 7 is used twice in the first chunk and freed both times; what decode itself makes and what is communication
    never counts.
    """
    act, first, second = "activation", {"span_id": 2}, {"span_id": 3}
    return [
        event(1, "alloc", 100, "output", address=1, span_id=1),
        event(10, "alloc", 8, act, address=7, **first),
        event(11, "free_requested", 8, act, address=7, **first),
        event(12, "free_completed", 8, act, address=7, **first),
        event(13, "alloc", 16, act, address=2, **first),
        event(14, "alloc", 32, act, address=3, **first),
        event(15, "alloc", 64, "communication", address=4, **first),
        event(16, "alloc", 8, act, address=7, **first),
        event(17, "free_requested", 8, act, address=7, **first),
        event(18, "free_completed", 8, act, address=7, **first),
        event(110, "alloc", 128, act, address=5, **second),
        event(120, "free_requested", 16, act, address=2, **second),
        event(121, "free_completed", 16, act, address=2, **second),
        event(210, "free_requested", 32, act, address=3, span_id=1),
        event(220, "free_completed", 32, act, address=3, span_id=1),
    ]


def test_vae_cache_is_what_a_chunk_leaves_behind(tmp_path: Path) -> None:
    make_run(tmp_path, {0: chunks([]), 1: chunks(decode_events())})
    assert columns(tmp_path, "vae_cache") == [
        *("rank", "span_id", "seq", "t_ns", "size_bytes", "carried_seq", "freed_seq")
    ]
    assert answer(tmp_path, "vae_cache") == [
        (1, 2, 13, 13, 16, 18, 121),
        (1, 2, 14, 14, 32, 18, 220),
        (1, 3, 110, 110, 128, 121, None),
    ]


def test_vae_cache_tells_of_an_address_what_is_there_when_its_chunk_ends(tmp_path: Path) -> None:
    """GIVEN an address that three tensors of a chunk have in turn: the last of them stays, of another size."""
    act, chunk = "activation", {"address": 7, "span_id": 2}
    events = [
        event(10, "alloc", 8, act, **chunk),
        event(11, "free_requested", 8, act, **chunk),
        event(12, "free_completed", 8, act, **chunk),
        event(13, "alloc", 6, act, **chunk),
        event(14, "free_requested", 6, act, **chunk),
        event(15, "free_completed", 6, act, **chunk),
        event(16, "alloc", 4, act, **chunk),
        event(17, "alloc", 5, "weight", address=8, span_id=2),
        event(120, "free_requested", 4, act, address=7, span_id=3),
        event(121, "free_completed", 4, act, address=7, span_id=3),
        event(130, "alloc", 2, act, address=7, span_id=3),
    ]
    make_run(tmp_path, {0: chunks(events), 1: chunks([{**row, "t_ns": row["t_ns"] + 1} for row in events])})
    assert answer(tmp_path, "vae_cache") == [
        (rank, *row)
        for rank in (0, 1)
        for row in ((2, 16, 16 + rank, 4, 16, 121), (3, 130, 130 + rank, 2, 130, None))
    ]


def test_vae_cache_is_of_chunks_alone_however_many(tmp_path: Path) -> None:
    """One chunk and three, and an activation that decode itself leaves."""

    def decode(num: int) -> dict[str, list[Row]]:
        spans = [span(1, "decode", (0, 90))]
        events = [event(1, "alloc", 50, "activation", address=1, span_id=1)]
        for number in range(2, 2 + num):
            chunk = {"parent_id": 1, "component": "vae"}
            spans.append(span(number, "decode/vae.chunk", (number * 10, number * 10 + 9), **chunk))
            about = {"address": number, "span_id": number}
            events.append(event(number * 10, "alloc", number, "activation", **about))
        return {"spans": spans, "allocs": events}

    make_run(tmp_path, {0: decode(1), 1: decode(3)})
    assert answer(tmp_path, "vae_cache") == [
        (0, 2, 20, 20, 2, 20, None),
        (1, 2, 20, 20, 2, 20, None),
        (1, 3, 30, 30, 3, 30, None),
        (1, 4, 40, 40, 4, 40, None),
    ]


def test_categories_over_time_turn_activations_into_cache_when_their_chunk_is_over(tmp_path: Path) -> None:
    make_run(tmp_path, {0: chunks(decode_events())})
    assert columns(tmp_path, "categories_over_time") == [
        *("rank", "slice", "is_peak", "t_ns", "active_bytes", "reserved_bytes"),
        *(f"{category}_bytes" for category in CATEGORIES),
    ]
    # Times are 0 to 400: two to a slice.
    assert answer(tmp_path, "categories_over_time") == [*wide([
        (0, 0, True, 1, 100, 100, 0, 0, 0, 0, 0, 100, 0),
        (0, 5, True, 10, 108, 108, 0, 8, 0, 0, 0, 100, 0),
        (0, 6, True, 13, 116, 116, 0, 16, 0, 0, 0, 100, 0),
        (0, 7, True, 15, 212, 212, 0, 48, 64, 0, 0, 100, 0),
        (0, 8, True, 16, 220, 220, 0, 56, 64, 0, 0, 100, 0),
        (0, 9, True, 18, 212, 212, 0, 0, 64, 0, 48, 100, 0),
        (0, 55, True, 110, 340, 340, 0, 128, 64, 0, 48, 100, 0),
        (0, 60, True, 121, 324, 324, 0, 0, 64, 0, 160, 100, 0),
        (0, 110, True, 220, 292, 292, 0, 0, 64, 0, 128, 100, 0),
    ], 6)]  # fmt: skip


def held_over_time(run_dir: Path, *categories: str) -> list[tuple[Any, ...]]:
    names = ("rank", "slice", "is_peak", "active_bytes", *(f"{one}_bytes" for one in categories))
    return [tuple(row[name] for name in names) for row in query(run_dir, "categories_over_time").to_pylist()]


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_category_that_nothing_is_of_is_0_and_not_unknown(tmp_path: Path, category: str) -> None:
    make_run(tmp_path, {0: {"allocs": [event(1, "alloc", 8, category)]}})
    asked = held_over_time(tmp_path, *CATEGORIES)
    assert asked == [(0, 0, True, 8, *(8 if one == category else 0 for one in CATEGORIES))]


def test_of_equal_peaks_the_first_event_counts_and_of_one_moment_the_last(tmp_path: Path) -> None:
    """Events of one nanosecond on two ranks: their numbers tell which came first, whatever their categories."""
    now = {"t_ns": 10}
    late = event(100, "alloc", 2, "buffer", t_ns=399)
    first = [
        event(1, "alloc", 8, "weight", **now),
        event(2, "alloc", 4, "activation", **now),
        event(3, "free_completed", 4, "activation", **now),
        event(4, "alloc", 4, "output", **now),  # 12 again
        event(5, "free_completed", 8, "weight", **now),
    ]
    second = [
        event(7, "alloc", 5, "temporary", **now),
        event(8, "free_completed", 5, "temporary", **now),
        event(9, "alloc", 5, "output", **now),  # the peak again, and the end
    ]
    third = [event(5, "alloc", 5, "output", **now)]  # peak and end are one event
    make_run(tmp_path, {0: {"allocs": [*first, late]}, 1: {"allocs": [*second, late]}, 2: {"allocs": third}})
    asked = ("weight", "activation", "temporary", "output", "buffer")
    assert held_over_time(tmp_path, *asked) == [
        (0, 0, True, 12, 8, 4, 0, 0, 0),
        (0, 0, False, 4, 0, 0, 0, 4, 0),
        (0, 389, True, 6, 0, 0, 0, 4, 2),
        (1, 0, True, 5, 0, 0, 5, 0, 0),
        (1, 0, False, 5, 0, 0, 0, 5, 0),
        (1, 389, True, 7, 0, 0, 0, 5, 2),
        (2, 0, True, 5, 0, 0, 0, 5, 0),
    ]


def test_what_a_chunk_leaves_is_cache_at_the_end_of_its_slice_too(tmp_path: Path) -> None:
    """GIVEN a chunk that ends in the middle of 32 events that are summed at once, far below the peak of their slice."""
    act, now = "activation", {"t_ns": 0}
    ones = [
        event(1, "alloc", 1000, "weight", **now),
        event(33, "free_completed", 1000, "weight", **now),
        event(64, "alloc", 16, act, address=1, span_id=2, **now),
        event(65, "alloc", 8, act, address=2, span_id=2, **now),
        event(66, "free_requested", 8, act, address=2, span_id=2, **now),
        event(67, "free_completed", 8, act, address=2, span_id=2, **now),
        event(99, "alloc", 1, "output", t_ns=399),
    ]
    # On the other rank the chunk ends with its allocation, and more of the 32 events follow.
    others = [*ones[:3], event(70, "alloc", 4, "output", **now), ones[-1]]
    make_run(tmp_path, {0: chunks(ones), 1: chunks(others)})
    assert held_over_time(tmp_path, "weight", act, "cache", "output") == [
        (0, 0, True, 1000, 1000, 0, 0, 0),
        (0, 0, False, 16, 0, 0, 16, 0),
        (0, 199, True, 17, 0, 0, 16, 1),
        (1, 0, True, 1000, 1000, 0, 0, 0),
        (1, 0, False, 20, 0, 0, 16, 4),
        (1, 199, True, 21, 0, 0, 16, 5),
    ]


def test_timeline_by_account_keeps_the_peak_and_the_end_of_a_slice(tmp_path: Path) -> None:
    spans = [span(1, "denoise", (0, 399), device_used=(7, 27, 27), reserved=(0, 20, 20), active=(0, 2, 12))]
    events = [
        event(1, "segment_alloc", 20, t_ns=10),
        event(2, "alloc", 4, "weight", t_ns=10),
        event(3, "alloc", 8, "activation", t_ns=10),
        event(4, "free_completed", 8, "activation", t_ns=10),
        event(5, "free_completed", 2, "weight", t_ns=10),
        event(6, "alloc", 1, None, t_ns=20),
    ]
    book = [
        blank("ledger", t_ns=0, account="context", bytes=7),
        blank("ledger", t_ns=399, account="nccl", bytes=3),
    ]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events, "ledger": book}})
    outside = ("context", "nccl", "libraries", "others", *HOST_ACCOUNTS, "unexplained")
    assert columns(tmp_path, "timeline_by_account") == [
        *("rank", "slice", "t_ns", "is_peak", "active_bytes"),
        *(f"{account}_bytes" for account in (*CATEGORIES, "uncategorised", "cached", *outside)),
    ]
    nothing, no = (0, 0, 0, 0, 0), (0, 0, 0, 0)
    assert answer(tmp_path, "timeline_by_account") == [*wide([
        (0, 0, 0, False, 0, 0, 0, *nothing, 0, 0, 7, 0, 0, 0, *no, 0),
        (0, 10, 10, True, 12, 4, 8, *nothing, 0, 8, 7, 0, 0, 0, *no, 0),
        (0, 10, 10, False, 2, 2, 0, *nothing, 0, 18, 7, 0, 0, 0, *no, 0),
        (0, 20, 20, True, 3, 2, 0, *nothing, 1, 17, 7, 0, 0, 0, *no, 0),
        (0, 399, 399, False, 3, 2, 0, *nothing, 1, 17, 7, 3, 0, 0, *no, -3),
    ], 5)]  # fmt: skip


@pytest.mark.parametrize(("source", "moments"), [("cuda", [10, 350, 399]), ("cpu", [10, 200, 350, 399])])
def test_only_samples_of_a_process_have_books_beside_those_of_spans(
    tmp_path: Path, source: str, moments: list[int]
) -> None:
    tables = {
        "spans": [span(1, "denoise", (350, 399), device_used=(9, 9, 9))],
        "allocs": [event(10, "alloc", 8, "weight")],
        "samples": [blank("samples", t_ns=200, device_used_bytes=9, allocated_bytes=8, reserved_bytes=8)],
    }
    make_ranks(make_run(tmp_path, {0: tables}), {}, source=source)
    assert [row["t_ns"] for row in query(tmp_path, "timeline_by_account").to_pylist()] == moments


def test_without_events_the_timeline_by_account_goes_by_the_spans(tmp_path: Path) -> None:
    spans = [span(1, "denoise", (0, 399), device_used=(7, 9, 27), reserved=(0, 2, 20), active=(0, 1, 12))]
    make_run(tmp_path, {0: {"spans": spans}})
    nothing, outside = (0,) * len(CATEGORIES), (0,) * (4 + len(HOST_ACCOUNTS))
    assert answer(tmp_path, "timeline_by_account") == [
        (0, 0, 0, True, 0, *nothing, 0, 0, *outside, 7),
        (0, 199, 199, True, 12, *nothing, 12, 8, *outside, 7),
        (0, 399, 399, True, 1, *nothing, 1, 1, *outside, 7),
    ]


def test_events_alone_have_categories_and_no_books(tmp_path: Path) -> None:
    """GIVEN tensors that were there before the first event, on one of two ranks."""
    events = [event(1, "segment_alloc", 20), event(2, "alloc", 8, "weight")]
    before = event(-1, "alloc", 5, "before", t_ns=1)
    make_run(tmp_path, {0: {"allocs": [before, *events]}, 1: {"allocs": events[:1]}})
    nothing, outside = (0,) * len(CATEGORIES), (0,) * (4 + len(HOST_ACCOUNTS))
    earlier = (*nothing[1:], 5)
    assert answer(tmp_path, "timeline_by_account") == [
        (0, 0, 1, True, 5, *earlier, 0, 0, *outside, 0),
        (0, 0, 1, False, 5, *earlier, 0, 15, *outside, 0),
        (0, 1, 2, True, 13, 8, *earlier[1:], 0, 7, *outside, 0),
        (1, 0, 1, True, 0, *nothing, 0, 20, *outside, 0),
    ]


def test_without_events_a_slice_has_its_peak_and_its_end(tmp_path: Path) -> None:
    """GIVEN slices of 11 ns: in the one of the block tensors rise, fall, and are fewest at its end."""
    spans = [
        span(1, "denoise", (0, 4000), active=(0, 2, 9), reserved=(0, 20, 20)),
        span(2, "denoise/dit.block", (100, 108), parent_id=1, active=(5, 3, 9), reserved=(20, 20, 20)),
    ]
    make_run(tmp_path, {0: {"spans": spans}})
    seen = [row[:5] for row in answer(tmp_path, "timeline_by_account")]
    assert seen == [
        (0, 0, 0, True, 0),
        (0, 9, 104, True, 9),
        (0, 9, 108, False, 3),
        (0, 363, 4000, True, 2),
    ]


def random_events(seed: int) -> list[Row]:
    """Some hundred allocations, told in order, stamped by a clock that is late now and then; far-off gaps in seq."""
    chance = random.Random(seed)
    held: list[tuple[int, str | None]] = []
    rows: list[Row] = []
    now_ns = seq = 0
    for _ in range(900):
        seq += chance.choice((1, 1, 1, 2, 40))
        now_ns += chance.choice((0, 1, 2, 400))
        t_ns = max(0, now_ns - chance.choice((0, 0, 0, 700)))
        kind = chance.random()
        if held and kind < 0.45:
            size, category = held.pop(chance.randrange(len(held)))
            rows.append(event(seq, "free_requested", size, category, t_ns=t_ns))
            seq += 1
            rows.append(event(seq, "free_completed", size, category, t_ns=t_ns))
        elif kind < 0.5:
            action = chance.choice(("segment_alloc", "segment_free"))
            rows.append(event(seq, action, 1000, t_ns=t_ns))
        else:
            size, category = 512 * chance.choice((1, 1, 2, 8, 60)), chance.choice((*CATEGORIES, None))
            held.append((size, category))
            rows.append(event(seq, "alloc", size, category, t_ns=t_ns))
    return rows


def followed(rows: list[Row], rank: int = 0, times: list[int] | None = None) -> list[dict[str, Any]]:
    """The same answer, by going through the events one by one; `times`: of the events of all ranks."""
    times = times or [row["t_ns"] for row in rows]
    first = min(times)
    slice_ns = -(-(max(times) - first + 1) // 400)
    held: dict[str, int] = defaultdict(int)
    now_ns = 0
    moments: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for row in rows:
        if row["action"] == "free_requested":
            continue
        now_ns = max(now_ns, row["t_ns"])
        sign = -1 if row["action"] in ("free_completed", "segment_free") else 1
        if row["action"].startswith("segment"):
            held["reserved"] += sign * row["size_bytes"]
        else:
            held["active"] += sign * row["size_bytes"]
            held[row["category"]] += sign * row["size_bytes"]
        held_at_least = max(held["reserved"], held["active"])
        slice_ = (now_ns - first) // slice_ns
        moment = {"rank": rank, "slice": slice_, "is_peak": False, "t_ns": now_ns}
        moment |= {"active_bytes": held["active"], "reserved_bytes": held_at_least}
        moment |= {f"{category}_bytes": held[category] for category in CATEGORIES}
        moments[slice_].append((row["seq"], moment))
    found = []
    for seen in moments.values():
        seq, peak = max(seen, key=lambda one: (one[1]["active_bytes"], -one[0]))
        found.append(peak | {"is_peak": True})
        if seen[-1][0] != seq:
            found.append(seen[-1][1])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_categories_over_time_are_exact_however_the_events_lie(tmp_path: Path, seed: int) -> None:
    by_rank = [random_events(seed), random_events(100 + seed)]
    times = [row["t_ns"] for rows in by_rank for row in rows]
    make_run(tmp_path, {rank: {"allocs": rows} for rank, rows in enumerate(by_rank)})
    expected = [row for rank, rows in enumerate(by_rank) for row in followed(rows, rank, times)]
    assert query(tmp_path, "categories_over_time").to_pylist() == expected
