"""SQL that a program wrote: it sees the run and nothing else, writes nothing, ends in time; answers stay the same."""

from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

from ray_memprof.errors import ConfigError
from ray_memprof.query.ask import ask
from ray_memprof.query.guard import Bounds
from ray_memprof.query.questions import QUESTIONS
from ray_memprof.store.schema import TABLES

RANKS, EVENTS, BLOCKS = 2, 1_500, 2
FEW = Bounds(most_rows=7, limit_s=60)
SECRET = pa.table({"a": [1]})
"""What an SQL statement would find if names in it could be variables."""


@pytest.fixture(scope="module")
def guarded_run(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("guarded") / "run"
    maker.make(folder, RANKS, EVENTS, blocks=BLOCKS, level="stack")
    maker.finish(folder, RANKS)
    return folder


def bounded(text: str, guarded_run: Path, bounds: Bounds = FEW) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = ask(text, [guarded_run], bounds=bounds).to_pylist()
    return rows


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_a_bounded_answer_is_the_beginning_of_the_answer(guarded_run: Path, name: str) -> None:
    whole = ask(name, [guarded_run]).to_pylist()
    assert bounded(name, guarded_run) == whole[: FEW.most_rows]


def test_every_table_can_be_read(guarded_run: Path) -> None:
    for name in TABLES:
        asked = f"SELECT COUNT(*) AS num_rows FROM {name}"
        assert bounded(asked, guarded_run) == ask(asked, [guarded_run]).to_pylist()


def test_large_tables_are_read_through_a_question_and_in_sql(guarded_run: Path) -> None:
    ((num_rows,),) = (row.values() for row in bounded("SELECT COUNT(*) FROM alive_at_peak", guarded_run))
    assert isinstance(num_rows, int) and num_rows > 0
    assert len(bounded("FROM allocs ORDER BY rank, seq", guarded_run)) == FEW.most_rows
    assert (
        len(bounded('SELECT Seq FROM "Allocs" JOIN ALIVE_AT_PEAK USING (rank)', guarded_run)) == FEW.most_rows
    )
    assert bounded("PIVOT allocs ON action USING COUNT(*)", guarded_run)


@pytest.mark.parametrize(
    "text",
    [
        "FROM read_blob('{folder}/run.duckdb')",
        "FROM read_parquet('{folder}/tables/runs/*.parquet')",
        "FROM '{folder}/tables/runs/part-00000.parquet'",
        "FROM glob('{folder}/*')",
        "FROM read_csv('/etc/passwd')",
        "FROM read_parquet('https://localhost/a.parquet')",
        "FROM SECRET",
        "COPY (SELECT 1) TO '{folder}/made.csv'",
        "COPY (PIVOT spans ON name USING COUNT(*)) TO '{folder}/made.csv'",
        "ATTACH '{folder}/made.duckdb'",
        "EXPORT DATABASE '{folder}/made'",
        "CALL enable_logging(storage = 'file', storage_path = '{folder}/made')",
        "CALL enable_profiling(save_location = '{folder}/made.json')",
        "SET enable_external_access = true",
        "LOAD httpfs",
        "DELETE FROM runs RETURNING *",
        "SELECT 1; SELECT 2",
    ],
)
def test_nothing_else_is_read_and_nothing_written(guarded_run: Path, text: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in guarded_run.rglob("*")}
    with pytest.raises(ConfigError) as refused:
        bounded(text.format(folder=guarded_run), guarded_run)
    assert "\n" not in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in guarded_run.rglob("*")} == before


def test_what_takes_too_long_is_stopped(guarded_run: Path) -> None:
    endless = "SELECT COUNT(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range % 7 = 3"
    with pytest.raises(ConfigError) as stopped:
        bounded(endless, guarded_run, Bounds(most_rows=1, limit_s=2))
    assert (str(stopped.value), stopped.value.hint) == (
        "the SQL was stopped after 2 s",
        "ask for fewer rows or ranks at a time",
    )


def test_a_person_s_sql_may_read_files(guarded_run: Path) -> None:
    """Only bounded answers are shut off: on the command line it is the person's own machine."""
    text = f"SELECT COUNT(*) AS n FROM read_blob('{guarded_run}/run.duckdb')"
    assert ask(text, [guarded_run]).to_pylist() == [{"n": 1}]
