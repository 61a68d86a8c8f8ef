"""The books, the replay check and memory_events: hand-made rows in, exact rows out."""

from pathlib import Path

import pytest
from run_tables import answer, blank, columns, make_ranks, make_run, span


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
        *("fragmentation_bytes", "context_bytes", "nccl_bytes", "libraries_bytes", "others_bytes"),
        "unexplained_bytes",
    ]
    assert answer(run_dir, "books") == [
        (0, 10, 1, "device.init", "device.init", "start", 2, 0, 0, 0, 0, 0, 0, 2),
        (0, 20, 1, "device.init", "device.init", "end", 60, 0, 0, 50, 0, 0, 7, 3),
        (0, 30, 2, "denoise", "denoise", "start", 111, 5, 5, 50, 40, 0, 7, 4),
        (0, 90, 2, "denoise", "denoise", "end", 245, 20, 80, 50, 70, 6, 7, 12),
        (0, 95, 3, "decode", "decode", "start", 245, 20, 80, 50, 70, 6, 7, 12),
        (0, 99, 3, "decode", "decode", "end", 150, 20, 10, 50, 40, 6, 7, 17),
        (1, 0, 1, "denoise", "denoise", "start", 0, 0, 0, 0, 0, 0, 0, 0),
        (1, 1, 1, "denoise", "denoise", "end", 0, 0, 0, 0, 0, 0, 0, 0),
    ]
    rows = answer(run_dir, "books")
    assert [sum(row[7:]) for row in rows] == [row[6] for row in rows]


def test_books_at_peak(run_dir: Path) -> None:
    assert columns(run_dir, "books_at_peak") == [
        *("rank", "t_ns", "path", "account", "bytes", "share_fraction", "device_used_bytes")
    ]
    accounts = {
        "active": 20,
        "fragmentation": 80,
        "context": 50,
        "nccl": 70,
        "libraries": 6,
        "others": 7,
        "unexplained": 12,
    }
    # Of the two boundaries at 245 the earlier one counts.
    assert answer(run_dir, "books_at_peak") == [
        *((0, 90, "denoise", account, size, size / 245, 245) for account, size in accounts.items()),
        *((1, 0, "denoise", account, 0, None, 0) for account in accounts),
    ]


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
    ]
    make_ranks(tmp_path, exact, *({**exact, **fault} for fault in faults))
    assert columns(tmp_path, "replay_check") == [
        *("rank", "is_exact", "status", "num_events", "num_lost_events", "num_checks", "max_error_bytes"),
        *("allocated_peak_bytes", "allocated_peak_error_bytes"),
        *("reserved_peak_bytes", "reserved_peak_error_bytes"),
        *("recorder_ns", "longest_pause_ns", "recorder_bytes"),
    ]
    assert answer(tmp_path, "replay_check") == [
        (0, True, "ok", 9, 0, 3, 0, 50, 0, 70, 0, 4, 2, 8),
        (1, False, "ok", 9, 0, 3, 512, 50, 0, 70, 0, 4, 2, 8),
        (2, False, "ok", 9, 1, 3, 0, 50, 0, 70, 0, 4, 2, 8),
        (3, False, "ok", 9, 0, 3, 0, 50, -1, 70, 0, 4, 2, 8),
        (4, False, "ok", 9, 0, 3, 0, 50, 0, 70, 2, 4, 2, 8),
        (5, False, "died", 9, 0, 0, 0, 50, 0, 70, 0, 4, 2, 8),
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
        ),
    ]
    make_run(tmp_path, {0: {"spans": spans}})
    assert columns(tmp_path, "memory_events") == [
        *("rank", "name", "stage", "component", "step", "path", "phase", "failed", "t_ns"),
        *(f"{what}_bytes" for what in ("allocated", "reserved", "active", "device_used", "host_rss")),
        *(f"{what}_peak_bytes" for what in ("allocated", "reserved", "active", "device_used")),
    ]
    none = (None,) * 4
    text, load = (0, "encode.text", "encode.text", None, None), (0, "load.t5", "encode.text", "t5", None)
    step = (0, "denoise", "denoise", None, 3)
    assert answer(tmp_path, "memory_events") == [
        (*text, "encode.text", "start", False, 0, 1, 0, 0, 0, 0, *none),
        (*load, "encode.text/load.t5", "start", False, 1, 0, 4, 0, 0, 0, *none),
        (*load, "encode.text/load.t5", "end", False, 10, 0, 5, 0, 0, 0, 0, 6, 0, 0),
        (*text, "encode.text", "end", False, 50, 2, 0, 0, 0, 0, 3, 0, 0, 0),
        (*step, "denoise", "start", True, 50, 0, 0, 7, 10, 13, *none),
        (*step, "denoise", "end", True, 60, 0, 0, 8, 11, 14, 0, 0, 9, 12),
    ]
