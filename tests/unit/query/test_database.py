"""run.duckdb: empty runs, columns of the schema, moved folders, other working directories, plain clients."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from run_tables import answer, blank, make_ranks, make_run, span

from ray_memprof.errors import ConfigError, DiskFull
from ray_memprof.query import database, questions
from ray_memprof.store.schema import SCHEMA_VERSION, TABLES

ROOT = Path(__file__).resolve().parents[3]
COUNT = "SELECT COUNT(*) FROM {}"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two ranks with a span and two allocator events each."""
    events = [
        blank("allocs", seq=seq, action="alloc", size_bytes=512, category="weight", span_id=1)
        for seq in (0, 1)
    ]
    tables = {"spans": [span(1, "denoise", (0, 5), allocated=(0, 1, 2))], "allocs": events}
    return make_ranks(make_run(tmp_path / "run", {0: tables, 1: tables}), {}, {}, run_id="r")


def ask(path: Path, text: str, cwd: Path) -> str:
    """What a plain client in a fresh process, started somewhere else, gets."""
    program = "import duckdb, sys; print(duckdb.connect(sys.argv[1], read_only=True).execute(sys.argv[2]).fetchall())"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), text], cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_run_without_a_row_has_every_table_with_the_columns_of_the_schema(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {}})
    with duckdb.connect(str(database.build(tmp_path))) as connection:
        for table in TABLES.values():
            described = [row[0] for row in connection.execute(f"DESCRIBE {table.name}").fetchall()]
            expected = [column.name for column in table.columns]
            assert described == (expected if table.name == "runs" else ["rank", *expected])
            assert connection.execute(COUNT.format(table.name)).fetchone() == (0,)
        for name in questions.QUESTIONS:
            assert connection.execute(COUNT.format(name)).fetchone() == (0,)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        database.build(tmp_path)
    assert str(raised.value) == f"{tmp_path} is no run: it has no folder tables"
    assert os.listdir(tmp_path) == []


def test_an_unknown_question_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        database.query(make_run(tmp_path, {0: {}}), "peak_by_ranks")
    assert (str(raised.value), raised.value.hint) == (
        "there is no question 'peak_by_ranks'",
        "did you mean peak_by_rank?",
    )


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    make_ranks(tmp_path, {})
    newer = SCHEMA_VERSION + 1
    with duckdb.connect() as connection:
        part = tmp_path / "tables" / "runs" / "part-00000.parquet"
        rows = connection.sql(f"SELECT * REPLACE ({newer} AS schema_version) FROM '{part}'").to_arrow_table()
        connection.sql("FROM rows").write_parquet(str(part))
        assert rows.num_rows == 1
    with pytest.raises(ConfigError, match=f"recorded with schema version {newer}; this program knows"):
        database.build(tmp_path)


@pytest.mark.parametrize("name", ["moved", "with 'quotes' and [brackets]*"])
def test_the_database_works_from_anywhere_and_after_a_move(run_dir: Path, tmp_path: Path, name: str) -> None:
    database.build(run_dir)
    moved = tmp_path / name
    shutil.move(run_dir, moved)
    text = "SELECT rank, size_bytes, category, path FROM allocs JOIN spans USING (rank, span_id) ORDER BY ALL"
    rows = str([(rank, 512, "weight", "denoise") for rank in (0, 0, 1, 1)])
    assert ask(moved / "run.duckdb", text, Path("/")) == rows
    assert ask(Path("run.duckdb"), text, moved) == rows
    assert ask(Path(name) / "run.duckdb", text, tmp_path) == rows
    assert answer(moved, "peak_by_rank") == [
        (rank, 2, 0, False, 0, 0, 1, 0, 0, 0, "denoise", "denoise", None) for rank in (0, 1)
    ]


def test_all_but_the_large_tables_work_when_attached(run_dir: Path) -> None:
    path = database.build(run_dir)
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{path}' AS run (READ_ONLY)")
        for name in TABLES.keys() - set(database.LARGE_TABLES):
            connection.execute(COUNT.format(f"run.{name}"))
        assert connection.execute(COUNT.format("run.spans")).fetchone() == (2,)


def test_a_database_is_built_anew(run_dir: Path) -> None:
    for _ in range(2):
        path = database.build(run_dir)
        with duckdb.connect(str(path)) as connection:
            assert connection.execute(COUNT.format("spans")).fetchone() == (2,)
    assert sorted(item.name for item in run_dir.iterdir()) == ["run.duckdb", "tables"]


def test_a_column_that_an_older_run_did_not_write_is_null(run_dir: Path) -> None:
    with duckdb.connect() as connection:
        for path in run_dir.glob("tables/spans/rank=*/*.parquet"):
            rows = connection.sql(f"SELECT * EXCLUDE (num_retries) FROM '{path}'").to_arrow_table()
            connection.sql("FROM rows").write_parquet(str(path))
            assert rows.num_rows == 1
    with database.open_run(run_dir) as connection:
        assert connection.execute("SELECT num_retries FROM spans").fetchall() == [(None,), (None,)]


def leave_out(run_dir: Path, **lacking: str) -> None:
    """Write files anew without some columns of a table, as an older version left them."""
    with duckdb.connect() as connection:
        for table, names in lacking.items():
            for path in run_dir.glob(f"tables/{table}/rank=*/*.parquet"):
                rows = connection.sql(f"SELECT * EXCLUDE ({names}) FROM '{path}'").to_arrow_table()
                connection.sql("FROM rows").write_parquet(str(path))
                assert rows.num_rows


@pytest.mark.parametrize("lacking", ["cfg", "clock_offset_ns, inexact_bytes, peak_at_least, cfg"])
def test_ranks_of_an_older_run_ran_both_passes_and_saw_every_event(tmp_path: Path, lacking: str) -> None:
    """GIVEN a run from before guidance was split, whose clocks were compared already, and one from before that."""
    known = {"clock_offset_ns": 5, "inexact_bytes": 7, "peak_at_least": True, "cfg": 1}
    make_ranks(make_run(tmp_path, {0: {}, 1: {}}), known, known)
    leave_out(tmp_path, ranks=lacking)
    wanted = {**known, **dict.fromkeys(lacking.split(", "), 0)}
    with database.open_run(tmp_path) as connection:
        rows = connection.execute(f"SELECT {', '.join(wanted)} FROM ranks").fetchall()
    assert rows == [tuple(wanted.values())] * 2


@pytest.mark.parametrize("only", [None, "peak_by_stage", "FROM spans"])
def test_a_run_without_a_bound_has_what_was_measured_in_its_place(tmp_path: Path, only: str | None) -> None:
    """GIVEN spans whose peak on the device is a bound, as schema version 1 had it, two levels of them on two ranks."""
    first = [
        span(1, "denoise", (0, 100), device_used=(1, 2, 90)),
        span(2, "denoise/dit.block", (10, 20), parent_id=1, device_used=(3, 7, 80)),
        span(3, "denoise/dit.block", (20, 30), parent_id=1, device_used=(4, 5, 50)),  # 7 were seen at 20
    ]
    second = [span(1, "denoise", (0, 100), device_used=(6, 8, 8)), span(2, "decode", (101, 101))]
    second.append(span(3, "save", (300, 250), device_used=(5, 3, 60)))  # the clock was set back
    looks = [
        blank("samples", t_ns=t_ns, device_used_bytes=used) for t_ns, used in ((25, 6), (50, 9), (200, 99))
    ]
    make_run(tmp_path, {0: {"spans": first, "samples": looks}, 1: {"spans": second}})
    make_ranks(tmp_path, {}, {})
    leave_out(
        tmp_path,
        spans="device_used_bound_bytes, num_samples",
        ranks="clock_offset_ns, inexact_bytes, peak_at_least",
    )
    # WHEN the run is opened THEN a peak is the most that anybody saw, and the bound is where it was
    text = "SELECT rank, span_id, device_used_peak_bytes, device_used_bound_bytes, num_samples FROM spans ORDER BY ALL"
    with database.open_run(tmp_path, only) as connection:
        assert connection.execute(text).fetchall() == [
            (0, 1, 9, 90, 2),
            (0, 2, 7, 80, 0),
            (0, 3, 7, 50, 1),
            (1, 1, 8, 8, 0),
            (1, 2, 0, 0, 0),
            (1, 3, 5, 60, 0),
        ]
    with database.open_run(tmp_path) as connection:
        known = "SELECT clock_offset_ns, inexact_bytes, peak_at_least FROM ranks"
        assert connection.execute(known).fetchall() == [(0, 0, False)] * 2


@pytest.mark.parametrize("is_first", [True, False])
def test_a_run_opened_for_one_question_has_what_it_reads(run_dir: Path, is_first: bool) -> None:
    """GIVEN a process that has opened no whole run before, or one."""
    database._definitions.cache_clear()
    if not is_first:
        database._definitions()
    with database.open_run(run_dir, questions.question("measures")) as connection:
        made = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        assert {"imbalance", "imbalance_by_component", "books_at_peak"} <= {name for (name,) in made}
        assert (("timeline",) in made) is not is_first
        assert connection.execute(COUNT.format("allocs")).fetchone() == (4,)
    with database.open_run(run_dir, "FROM runs") as connection:
        assert connection.execute(COUNT.format("runs")).fetchone() == (1,)
        assert connection.execute(COUNT.format("spans")).fetchone() == (0,)


@pytest.mark.parametrize("opened_for", [questions.EVERY_QUESTION, "headlines"])
def test_what_questions_share_is_a_table_and_changes_no_answer(run_dir: Path, opened_for: str) -> None:
    views = "SELECT view_name FROM duckdb_views() WHERE NOT internal"
    with database.open_run(run_dir) as plain, database.open_run(run_dir, shared_by=opened_for) as shared:
        left = {name for (name,) in shared.execute(views).fetchall()}
        expected = set(questions.SHARED) & questions.named(opened_for)
        assert {name for (name,) in plain.execute(views).fetchall()} - left == expected
        for name in (*questions.SHARED, "headlines", "memory_parts", "measures"):
            rows = questions.fetched(plain, f"FROM {name} ORDER BY ALL")
            assert questions.fetched(shared, f"FROM {name} ORDER BY ALL") == rows
            assert questions.rows_of(shared, name) == questions.rows_of(plain, name)


def test_a_small_run_takes_one_thread_and_a_large_one_all(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = "SELECT current_setting('threads')"
    ((most,),) = duckdb.execute(threads).fetchall()
    for opening in (database.open_run(run_dir), database.open_runs([run_dir])):
        with opening as connection:
            assert connection.execute(threads).fetchall() == [(1,)]
    monkeypatch.setattr(database, "_BYTES_A_THREAD", 1)
    with database.open_run(run_dir) as connection:
        assert connection.execute(threads).fetchall() == [(most,)]


def test_a_full_disk_leaves_no_half_database(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise duckdb.IOException('Could not write file "x": No space left on device')

    monkeypatch.setattr(database, "_fill", full)
    with pytest.raises(DiskFull, match=r"the driver: cannot write .*run\.duckdb: .*No space left on device"):
        database.build(run_dir)
    assert [item.name for item in run_dir.iterdir()] == ["tables"]


def test_other_errors_of_the_database_are_not_called_a_full_disk(run_dir: Path) -> None:
    part = next(run_dir.glob("tables/spans/rank=0/*.parquet"))
    part.write_bytes(b"PAR1 is not enough PAR1")
    with pytest.raises(ConfigError, match="cannot be read: "):
        database.build(run_dir)
    assert [item.name for item in run_dir.iterdir()] == ["tables"]


def test_every_file_is_a_question_and_says_what_it_answers() -> None:
    folders = {path.name for path in questions.SQL_DIR.iterdir()}
    assert folders == {*questions.TOPICS, "macros", "older_runs"}
    paths = [path for topic in questions.TOPICS for path in (questions.SQL_DIR / topic).glob("*.sql")]
    assert sorted(path.stem for path in paths) == sorted(questions.QUESTIONS)
    for name in questions.QUESTIONS:
        text = questions.question(name)
        assert re.match(r"-- [A-Z][^\n]*\n(-- [^\n]*\n)*-- One row = [a-z]", text), name
        assert questions.headline(name).endswith("?"), name
        assert not re.search(r"SELECT\s+\*", text), name
        long = [line for line in text.splitlines() if len(line) > 80]
        assert not long, (name, long)


def test_every_macro_has_a_file_and_says_what_it_answers() -> None:
    paths = sorted((questions.SQL_DIR / "macros").glob("*.sql"))
    assert [path.stem for path in paths] == sorted(questions.MACROS)
    for path in paths:
        text = path.read_text()
        assert re.match(rf"-- [A-Z](.|\n)*\?(.|\n)*CREATE MACRO {path.stem}\(", text), path
        assert [line for line in text.splitlines() if len(line) > 80] == [], path


def test_a_header_lists_every_column_of_its_answer(tmp_path: Path) -> None:
    make_run(tmp_path, {0: {}})
    for name in questions.QUESTIONS:
        header = "\n".join(line for line in questions.question(name).splitlines() if line.startswith("--"))
        missing = [
            column
            for column in database.query(tmp_path, name).column_names
            if not re.search(rf"\b{column}\b", header)
        ]
        assert missing == [], name


def test_tables_columns_and_views_carry_their_meaning(run_dir: Path) -> None:
    with duckdb.connect(str(database.build(run_dir))) as connection:
        text = "SELECT comment FROM duckdb_columns() WHERE table_name = ? AND column_name = ?"
        for table, column in (("spans", "reserved_peak_bytes"), ("allocs", "size_bytes")):
            meaning = next(item for item in TABLES[table].columns if item.name == column)
            found = connection.execute(text, [table, column]).fetchone()
            assert found == (f"{meaning.meaning} (bytes)",)
        view = "SELECT comment FROM duckdb_views() WHERE view_name = 'replay_check'"
        found = connection.execute(view).fetchone()
        assert found == (
            "Do the recorded events add up to the allocator's own counters, and what did recording cost?",
        )


def test_a_run_is_opened_where_no_temporary_file_can_be_made(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> str:
        raise FileNotFoundError("No usable temporary directory found")

    catalog = "SELECT view_name, sql, comment FROM duckdb_views() WHERE NOT internal ORDER BY view_name"
    with database.open_run(run_dir) as connection:
        known = connection.execute(catalog).fetchall()
    database._definitions.cache_clear()
    monkeypatch.setattr("tempfile.mkdtemp", refused)
    with database.open_run(run_dir) as connection:
        assert connection.execute(catalog).fetchall() == known
        assert connection.execute(COUNT.format("spans")).fetchone() == (2,)


def test_a_forked_child_leaves_the_files_of_its_parent(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    database._remove(str(kept), os.getpid() + 1)
    assert kept.exists()
    database._remove(str(kept), os.getpid())
    assert not kept.exists()


ANALYSIS = (
    "ray_memprof.store.gather",
    "ray_memprof.query.database",
    "ray_memprof.formats.memory_events",
    "ray_memprof.report.plots",
    "ray_memprof.report.run_page",
    "ray_memprof.store.schema",
    "ray_memprof.store.rank_store",
    "ray_memprof.report.summary",
)


def test_analysis_imports_no_torch_and_no_ray() -> None:
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(sorted({'torch', 'ray', 'wan'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *ANALYSIS], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_damaged_run_is_told_in_a_line_however_it_is_opened(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, {0: {"spans": [span(1, "denoise", (0, 9))]}})
    part = next(run_dir.glob("tables/spans/rank=0/*.parquet"))
    part.write_bytes(part.read_bytes()[:40])
    for opening in (database.open_run(run_dir), database.open_runs([run_dir])):
        with pytest.raises(ConfigError, match=r"^[^\n]* cannot be read: [^\n]*$"), opening:
            pass


def test_rows_of_some_ranks_keep_the_order_of_the_question(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, {rank: {"spans": [span(1, "denoise", (0, 9))]} for rank in range(3)})
    with database.open_run(run_dir) as connection:
        every = questions.rows_of(connection, "peak_by_stage")
        assert questions.rows_of(connection, "peak_by_stage", [2, 0]) == [
            row for row in every if row["rank"] != 1
        ]
        assert questions.rows_of(connection, "peak_by_stage", []) == []
