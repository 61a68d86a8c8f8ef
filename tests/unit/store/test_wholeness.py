"""Whether all rows of a run are there, and what compare does if they are not."""

from pathlib import Path

import pytest
from run_tables import load, make_ranks, make_run, span

from ray_memprof.analysis.comparison.compare import compare
from ray_memprof.analysis.comparison.text import warnings
from ray_memprof.errors import ConfigError
from ray_memprof.store.gather import gather
from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.run_files import OPEN_STREAM
from ray_memprof.store.wholeness import lacking

LIMIT = ["peak_device_used > +2%"]


def a_run(folder: Path, sizes: list[int], *, num_ranks: int | None = None) -> Path:
    """Make a run with a rank for each size, and two parts of spans for each rank."""
    ranks = {
        rank: {"spans": [span(1, "denoise", (0, 5), device_used=(0, size, size))]}
        for rank, size in enumerate(sizes)
    }
    make_run(folder, ranks)
    return make_ranks(
        folder, *({} for _ in sizes), status="ok", num_ranks=len(sizes) if num_ranks is None else num_ranks
    )


def part(run_dir: Path, rank: int) -> Path:
    return next((run_dir / "tables" / "spans" / f"rank={rank}").glob("*.parquet"))


def refusal(base: Path, other: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        compare([base, other], LIMIT)
    assert raised.value.hint == "record it again; --allow-failed checks limits against what is left"
    assert not compare([base, other], LIMIT, allow_failed=True).checks[0].is_exceeded
    return str(raised.value)


def test_a_run_without_ranks_lacks_nothing(tmp_path: Path) -> None:
    assert lacking(make_run(tmp_path, {}), 0, ()) == []


def test_a_whole_run_lacks_nothing(tmp_path: Path) -> None:
    assert lacking(a_run(tmp_path, [5, 6, 7]), 3, {0, 1, 2}) == []
    runs = [a_run(tmp_path / name / "r", [5, 6]) for name in ("a", "b")]
    assert [check.is_exceeded for check in compare(runs, LIMIT).checks] == [False]


def test_a_limit_does_not_hold_where_a_torn_part_took_the_fullest_rank_away(tmp_path: Path) -> None:
    """GIVEN a newer run whose rank 1 takes 20 times as much, and has a torn file THEN the limit does not pass."""
    base, other = (a_run(tmp_path / name / "r", sizes) for name, sizes in (("a", [5, 6]), ("b", [5, 120])))
    assert compare([base, other], LIMIT).checks[0].is_exceeded
    torn = part(other, 1)
    torn.write_bytes(torn.read_bytes()[:-200])
    # The result is the same whether or not the launcher has set the file aside already.
    assert gather(other, [0, 1]).problems
    assert refusal(base, other) == (
        "b is not whole: rank 1 recorded no span, or its rows are lost, and 1 more: "
        "its figures cannot be checked against a limit"
    )
    assert list(warnings(compare([base, other]))) == [
        "warning: b is not whole: rank 1 recorded no span, or its rows are lost",
        "warning: b is not whole: tables/spans/rank=1/part-00000.parquet is missing: 1 rows are lost",
    ]


def test_a_base_that_is_not_whole_is_no_base(tmp_path: Path) -> None:
    base, other = (a_run(tmp_path / name / "r", [5, 6]) for name in ("a", "b"))
    part(base, 0).unlink()
    assert refusal(base, other).startswith("a is not whole: rank 0 recorded no span, or its rows are lost")


def test_ranks_that_never_recorded_are_missing(tmp_path: Path) -> None:
    base = a_run(tmp_path / "a" / "r", [5, 6])
    other = a_run(tmp_path / "b" / "r", [5, 6], num_ranks=5)
    assert refusal(base, other) == (
        "b is not whole: ranks 2 to 4 recorded no span, or its rows are lost: "
        "its figures cannot be checked against a limit"
    )


def test_a_part_of_a_rank_may_be_lost_where_another_is_left(tmp_path: Path) -> None:
    store = RankStore(tmp_path, 0, seal_rows=1)
    for number in (1, 2):
        load(store, "spans", [span(number, "denoise", (number, number + 1))])
    store.close()
    parts = sorted((tmp_path / "tables" / "spans" / "rank=0").glob("*.parquet"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes() + b"1")
    assert lacking(tmp_path, 1, {0}) == [f"tables/spans/rank=0/{parts[0].name} is damaged: 1 rows are lost"]


def test_a_table_that_was_never_sealed_is_told(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path, [5])
    (part(run_dir, 0).parent / OPEN_STREAM).write_bytes(b"1")
    assert lacking(run_dir, 1, {0}) == ["1 tables were never sealed, for example tables/spans/rank=0"]


def test_a_manifest_that_was_being_written_tells_what_it_can(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path, [5])
    manifest = run_dir / "tables" / "manifest-rank=0.jsonl"
    manifest.write_text(manifest.read_text() + '{"table": "spa')
    assert lacking(run_dir, 1, {0}) == []
