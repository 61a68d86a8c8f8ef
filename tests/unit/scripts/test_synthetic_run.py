"""scripts/make_synthetic_run.py: what it makes is a run whose events, spans and questions agree."""

from pathlib import Path
from types import ModuleType

import pytest

from ray_memprof.allocator.segment_pools import OF_SEGMENTS, SegmentPools
from ray_memprof.query import database
from ray_memprof.report.run_page import render

RANKS, EVENTS, BLOCKS = 2, 10_000, 2

REPLAY = """
    WITH moved AS (
        SELECT rank, seq, span_id,
            CASE action WHEN 'alloc' THEN size_bytes WHEN 'free_requested' THEN -size_bytes ELSE 0 END AS allocated,
            CASE action WHEN 'alloc' THEN size_bytes WHEN 'free_completed' THEN -size_bytes ELSE 0 END AS active,
            CASE action WHEN 'segment_alloc' THEN size_bytes WHEN 'segment_free' THEN -size_bytes ELSE 0 END AS reserved
        FROM allocs
    )
    SELECT rank, seq, span_id,
        SUM(allocated) OVER held AS allocated, SUM(active) OVER held AS active, SUM(reserved) OVER held AS reserved
    FROM moved
    WINDOW held AS (PARTITION BY rank ORDER BY seq)
"""


@pytest.fixture(scope="module")
def run_dir(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("synthetic")
    maker.make(run_dir, RANKS, EVENTS, blocks=BLOCKS)
    maker.finish(run_dir, RANKS)
    return run_dir


def test_as_many_events_as_asked_and_every_file_of_a_run(run_dir: Path) -> None:
    with database.open_run(run_dir) as connection:
        counts = connection.execute("SELECT COUNT(*) FROM allocs GROUP BY rank").fetchall()
    a_step = 2 * BLOCKS * 60
    assert all(abs(count - EVENTS) <= a_step for (count,) in counts)
    names = {path.name for path in run_dir.iterdir()}
    assert names == {"tables", "run.duckdb", "memory_events.json", "report.html"}


def test_replayed_events_give_the_peaks_and_ends_of_spans(run_dir: Path) -> None:
    with database.open_run(run_dir) as connection:
        connection.execute(f"CREATE TABLE replayed AS {REPLAY}")
        innermost = connection.execute(
            "SELECT COUNT(*), COUNT(*) FILTER (WHERE (a, b, c) = (allocated_peak_bytes, active_peak_bytes, "
            "reserved_peak_bytes)) FROM (SELECT rank, span_id, MAX(allocated) AS a, MAX(active) AS b, "
            "MAX(reserved) AS c FROM replayed GROUP BY ALL) JOIN spans USING (rank, span_id) WHERE name = 'dit.block'"
        ).fetchone()
        whole = connection.execute(
            "SELECT rank, MAX(allocated), MAX(reserved) FROM replayed GROUP BY rank ORDER BY rank"
        ).fetchall()
        held = connection.execute(
            "SELECT DISTINCT LAST(allocated ORDER BY seq) FROM replayed GROUP BY rank"
        ).fetchall()
    assert innermost is not None
    assert innermost[0] == innermost[1] > 2 * BLOCKS * RANKS
    peaks = database.query(run_dir, "peak_by_rank").to_pylist()
    assert whole == [(row["rank"], row["allocated_peak_bytes"], row["reserved_peak_bytes"]) for row in peaks]
    assert held == [(0,)]


def test_addresses_are_never_given_out_twice_at_a_time(run_dir: Path) -> None:
    overlaps = (
        "SELECT COUNT(*) FROM (SELECT action, LAG(action) OVER (PARTITION BY rank, address ORDER BY seq) AS before "
        "FROM allocs WHERE action IN ('alloc', 'free_completed')) WHERE action = before"
    )
    with database.open_run(run_dir) as connection:
        assert connection.execute(overlaps).fetchone() == (0,)


def test_the_books_close_but_for_what_was_left_out_on_purpose(run_dir: Path) -> None:
    rows = database.query(run_dir, "books").to_pylist()
    assert {row["unexplained_bytes"] for row in rows} == {0, 6 * 2**20}
    assert {row["is_exact"] for row in database.query(run_dir, "replay_check").to_pylist()} == {True}


def test_times_rise_and_children_lie_inside_their_parents(run_dir: Path) -> None:
    text = (
        "SELECT COUNT(*) FROM spans AS inner_ JOIN spans AS outer_ ON inner_.rank = outer_.rank "
        "AND inner_.parent_id = outer_.span_id WHERE inner_.start_ns < outer_.start_ns "
        "OR inner_.end_ns > outer_.end_ns OR inner_.depth <> outer_.depth + 1"
    )
    late = (
        "SELECT COUNT(*) FROM (SELECT t_ns - LAG(t_ns) OVER (PARTITION BY rank ORDER BY seq) AS gap FROM allocs) "
        "WHERE gap < 0"
    )
    with database.open_run(run_dir) as connection:
        assert connection.execute(text).fetchone() == (0,)
        assert connection.execute(late).fetchone() == (0,)


def test_the_same_arguments_make_the_same_rows(maker: ModuleType, run_dir: Path, tmp_path: Path) -> None:
    maker.make(tmp_path, RANKS, EVENTS, blocks=BLOCKS)
    for table in ("allocs", "spans"):
        parts = [
            folder / "tables" / table / "rank=1" / "part-00000.parquet" for folder in (run_dir, tmp_path)
        ]
        assert parts[0].read_bytes() == parts[1].read_bytes()


GIB = 2**30


@pytest.fixture(scope="module")
def pooled(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the pools of --pools: two graphs of 6 GiB each, and a MemPool of 512 MiB."""
    run_dir = tmp_path_factory.mktemp("pools")
    maker.make(run_dir, RANKS, EVENTS, blocks=BLOCKS, variant=maker.POOLS)
    maker.finish(run_dir, RANKS)
    return run_dir


def test_pools_at_the_peak(pooled: Path) -> None:
    rows = [row for row in database.query(pooled, "pools").to_pylist() if row["rank"] == 1]
    told = {row["pool"]: (row["owner"], row["num_segments"]) for row in rows}
    assert told["(0, 1)"] == ("shared", 1)
    assert told["(1, 0)"] == told["(2, 0)"] == ("graph", 4)
    reserved = {row["pool"]: row["reserved_bytes"] for row in rows}
    assert (reserved["(0, 1)"], reserved["(1, 0)"], reserved["(2, 0)"]) == (GIB // 2, 6 * GIB, 6 * GIB)
    # A quarter of the first graph's pool is free, and nothing else may use it; the second is being captured.
    allocated = {row["pool"]: row["allocated_bytes"] for row in rows if row["owner"] == "graph"}
    assert allocated == {"(1, 0)": 6 * GIB * 3 // 4, "(2, 0)": 6 * GIB}


def test_pools_sum_to_what_the_allocator_holds_at_the_peak(pooled: Path) -> None:
    moment = "SELECT rank, MAX_BY(seq, allocated) AS seq FROM replayed GROUP BY rank"
    text = f"SELECT allocated, reserved FROM replayed SEMI JOIN ({moment}) AS peak USING (rank, seq) ORDER BY rank"
    with database.open_run(pooled) as connection:
        connection.execute(f"CREATE TABLE replayed AS {REPLAY}")
        expected = connection.execute(text).fetchall()
        summed = connection.execute(
            "SELECT SUM(allocated_bytes), SUM(reserved_bytes) FROM pools GROUP BY rank ORDER BY rank"
        ).fetchall()
    assert summed == expected


def test_pools_are_those_that_the_recorder_would_take_from_such_events(pooled: Path) -> None:
    with database.open_run(pooled) as connection:
        segments = connection.execute(
            "SELECT seq, action, address, size_bytes, pool FROM allocs LEFT JOIN segment_pools USING (rank, seq) "
            "WHERE rank = 1 AND action LIKE 'segment%' ORDER BY seq"
        ).fetchall()
        written = connection.execute(
            "SELECT seq, pool FROM segment_pools WHERE rank = 1 ORDER BY seq"
        ).fetchall()
    assert {action for _, action, *_ in segments} == OF_SEGMENTS & {"segment_alloc", "segment_free"}
    # A segment that is freed is told by its address alone, so only the events that begin one name a pool here.
    named = [
        (seq, action, address, size, tuple(map(int, (pool or "(0, 0)").strip("()").split(","))))
        if action == "segment_alloc"
        else (seq, action, address, size, None)
        for seq, action, address, size, pool in segments
    ]
    rows = SegmentPools().follow(named, [])
    assert list(zip(rows.seq, rows.pool, strict=True)) == written
    assert len(written) == 1 + 2 * 8  # the buffer is given back by nobody


def test_the_report_has_the_pools_of_a_run_that_has_some(run_dir: Path, pooled: Path) -> None:
    assert 'id="pools"' in render(pooled)
    assert 'id="pools"' not in render(run_dir)
    assert not (run_dir / "tables" / "segment_pools").exists()


def test_the_command_line_makes_pools(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    asked = f"--out {out} --ranks 1 --events 2000 --blocks 2 --pools --finish"
    monkeypatch.setattr("sys.argv", ["make_synthetic_run.py", *asked.split()])
    maker.main()
    assert {row["pool"] for row in database.query(out, "pools").to_pylist()} == {
        "(0, 0)",
        "(0, 1)",
        "(1, 0)",
        "(2, 0)",
    }
