"""Questions about peaks and who has them: hand-made rows in, exact rows out."""

from pathlib import Path

import pytest
from run_tables import answer, blank, columns, event, make_ranks, make_run, span


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two ranks; the second one does not decode, and its device was fullest between two spans."""
    first = [
        span(1, "encode.text", (0, 90), allocated=(0, 5, 50), reserved=(0, 60, 60), active=(0, 5, 55)),
        span(
            2,
            "denoise",
            (100, 200),
            allocated=(5, 10, 90),
            reserved=(60, 100, 100),
            device_used=(0, 0, 120),
            device_used_bound_bytes=140,
            num_samples=2,
            active=(5, 10, 92),
            step=0,
            num_allocs=3,
            num_segments=2,
            num_retries=1,
        ),
        span(
            3,
            "denoise/dit.block",
            (110, 120),
            parent_id=2,
            allocated=(6, 6, 90),
            reserved=(60, 60, 70),
            step=0,
            block=0,
        ),
        span(
            4,
            "denoise/dit.block",
            (120, 130),
            parent_id=2,
            allocated=(6, 6, 90),
            reserved=(60, 60, 70),
            step=0,
            block=1,
        ),
        span(
            5,
            "denoise",
            (200, 250),
            allocated=(10, 10, 80),
            reserved=(100, 100, 100),
            active=(10, 10, 85),
            host_rss=(8, 8, 8),
            step=1,
            num_allocs=3,
            num_segments=5,
            num_retries=3,
        ),
        span(
            6,
            "decode",
            (250, 300),
            allocated=(10, 2, 70),
            reserved=(100, 30, 130),
            active=(10, 2, 75),
            host_rss=(9, 9, 9),
        ),
    ]
    second = [
        span(
            1,
            "denoise",
            (100, 250),
            allocated=(0, 0, 40),
            reserved=(0, 80, 80),
            device_used=(0, 90, 90),
            device_used_bound_bytes=100,
            num_samples=0,
            step=0,
        )
    ]
    sample = blank("samples", t_ns=260, device_used_bytes=95, host_rss_bytes=7)
    make_run(tmp_path, {0: {"spans": first}, 1: {"spans": second, "samples": [sample]}})
    return make_ranks(tmp_path, {"device_total_bytes": 1000, "peak_at_least": True})


@pytest.mark.parametrize(
    "name", ["peak_by_rank", "peak_by_stage", "imbalance", "stage_bands", "timeline", "fragmentation"]
)
def test_nothing_recorded_gives_no_rows(tmp_path: Path, name: str) -> None:
    assert answer(make_run(tmp_path, {0: {}}), name) == []


def test_peak_by_rank(run_dir: Path) -> None:
    assert columns(run_dir, "peak_by_rank") == [
        "rank",
        *("allocated_peak_bytes", "reserved_peak_bytes", "peak_at_least", "active_peak_bytes"),
        *("device_used_peak_bytes", "num_samples", "device_used_bound_bytes", "host_rss_peak_bytes"),
        *("device_total_bytes", "stage", "path", "step"),
    ]
    # The peak of 90 is seen by two blocks and the step around them: the first of the innermost is named.
    assert answer(run_dir, "peak_by_rank") == [
        (0, 90, 130, True, 92, 120, 2, 140, 9, 1000, "denoise", "denoise/dit.block", 0),
        (1, 40, 80, False, 0, 95, 1, 100, 7, None, "denoise", "denoise", 0),
    ]


def test_what_is_active_is_no_less_than_what_is_allocated(tmp_path: Path) -> None:
    """The peak was outside of all spans, where nobody asks for what is active."""
    one = {"spans": [span(1, "denoise", (0, 5), allocated=(0, 0, 50), active=(0, 0, 55))]}
    sample = blank("samples", t_ns=300, allocated_bytes=70)
    make_run(tmp_path, {0: one, 1: {**one, "samples": [sample]}, 2: {"samples": [sample]}, 3: one})
    make_ranks(tmp_path, {"allocated_peak_bytes": 90}, {}, {}, {})
    rows = [
        dict(zip(columns(tmp_path, "peak_by_rank"), row, strict=True))
        for row in answer(tmp_path, "peak_by_rank")
    ]
    assert [(row["allocated_peak_bytes"], row["active_peak_bytes"]) for row in rows] == [
        (90, 90),
        (70, 70),
        (70, None),
        (50, 55),
    ]


def test_peak_by_stage(run_dir: Path) -> None:
    assert columns(run_dir, "peak_by_stage") == [
        *("rank", "stage", "num_spans", "duration_ns", "duration_error_ns"),
        *("allocated_peak_bytes", "reserved_peak_bytes"),
        *("peak_at_least", "active_peak_bytes", "device_used_peak_bytes", "num_samples"),
        *("device_used_bound_bytes", "host_rss_peak_bytes", "num_allocs", "num_segments", "num_retries"),
    ]
    assert answer(run_dir, "peak_by_stage") == [
        (0, "encode.text", 1, 90, None, 50, 60, True, 55, 0, 1, 0, 0, 0, 0, 0),
        # The first of its two steps has the peaks; what is inside them is not counted again.
        (0, "denoise", 2, 150, None, 90, 100, True, 92, 120, 3, 140, 8, 6, 7, 4),
        (0, "decode", 1, 50, None, 70, 130, True, 75, 0, 1, 0, 9, 0, 0, 0),
        (1, "denoise", 1, 150, None, 40, 80, False, 0, 90, 0, 100, 0, 0, 0, 0),
    ]


def test_imbalance(run_dir: Path) -> None:
    assert columns(run_dir, "imbalance") == [
        *("stage", "measure", "num_ranks", "max_bytes", "mean_bytes", "min_bytes", "is_at_least"),
        *("max_over_mean", "max_rank", "component", "component_bytes"),
    ]
    # Rank 0 may have had more before its first event; rank 1's device was looked at only between spans.
    assert answer(run_dir, "imbalance") == [
        (None, "allocated", 2, 90, 65, 40, True, 90 / 65, 0, None, None),
        (None, "device_used", 2, 120, 105, 90, True, 120 / 105, 0, None, None),
        (None, "reserved", 2, 130, 105, 80, True, 130 / 105, 0, None, None),
        ("denoise", "allocated", 2, 90, 65, 40, True, 90 / 65, 0, None, None),
        ("denoise", "device_used", 2, 120, 105, 90, True, 120 / 105, 0, None, None),
        ("denoise", "reserved", 2, 100, 90, 80, True, 100 / 90, 0, None, None),
        ("encode.text", "allocated", 1, 50, 50, 50, True, 1.0, 0, None, None),
        ("encode.text", "device_used", 1, 0, 0, 0, False, None, 0, None, None),
        ("encode.text", "reserved", 1, 60, 60, 60, True, 1.0, 0, None, None),
        ("decode", "allocated", 1, 70, 70, 70, True, 1.0, 0, None, None),
        ("decode", "device_used", 1, 0, 0, 0, False, None, 0, None, None),
        ("decode", "reserved", 1, 130, 130, 130, True, 1.0, 0, None, None),
    ]


def test_of_equal_ranks_the_lowest_is_named(tmp_path: Path) -> None:
    spans = {"spans": [span(1, "decode", (0, 1), allocated=(0, 0, 7))]}
    make_run(tmp_path, dict.fromkeys((3, 1, 2), spans))
    rows = answer(tmp_path, "imbalance")
    assert rows[0] == (None, "allocated", 3, 7, 7, 7, False, 1.0, 1, None, None)


def test_fragmentation_and_fluctuation(tmp_path: Path) -> None:
    """Reserved grows to its peak in the first step, twice, for a tensor each time; decode begins with that peak."""
    spans = [
        span(1, "denoise", (0, 10), allocated=(5, 5, 90), reserved=(10, 100, 100), active=(5, 6, 95), step=0),
        span(
            2,
            "denoise/dit.block",
            (2, 4),
            parent_id=1,
            allocated=(8, 30, 90),
            reserved=(100, 100, 100),
            active=(8, 30, 95),
            step=0,
        ),
        span(
            3, "denoise", (10, 20), allocated=(5, 7, 70), reserved=(100, 100, 100), active=(6, 7, 75), step=1
        ),
        span(4, "decode", (20, 30), reserved=(100, 90, 100)),
    ]
    events = [
        event(1, "segment_alloc", 10),
        event(2, "alloc", 5, "weight"),
        event(3, "segment_alloc", 60, span_id=1),
        event(4, "alloc", 40, span_id=1),
        event(5, "free_requested", 30, span_id=1),
        event(6, "free_completed", 30, span_id=1),
        event(7, "segment_alloc", 30, span_id=2),
        event(8, "alloc", 25, span_id=2),
        event(9, "alloc", 50, span_id=2),
        event(10, "segment_free", 30, span_id=3),
        event(11, "segment_alloc", 30, span_id=3),
        event(12, "alloc", 30, span_id=3),
    ]
    lone = {"spans": [span(1, "decode", (0, 1), reserved=(0, 8, 9), active=(0, 2, 3))]}
    # The last segment that was there holds nothing; the next tensor is of the program.
    before = [
        event(-4, "segment_alloc", 5, "before"),
        event(-3, "alloc", 3, "before"),
        event(-2, "alloc", 1, "before"),
        event(-1, "segment_alloc", 4, "before"),
    ]
    then = event(0, "alloc", 2, "activation", span_id=1)
    early = {"spans": [span(1, "decode", (0, 1), reserved=(0, 9, 9))], "allocs": [*before, then]}
    grown = [event(1, "segment_alloc", 20, span_id=1), event(2, "alloc", 7, "activation", span_id=1)]
    late = {"spans": [span(1, "decode", (0, 1), reserved=(9, 29, 29))], "allocs": [*before, then, *grown]}
    make_run(tmp_path, {0: {"spans": spans, "allocs": events}, 1: lone, 2: early, 3: late})
    assert columns(tmp_path, "fragmentation") == [
        *("rank", "stage", "reserved_peak_bytes", "fragmentation_bytes", "cached_worst_bytes"),
        *("cached_path", "cached_end_bytes", "fluctuation_bytes", "step_spread_bytes"),
    ]
    # 5 + 40 - 30 + 25 of tensors where 100 are reserved for the first time.
    assert answer(tmp_path, "fragmentation") == [
        (0, None, 100, 60, 100, "decode", 90, 90 - 0, None),
        (0, "denoise", 100, 60, 100 - 6, "denoise", 100 - 7, 90 - 5, 90 - 70),
        (0, "decode", 100, None, 100, "decode", 90, 0, 0),
        # Of these two, nobody knows what was there when reserved memory grew.
        (1, None, 9, None, 6, "decode", 6, 0, None),
        (1, "decode", 9, None, 6, "decode", 6, 0, 0),
        (2, None, 9, None, 9, "decode", 9, 0, None),
        (2, "decode", 9, None, 9, "decode", 9, 0, 0),
        # 3 + 1 held before, 2 and 7 taken since.
        (3, None, 29, 29 - 13, 29, "decode", 29, 0, None),
        (3, "decode", 29, 29 - 13, 29, "decode", 29, 0, 0),
    ]


@pytest.mark.parametrize("kind", [("segment_alloc", "segment_free"), ("segment_map", "segment_unmap")])
def test_what_was_held_when_reserved_memory_grew_to_its_peak(tmp_path: Path, kind: tuple[str, str]) -> None:
    """GIVEN 10 of which 4 are given back before 24 more come, for 12 beside 5; as much comes again later."""
    take, give = kind
    events = [
        event(1, take, 10, span_id=1),
        event(2, "alloc", 5, span_id=1),
        event(3, give, 4, span_id=1),
        event(4, take, 24, span_id=1),
        event(5, "alloc", 12, span_id=1),
        event(6, give, 9, span_id=1),
        event(7, take, 9, span_id=1),
        event(8, "alloc", 1, span_id=1),
    ]
    whole = span(1, "denoise", (0, 9), allocated=(0, 18, 18), active=(0, 18, 18), reserved=(0, 30, 30))
    make_run(tmp_path, {0: {"spans": [whole], "allocs": events}})
    assert answer(tmp_path, "fragmentation") == [
        (0, None, 30, 30 - 5 - 12, 30 - 18, "denoise", 30 - 18, 18, None),
        (0, "denoise", 30, 30 - 5 - 12, 30 - 18, "denoise", 30 - 18, 18, 0),
    ]


def test_stage_bands_join_the_steps_and_split_what_comes_again(run_dir: Path, tmp_path: Path) -> None:
    assert answer(run_dir, "stage_bands") == [
        (0, "encode.text", 0, 90),
        (0, "denoise", 100, 250),
        (0, "decode", 250, 300),
        (1, "denoise", 100, 250),
    ]
    again = [span(1, "denoise", (0, 1)), span(2, "decode", (1, 2)), span(3, "denoise", (2, 3))]
    make_run(tmp_path / "again", {0: {"spans": again}})
    assert answer(tmp_path / "again", "stage_bands") == [
        (0, "denoise", 0, 1),
        (0, "decode", 1, 2),
        (0, "denoise", 2, 3),
    ]


def test_timeline_puts_a_peak_where_it_was_innermost(tmp_path: Path) -> None:
    spans = [
        span(1, "denoise", (0, 399), allocated=(1, 2, 90), reserved=(10, 10, 40)),
        span(2, "denoise/dit.block", (100, 120), parent_id=1, allocated=(3, 4, 90), reserved=(10, 10, 20)),
    ]
    sample = blank("samples", t_ns=300, allocated_bytes=6, reserved_bytes=7, device_used_bytes=8)
    make_run(tmp_path, {0: {"spans": spans, "samples": [sample]}})
    # 400 ns in 400 slices: one each. The allocated peak belongs to the block, the reserved one to the step.
    assert columns(tmp_path, "timeline") == [
        *("rank", "slice", "start_ns", "end_ns", "allocated_bytes", "reserved_bytes", "device_used_bytes")
    ]
    assert answer(tmp_path, "timeline") == [
        (0, 0, 0, 1, 1, 10, 0),
        (0, 100, 100, 101, 3, 10, 0),
        (0, 110, 110, 111, 90, 20, None),
        (0, 120, 120, 121, 4, 10, 0),
        (0, 199, 199, 200, None, 40, None),
        (0, 300, 300, 301, 6, 7, 8),
        (0, 399, 399, 400, 2, 10, 0),
    ]
