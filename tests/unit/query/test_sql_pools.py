"""What each memory pool holds at the peak: hand-made rows in, rows out."""

from pathlib import Path

from run_tables import Row, answer, blank, columns, event, make_run, span

MIB = 2**20


def pool(seq: int, name: str) -> Row:
    return blank("segment_pools", seq=seq, pool=name)


def test_pools(tmp_path: Path) -> None:
    events = [
        event(-2, "segment_alloc", 20 * MIB, "before", address=0),
        event(-1, "alloc", 7 * MIB, "before", address=0),
        event(1, "segment_alloc", 40 * MIB, address=100 * MIB),
        event(2, "alloc", 30 * MIB, "activation", address=100 * MIB),
        event(3, "segment_map", 20 * MIB, address=200 * MIB),
        event(4, "segment_map", 20 * MIB, address=220 * MIB),
        event(5, "alloc", 5 * MIB, "activation", address=230 * MIB),  # the peak
        event(6, "free_requested", 30 * MIB, address=100 * MIB),
        event(7, "free_completed", 30 * MIB, address=100 * MIB),
        event(8, "segment_unmap", 20 * MIB, address=200 * MIB),
        event(9, "segment_alloc", 2 * MIB, address=300 * MIB),
    ]
    named = [pool(1, "(1, 0)"), pool(3, "(0, 1)"), pool(4, "(0, 1)"), pool(8, "(0, 1)"), pool(9, "(2, 0)")]
    whole = span(1, "script", (0, 10), allocated=(7 * MIB, 12 * MIB, 42 * MIB), reserved=(0, 0, 100 * MIB))
    rows = {"spans": [whole], "allocs": events, "segment_pools": named}
    run_dir = make_run(tmp_path, {0: rows, 1: {"spans": [whole], "allocs": events}})
    assert columns(run_dir, "pools") == [
        "rank", "pool", "owner", "num_segments", "reserved_bytes", "allocated_bytes", "reserved_peak_bytes"
    ]  # fmt: skip
    assert answer(run_dir, "pools") == [
        (0, "(0, 1)", "shared", 2, 40 * MIB, 5 * MIB, 40 * MIB),
        (0, "(1, 0)", "graph", 1, 40 * MIB, 30 * MIB, 40 * MIB),
        (0, "(0, 0)", "default", 1, 20 * MIB, 7 * MIB, 20 * MIB),
        (0, "(2, 0)", "graph", 0, 0, 0, 2 * MIB),
    ]


def test_a_run_without_other_pools_has_no_rows(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, {0: {"allocs": [event(1, "segment_alloc", 2 * MIB, address=0)]}})
    assert answer(run_dir, "pools") == []
