"""scripts/make_synthetic_run.py: what it makes is a run whose events, spans and questions agree."""

from pathlib import Path
from types import ModuleType

import pytest

from ray_memprof.query import database

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
