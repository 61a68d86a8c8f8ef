"""Questions by name and in SQL, on one run and on several, and what is refused."""

import os
import shutil
from pathlib import Path

import duckdb
import pytest
from run_tables import make_ranks, make_run, span

from ray_memprof.errors import ConfigError
from ray_memprof.query import database, questions
from ray_memprof.query.ask import (
    ask,
    began_ns,
    find_runs,
    question_lines,
    runs_of,
    sql_of,
)
from ray_memprof.store.schema import TABLES


def run_of(folder: Path, *peaks: int) -> Path:
    """A run with a span on each rank that peaks at so many bytes."""
    tables = {
        rank: {"spans": [span(1, "denoise", (0, 5), allocated=(0, 0, peak))]}
        for rank, peak in enumerate(peaks)
    }
    return make_ranks(make_run(folder, tables), *({} for _ in peaks), run_id=folder.name, status="ok")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [run_of(tmp_path / "base" / "r1", 1, 2), run_of(tmp_path / "wide" / "r2", 3)]


def refusal(text: str, run_dirs: list[Path]) -> tuple[str, str]:
    """Message and hint."""
    with pytest.raises(ConfigError) as caught:
        ask(text, run_dirs)
    return str(caught.value), caught.value.hint


def test_an_empty_run_answers_without_rows(tmp_path: Path) -> None:
    answer = ask("peak_by_rank", [make_run(tmp_path, {0: {}})])
    assert (answer.num_rows, answer.column_names[:2]) == (0, ["rank", "allocated_peak_bytes"])


@pytest.mark.parametrize(
    "text",
    [
        "SELECT rank, MAX(allocated_peak_bytes) AS peak FROM spans GROUP BY rank ORDER BY rank",
        "SELECT rank, allocated_peak_bytes AS peak FROM peak_by_rank;  -- the same",
        "WITH peaks AS (FROM spans) SELECT rank, allocated_peak_bytes AS peak FROM peaks ORDER BY ALL",
    ],
)
def test_any_sql_on_tables_and_views(runs: list[Path], text: str) -> None:
    assert ask(text, runs[:1]).to_pylist() == [{"rank": 0, "peak": 1}, {"rank": 1, "peak": 2}]


def test_a_name_is_a_question_or_a_table(runs: list[Path]) -> None:
    assert ask(" peak_by_stage\n", runs[:1]).equals(database.query(runs[0], "peak_by_stage"))
    assert ask("spans", runs[:1]).column_names[0] == "rank"
    assert ask("runs", runs[:1]).column("run_id").to_pylist() == ["r1"]


@pytest.mark.parametrize("name", ["peak_by_rank", "spans", "allocs", "runs"])
def test_of_several_runs_two_columns_come_in_front(runs: list[Path], name: str) -> None:
    single, several = ask(name, runs[:1]).column_names, ask(name, runs).column_names
    assert several == single if name == "runs" else [several[0], *several[2:]] == ["run_id", *single]


def test_rows_of_several_runs_say_which_run_they_are_of(runs: list[Path]) -> None:
    answer = ask("SELECT run_id, name, rank, allocated_peak_bytes AS peak FROM peak_by_rank", runs)
    assert [tuple(row.values()) for row in answer.to_pylist()] == [
        ("r1", "base", 0, 1), ("r1", "base", 1, 2), ("r2", "wide", 0, 3)
    ]  # fmt: skip
    # A span has a name of its own.
    assert ask("SELECT DISTINCT run_name, name FROM spans ORDER BY ALL", runs).to_pylist() == [
        {"run_name": "base", "name": "denoise"},
        {"run_name": "wide", "name": "denoise"},
    ]


def test_a_single_run_says_it_too_where_it_is_asked_to(runs: list[Path]) -> None:
    assert ask("peak_by_rank", runs[:1], is_named=True).column_names[:3] == ["run_id", "name", "rank"]
    assert ask("peak_by_rank", runs[:1]).column_names[0] == "rank"


def test_a_pivot_is_a_question(runs: list[Path]) -> None:
    answer = ask("PIVOT spans ON rank USING SUM(allocated_peak_bytes) GROUP BY stage", runs[:1])
    assert answer.to_pylist() == [{"stage": "denoise", "0": 1, "1": 2}]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "there is no SQL to run", "begin with SELECT, WITH or FROM"),
        ("-- nothing", "there is no SQL to run", "begin with SELECT, WITH or FROM"),
        ("peak_by_rnk", "there is no question 'peak_by_rnk'", "did you mean peak_by_rank?"),
        ("zzz", "there is no question 'zzz'", f"there are {', '.join(questions.QUESTIONS)}"),
        ("SELECT 1; SELECT 2", "2 statements are too many: one at a time", ""),
        ("DROP VIEW peak_by_rank", "DROP is no question", "begin with SELECT, WITH or FROM"),
        ("DELETE FROM spans", "DELETE is no question", "begin with SELECT, WITH or FROM"),
        ("COPY spans TO 'x.csv'", "COPY is no question", "begin with SELECT, WITH or FROM"),
        (
            "SELEC 1",
            'the SQL is refused: Parser Error: syntax error at or near "SELEC"',
            "`ray-memprof query --list` lists the questions and tables; docs/schema.md has the columns",
        ),
        (
            "SELECT a\n  FROM peak_by_rnk",
            "the SQL is refused: Catalog Error: Table with name peak_by_rnk does not exist!",
            'Did you mean "peak_by_rank"?',
        ),
        (
            "SELECT allocated_peak_byte FROM spans",
            'the SQL is refused: Binder Error: Referenced column "allocated_peak_byte" not found in FROM clause!',
            'Candidate bindings: "allocated_peak_bytes", "allocated_end_bytes", "allocated_start_bytes", '
            '"active_peak_bytes", "active_end_bytes"',
        ),
        (
            "SELECT path::INTEGER FROM spans",
            "the SQL is refused: Conversion Error: Could not convert string 'denoise' to INT32 when casting "
            "from source column path",
            "`ray-memprof query --list` lists the questions and tables; docs/schema.md has the columns",
        ),
    ],
)
def test_what_is_no_question_is_told_in_a_line(runs: list[Path], text: str, message: str, hint: str) -> None:
    assert refusal(text, runs[:1]) == (message, hint)


def test_nothing_is_written_by_a_question_that_is_refused(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    refusal("COPY spans TO 'x.csv'", runs)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    message, hint = refusal("peak_by_rank", [tmp_path])
    assert message == f"{tmp_path} is no run: it has no folder tables"
    assert hint == "a run folder is profiler_logs/<name>/<run_id>, or profiler_logs/<name>/latest"


def test_a_run_of_another_version_is_refused_among_others_too(runs: list[Path]) -> None:
    part = runs[1] / "tables" / "runs" / "part-00000.parquet"
    with duckdb.connect() as connection:
        rows = connection.sql(f"SELECT * REPLACE (99 AS schema_version) FROM '{part}'").to_arrow_table()
        connection.sql("FROM rows").write_parquet(str(part))
        assert rows.num_rows == 1
    message, hint = refusal("SELECT 1", runs)
    assert message.startswith(f"{runs[1]} was recorded with schema version 99; this program knows ")
    assert hint == "use a newer ray_memprof"


def test_a_damaged_part_is_told_in_a_line(runs: list[Path]) -> None:
    part = next(runs[0].glob("tables/spans/rank=0/*.parquet"))
    part.write_bytes(part.read_bytes()[:40])
    message, hint = refusal("peak_by_rank", runs[:1])
    assert message.startswith(f"{runs[0]} cannot be read: ") and part.name in message
    assert "\n" not in message
    assert hint == "if it is a copy, copy the whole folder again"
    with pytest.raises(ConfigError, match="cannot be read"), database.open_runs(runs):
        pass


def test_a_run_is_open_only_inside_the_block(runs: list[Path]) -> None:
    with database.open_run(runs[0]) as connection:
        assert connection.execute("SELECT COUNT(*) FROM spans").fetchall() == [(2,)]
    with pytest.raises(duckdb.ConnectionException):
        connection.execute("SELECT 1")


def test_runs_of_a_pattern_come_once_each_in_order(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "base" / "latest").symlink_to("r1")
    (tmp_path / "notes").mkdir()
    assert runs_of(f"{tmp_path}/*/*") == runs
    assert runs_of(f"{tmp_path}/*/latest") == runs[:1]


@pytest.mark.parametrize("name", ["[ab]*", "what?", "a*b"])
def test_a_folder_whose_name_looks_like_a_pattern_is_found(tmp_path: Path, name: str) -> None:
    for folder in (name, name.replace("*", "x").replace("?", "y")):
        run_of(tmp_path / folder / "r1", 5)
    assert runs_of(f"{tmp_path}/{name}/r1") == [tmp_path / name / "r1"]


def test_a_pattern_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        runs_of(f"{tmp_path}/*")
    assert (str(caught.value), caught.value.hint) == (
        f"--runs '{tmp_path}/*' matches no run folder",
        "put it in quotes, so that the shell leaves it alone: --runs 'profiler_logs/*/latest'",
    )


def test_what_the_command_line_names(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs[0], tmp_path / "profiler_logs" / "base" / "r1")
    assert find_runs(None, None) == [tmp_path / "profiler_logs" / "base" / "r1"]
    assert find_runs(str(runs[1]), None) == runs[1:]
    assert find_runs(None, f"{tmp_path}/base/*") == runs[:1]
    with pytest.raises(ConfigError, match=r"^either a run \(base\) or --runs, not both$"):
        find_runs("base", "x*")


def test_the_list_has_every_question_and_table() -> None:
    asked, tables = "\n".join(question_lines()).split("\n\n")
    assert [line.split()[0] for line in asked.splitlines()] == list(questions.QUESTIONS)
    assert [line.split()[0] for line in tables.splitlines()] == list(TABLES)
    assert "peak_by_rank" in asked and "What is the most memory that each rank held" in asked
    assert tables.splitlines()[0].endswith("one row = a run")


def test_the_sql_of_a_question_runs_as_it_is(runs: list[Path]) -> None:
    text = sql_of(" peak_by_rank ")
    assert text == questions.question("peak_by_rank")
    assert ask(text, runs[:1]).equals(ask("peak_by_rank", runs[:1]))
    with pytest.raises(ConfigError, match="^spans is a table, not a question$"):
        sql_of("spans")
    with pytest.raises(ConfigError, match="no question 'peak'"):
        sql_of("peak")


def test_rows_of_several_runs_keep_the_order_of_the_question(tmp_path: Path) -> None:
    # More rows than a vector of DuckDB's holds, in an order that is not theirs.
    number = 2_500
    steps = [span(number - at, "denoise", (at, at + 1), step=at) for at in range(number)]
    folders = [make_run(tmp_path / "n" / name, {0: {"spans": steps}}) for name in "ab"]
    answer = ask("steps", folders)
    assert answer.column("step").to_pylist() == 2 * list(reversed(range(number)))
    assert answer.column("run_id").to_pylist() == number * ["a"] + number * ["b"]


def test_bytes_that_are_no_utf8_are_refused_in_a_line(runs: list[Path], tmp_path: Path) -> None:
    message, _ = refusal(os.fsdecode(b"SELECT '\xff'"), runs)
    assert message == "the SQL is refused: it is not UTF-8"
    odd = tmp_path / os.fsdecode(b"r\xff")
    shutil.copytree(runs[0], odd)
    message, hint = refusal("peak_by_rank", [odd])
    assert message == f"'{tmp_path}/r\\udcff' cannot be read: its name is not UTF-8"
    assert hint == "rename the folder"


def test_a_pattern_may_be_of_names_or_ids(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a pattern is one of paths first
    (tmp_path / "base" / "latest").symlink_to("r1")
    assert runs_of("b*", tmp_path) == runs[:1]  # the newest of the name
    assert runs_of("*/r*", tmp_path) == runs
    assert runs_of("r1", tmp_path) == [run for run in runs if run.name == "r1"]
    assert find_runs(None, "b*", tmp_path) == runs[:1]


def test_moments_of_one_run_are_told_from_the_first_thing_that_was_recorded(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {0: {"spans": [span(1, "denoise", (70, 90)), span(2, "decode", (90, 95))]}})
    assert began_ns([tmp_path / "a"]) == 70
    assert began_ns([tmp_path / "a", tmp_path / "a"]) is None
