"""The books, the replay check and memory_events: hand-made rows in, exact rows out."""

from pathlib import Path

import pytest
from run_tables import Row, answer, blank, columns, event, make_ranks, make_run, span


def entry(t_ns: int, account: str, size: int) -> dict[str, object]:
    return blank("ledger", t_ns=t_ns, account=account, bytes=size)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The ledger grows at, between and after boundaries; two changes fall on the same moment; NCCL shrinks again."""
    spans = [
        span(1, "device.init", (10, 20), device_used=(2, 60, 60)),
        span(
            2,
            "denoise",
            (30, 90),
            active=(5, 20, 80),
            reserved=(10, 100, 100),
            device_used=(111, 245, 245),
            step=0,
        ),
        span(
            3, "decode", (95, 99), active=(20, 20, 20), reserved=(100, 30, 100), device_used=(245, 150, 245)
        ),
    ]
    ledger = [
        entry(20, "context", 50),
        entry(20, "others", 7),
        entry(25, "nccl", 40),
        entry(60, "libraries", 6),
        entry(60, "nccl", 30),
        entry(99, "nccl", -30),
        entry(200, "context", 1_000),
    ]
    silent = [span(1, "denoise", (0, 1))]
    return make_run(tmp_path, {0: {"spans": spans, "ledger": ledger}, 1: {"spans": silent}})


@pytest.mark.parametrize("name", ["books", "books_at_peak", "replay_check", "memory_events"])
def test_nothing_recorded_gives_no_rows(tmp_path: Path, name: str) -> None:
    assert answer(make_run(tmp_path, {0: {}}), name) == []


def test_books(run_dir: Path) -> None:
    names = columns(run_dir, "books")
    assert names == [
        *("rank", "t_ns", "span_id", "stage", "path", "edge", "device_used_bytes", "active_bytes"),
        *("cached_bytes", "context_bytes", "nccl_bytes", "libraries_bytes", "others_bytes"),
        *("heap_bytes", "files_bytes", "shared_bytes", "absent_bytes", "unexplained_bytes"),
    ]
    assert answer(run_dir, "books") == [
        (0, 10, 1, "device.init", "device.init", "start", 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2),
        (0, 20, 1, "device.init", "device.init", "end", 60, 0, 0, 50, 0, 0, 7, 0, 0, 0, 0, 3),
        (0, 30, 2, "denoise", "denoise", "start", 111, 5, 5, 50, 40, 0, 7, 0, 0, 0, 0, 4),
        (0, 90, 2, "denoise", "denoise", "end", 245, 20, 80, 50, 70, 6, 7, 0, 0, 0, 0, 12),
        (0, 95, 3, "decode", "decode", "start", 245, 20, 80, 50, 70, 6, 7, 0, 0, 0, 0, 12),
        (0, 99, 3, "decode", "decode", "end", 150, 20, 10, 50, 40, 6, 7, 0, 0, 0, 0, 17),
        (1, 0, 1, "denoise", "denoise", "start", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (1, 1, 1, "denoise", "denoise", "end", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ]
    rows = answer(run_dir, "books")
    assert [sum(row[7:]) for row in rows] == [row[6] for row in rows]


def test_books_at_peak(run_dir: Path) -> None:
    assert columns(run_dir, "books_at_peak") == [
        *("rank", "t_ns", "path", "account", "bytes", "share_fraction", "device_used_bytes", "note")
    ]
    accounts = {
        "active": 80,
        "cached": 20,
        "context": 50,
        "nccl": 70,
        "libraries": 6,
        "others": 7,
        "unexplained": 12,
    }
    # Two boundaries are at 245. Without events, the most inside the span that ends there counts.
    assert answer(run_dir, "books_at_peak") == [
        *((0, 60, "denoise", account, size, size / 245, 245, None) for account, size in accounts.items()),
        *((1, 0, "denoise", account, 0, None, 0, None) for account in accounts),
    ]


def full_run(tmp_path: Path, events: list[Row], samples: list[Row]) -> dict[str, int]:
    """The books of a rank whose device is at 130 from some moment of its first step on; 30 are of a library."""
    spans = [
        span(1, "script", (0, 100), reserved=(0, 100, 100), active=(0, 5, 70), device_used=(30, 130, 130)),
        span(2, "script/Step", (10, 40), parent_id=1, depth=1, reserved=(0, 100, 100), active=(0, 9, 9)),
        span(3, "script/Step", (50, 90), parent_id=1, reserved=(100, 100, 100), active=(9, 6, 6)),
    ]
    for row in spans[1:]:
        row |= {f"device_used_{end}_bytes": 130 for end in ("start", "end", "peak")}
    spans[1]["device_used_start_bytes"] = 30
    ledger = [entry(0, "libraries", 30)]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events, "samples": samples, "ledger": ledger}})
    rows = answer(tmp_path, "books_at_peak")
    assert sum(row[4] for row in rows) == 130 == rows[0][6]
    return {"t_ns": rows[0][1], **{row[3]: row[4] for row in rows if row[4]}}


GROWTH = [
    event(1, "alloc", 60, t_ns=12, address=1, span_id=2),
    event(2, "segment_alloc", 60, t_ns=11, span_id=2),
    event(3, "free_completed", 60, t_ns=13, address=1, span_id=2),
    event(4, "segment_alloc", 40, t_ns=20, span_id=2),
    event(5, "alloc", 9, t_ns=21, address=2, span_id=2),
]
"""Reserved is at 100 from 20 on, where tensors have 9 at first; they had 60 with less reserved."""
LATER = [
    event(6, "alloc", 40, t_ns=45, address=3),
    event(7, "free_requested", 40, t_ns=46, address=3),
    event(8, "free_completed", 40, t_ns=48, address=3),
    event(9, "alloc", 40, t_ns=60, address=4, span_id=3),
    event(10, "free_completed", 43, t_ns=70, address=4, span_id=3),
]
"""Between two spans, in no span, tensors have 49; so they have in the second step."""


@pytest.mark.parametrize("apart", [1, 40])
def test_of_moments_that_are_equally_full_the_one_with_most_in_tensors_counts(
    tmp_path: Path, apart: int
) -> None:
    """However far apart the numbers of the events are: the query sums 32 at once."""
    events = [{**row, "seq": apart * row["seq"]} for row in (*GROWTH, *LATER)]
    assert full_run(tmp_path, events, []) == {
        "t_ns": 45,
        "active": 49,
        "cached": 51,
        "libraries": 30,
    }


def test_a_device_that_gave_memory_back_is_not_as_full(tmp_path: Path) -> None:
    """GIVEN the tensors of 49 while 10 of the 100 were given back, and what tensors had before reserved grew again."""
    smaller = [event(11, "segment_free", 10, t_ns=71), event(12, "alloc", 90, t_ns=72, address=5)]
    again = [
        event(13, "free_completed", 86, t_ns=73, address=5),
        event(14, "segment_alloc", 10, t_ns=80),
        event(15, "alloc", 2, t_ns=81, address=6),
    ]
    found = full_run(tmp_path, [*GROWTH, *smaller, *again], [])
    assert (found["t_ns"], found["active"]) == (81, 15)


def test_what_tensors_have_after_memory_was_given_back_hides_no_full_moment(tmp_path: Path) -> None:
    """GIVEN 32 events that begin with the device full, and end with 96 in tensors where it is not."""
    later = [{**row, "seq": 40 + row["seq"]} for row in LATER]
    smaller = [event(70, "segment_free", 10, t_ns=71), event(71, "alloc", 90, t_ns=72, address=5)]
    again = [
        event(100, "free_completed", 90, t_ns=73, address=5),
        event(101, "segment_alloc", 10, t_ns=80),
    ]
    found = full_run(tmp_path, [*GROWTH, *later, *smaller, *again], [])
    assert (found["t_ns"], found["active"]) == (45, 49)


def test_a_span_that_begins_and_ends_at_one_moment_was_full_at_its_end(tmp_path: Path) -> None:
    """GIVEN a span shorter than a tick of the clock, in which the device became full until the next one begins."""
    spans = [
        span(1, "a", (0, 40), reserved=(0, 60, 60), active=(0, 20, 20), device_used=(0, 60, 60)),
        span(2, "b", (50, 50), reserved=(60, 100, 100), active=(20, 20, 20), device_used=(60, 130, 130)),
        span(3, "c", (60, 70), reserved=(100, 90, 100), active=(20, 20, 20), device_used=(120, 90, 120)),
    ]
    events = [
        event(1, "segment_alloc", 60, t_ns=5, span_id=1),
        event(2, "alloc", 20, t_ns=6, address=1, span_id=1),
        event(3, "segment_alloc", 40, t_ns=50, span_id=2),
        event(4, "alloc", 9, t_ns=55, address=2),
        event(5, "free_completed", 9, t_ns=57, address=2),
    ]
    make_run(tmp_path, {0: {"spans": spans, "allocs": events}})
    held = {"active": 29, "cached": 71, "context": 0, "nccl": 0, "libraries": 0, "others": 0}
    assert answer(tmp_path, "books_at_peak") == [
        (0, 55, None, account, size, size / 130, 130, None)
        for account, size in (*held.items(), ("unexplained", 30))
    ]


def test_a_sample_that_the_allocator_kept_waiting_does_not_say_what_it_held(tmp_path: Path) -> None:
    late = blank("samples", t_ns=61, device_used_bytes=130, allocated_bytes=99, reserved_bytes=99)
    assert full_run(tmp_path, [*GROWTH, *LATER], [late])["active"] == 49


def test_without_events_a_span_counts_with_its_peak_where_it_ends_full(tmp_path: Path) -> None:
    assert full_run(tmp_path, [], []) == {"t_ns": 50, "active": 70, "cached": 30, "libraries": 30}


def test_of_nested_spans_that_end_equally_full_the_first_of_the_innermost_counts(tmp_path: Path) -> None:
    full = {"active": (0, 5, 70), "reserved": (0, 100, 100), "device_used": (30, 130, 130)}
    late = {"active": (5, 5, 70), "reserved": (100, 100, 100), "device_used": (130, 130, 130)}
    spans = [
        span(1, "a", (0, 100), **full),
        span(2, "a/b", (10, 60), parent_id=1, **full),
        span(3, "a/c", (70, 90), parent_id=1, **late),
    ]
    make_run(tmp_path, {0: {"spans": spans}})
    held = {"active": 70, "cached": 30, "context": 0, "nccl": 0, "libraries": 0, "others": 0}
    assert answer(tmp_path, "books_at_peak") == [
        (0, 35, "a/b", account, size, size / 130, 130, None)
        for account, size in (*held.items(), ("unexplained", 30))
    ]


def test_the_device_is_full_where_it_was_measured(tmp_path: Path) -> None:
    """GIVEN a sample above every boundary THEN it counts, with what the allocator held by its events then."""
    sample = blank("samples", t_ns=47, device_used_bytes=140, allocated_bytes=1, reserved_bytes=1)
    spans = [
        span(1, "a", (0, 40), device_used=(0, 90, 90)),
        span(2, "a/b", (45, 60), device_used=(90, 90, 90)),
    ]
    ledger = [entry(0, "context", 25)]
    make_run(
        tmp_path, {0: {"spans": spans, "allocs": [*GROWTH, *LATER], "samples": [sample], "ledger": ledger}}
    )
    held = {"active": 49, "cached": 51, "context": 25, "nccl": 0, "libraries": 0, "others": 0}
    assert answer(tmp_path, "books_at_peak") == [
        (0, 45, None, account, size, size / 140, 140, None)
        for account, size in (*held.items(), ("unexplained", 15))
    ]


@pytest.mark.parametrize(
    ("action", "cached"),
    [("segment_alloc", 121), ("segment_map", 121), ("segment_free", 61), ("segment_unmap", 61)],
)
def test_a_sample_is_told_with_all_that_was_taken_and_given_back_before_it(
    tmp_path: Path, action: str, cached: int
) -> None:
    """GIVEN 100 that are reserved, 30 more or less before the sample, and as much again after it."""
    changes = [event(6, action, 30, t_ns=45, span_id=1), event(7, action, 30, t_ns=48, span_id=1)]
    sample = blank("samples", t_ns=47, device_used_bytes=190)
    spans = [span(1, "a", (0, 60), device_used=(0, 90, 90))]
    make_run(tmp_path, {0: {"spans": spans, "allocs": [*GROWTH, *changes], "samples": [sample]}})
    held = {row[3]: row[4] for row in answer(tmp_path, "books_at_peak") if row[4]}
    assert held == {"active": 9, "cached": cached, "unexplained": 190 - 9 - cached}


@pytest.mark.parametrize(("used", "active"), [(0, 3), (1, 8)])
def test_tensors_count_where_the_device_was_measured_however_little_is_used(
    tmp_path: Path, used: int, active: int
) -> None:
    spans = [
        span(1, "a", (0, 9), active=(3, 8, 8), reserved=(20, 20, 40), device_used=(used, used, used)),
    ]
    make_run(tmp_path, {0: {"spans": spans}})
    assert {row[3]: row[4] for row in answer(tmp_path, "books_at_peak")}["active"] == active


def test_replay_check(tmp_path: Path) -> None:
    exact = {
        "status": "ok",
        "num_events": 9,
        "num_checks": 3,
        "allocated_peak_bytes": 50,
        "replayed_allocated_peak_bytes": 50,
        "reserved_peak_bytes": 70,
        "replayed_reserved_peak_bytes": 70,
        "recorder_ns": 4,
        "longest_pause_ns": 2,
        "recorder_bytes": 8,
    }
    faults = [
        {"max_error_bytes": 512},
        {"num_lost_events": 1},
        {"replayed_allocated_peak_bytes": 49},
        {"replayed_reserved_peak_bytes": 72},
        {"num_checks": 0, "status": "died"},
        {"inexact_bytes": 512, "peak_at_least": True},
        {"inexact_bytes": 512, "max_error_bytes": 512, "replayed_reserved_peak_bytes": 580},
        {"inexact_bytes": 512, "max_error_bytes": 512, "replayed_allocated_peak_bytes": 562},
        {"inexact_bytes": 512, "max_error_bytes": 513},
        {"inexact_bytes": 512, "num_lost_events": 1},
        {"inexact_bytes": 512, "num_checks": 0},
    ]
    make_ranks(tmp_path, exact, *({**exact, **fault} for fault in faults))
    assert columns(tmp_path, "replay_check") == [
        *(
            "rank",
            "is_exact",
            "is_within",
            "status",
            "num_events",
            "num_lost_events",
            "num_checks",
            "max_error_bytes",
        ),
        *("inexact_bytes", "peak_at_least"),
        *("allocated_peak_bytes", "allocated_peak_error_bytes"),
        *("reserved_peak_bytes", "reserved_peak_error_bytes"),
        *("recorder_ns", "longest_pause_ns", "recorder_bytes"),
    ]
    assert answer(tmp_path, "replay_check") == [
        (0, True, False, "ok", 9, 0, 3, 0, 0, False, 50, 0, 70, 0, 4, 2, 8),
        (1, False, False, "ok", 9, 0, 3, 512, 0, False, 50, 0, 70, 0, 4, 2, 8),
        (2, False, False, "ok", 9, 1, 3, 0, 0, False, 50, 0, 70, 0, 4, 2, 8),
        (3, False, False, "ok", 9, 0, 3, 0, 0, False, 50, -1, 70, 0, 4, 2, 8),
        (4, False, False, "ok", 9, 0, 3, 0, 0, False, 50, 0, 70, 2, 4, 2, 8),
        (5, False, False, "died", 9, 0, 0, 0, 0, False, 50, 0, 70, 0, 4, 2, 8),
        (6, False, True, "ok", 9, 0, 3, 0, 512, True, 50, 0, 70, 0, 4, 2, 8),
        (7, False, True, "ok", 9, 0, 3, 512, 512, False, 50, 0, 70, 510, 4, 2, 8),
        (8, False, True, "ok", 9, 0, 3, 512, 512, False, 50, 512, 70, 0, 4, 2, 8),
        (9, False, False, "ok", 9, 0, 3, 513, 512, False, 50, 0, 70, 0, 4, 2, 8),
        (10, False, False, "ok", 9, 1, 3, 0, 512, False, 50, 0, 70, 0, 4, 2, 8),
        (11, False, False, "ok", 9, 0, 0, 0, 512, False, 50, 0, 70, 0, 4, 2, 8),
    ]


def test_memory_events_leave_out_what_is_inside_a_network(tmp_path: Path) -> None:
    spans = [
        span(1, "encode.text", (0, 50), allocated=(1, 2, 3), component=None),
        span(2, "encode.text/load.t5", (1, 10), parent_id=1, reserved=(4, 5, 6), component="t5"),
        span(3, "encode.text/t5.block", (10, 12), parent_id=1, component="t5", block=0),
        span(
            4,
            "denoise",
            (50, 60),
            active=(7, 8, 9),
            device_used=(10, 11, 12),
            host_rss=(13, 14, 15),
            step=3,
            failed=True,
            num_samples=0,
        ),
    ]
    make_ranks(make_run(tmp_path, {0: {"spans": spans}}), {"peak_at_least": True})
    assert columns(tmp_path, "memory_events") == [
        *("rank", "name", "stage", "component", "step", "path", "phase", "failed", "t_ns"),
        *(f"{what}_bytes" for what in ("allocated", "reserved", "active", "device_used", "host_rss")),
        *(f"{what}_peak_bytes" for what in ("allocated", "reserved", "active", "device_used")),
        *("num_samples", "peak_at_least"),
    ]
    none = (None,) * 6
    text, load = (0, "encode.text", "encode.text", None, None), (0, "load.t5", "encode.text", "t5", None)
    step = (0, "denoise", "denoise", None, 3)
    assert answer(tmp_path, "memory_events") == [
        (*text, "encode.text", "start", False, 0, 1, 0, 0, 0, 0, *none),
        (*load, "encode.text/load.t5", "start", False, 1, 0, 4, 0, 0, 0, *none),
        (*load, "encode.text/load.t5", "end", False, 10, 0, 5, 0, 0, 0, 0, 6, 0, 0, 1, True),
        (*text, "encode.text", "end", False, 50, 2, 0, 0, 0, 0, 3, 0, 0, 0, 1, True),
        (*step, "denoise", "start", True, 50, 0, 0, 7, 10, 13, *none),
        (*step, "denoise", "end", True, 60, 0, 0, 8, 11, 14, 0, 0, 9, 12, 0, True),
    ]


def test_books_of_a_process_tell_heap_files_and_shared_memory(tmp_path: Path) -> None:
    """GIVEN a run of the CPU: WHEN it is fullest inside its only span THEN the sample there has its own books."""
    spans = [span(1, "script", (0, 100), active=(0, 9, 40), reserved=(0, 9, 40), device_used=(50, 60, 130))]
    sample = blank("samples", t_ns=50, device_used_bytes=130, allocated_bytes=40, reserved_bytes=40)
    ledger = [
        entry(0, "context", 50),
        *(
            entry(50, name, size)
            for name, size in {"heap": 30, "files": 12, "shared": 3, "absent": -5}.items()
        ),
    ]
    tables = {"spans": spans, "samples": [sample], "ledger": ledger}
    make_ranks(make_run(tmp_path, {0: tables}), {}, source="cpu")
    rows = answer(tmp_path, "books_at_peak")
    assert [(row[3], row[4]) for row in rows if row[4]] == [
        *(("active", 40), ("context", 50), ("heap", 30), ("files", 12), ("shared", 3), ("absent", -5)),
    ]
    assert sum(row[4] for row in rows) == 130
    peaks = {row[3]: row[4] for row in answer(tmp_path, "account_peaks") if row[1] is None}
    # At boundaries of spans: the end has the books of the sample still.
    assert {name: peaks[name] for name in ("heap", "files", "shared")} == {
        "heap": 30,
        "files": 12,
        "shared": 3,
    }
    names = columns(tmp_path, "timeline_by_account")
    heaps = [row[names.index("heap_bytes")] for row in answer(tmp_path, "timeline_by_account")]
    assert max(heaps) == 30
