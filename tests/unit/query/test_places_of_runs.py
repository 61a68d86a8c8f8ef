"""Where a run lies changes no answer: names of folders that look like columns, patterns, parameters or quotes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_tables import blank, event, make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.query import database

NAMES = (
    "rank=5/x",
    "step=7/name=sweep",
    "span_id=abc/x",
    "allocated_peak_bytes=1/x",
    "filename=f/x",
    "br{a,b}ce",
    "back\\slash",
    "back\\[*]",
    "quo'te\"d",
    "per%cent $HOME;x",
    "a?b=c&d",
    "x.tmp?y",
    "?",
    "*",
    "**",
    "[",
    "a]b",
    "[!a]",
    "-dash",
    "#hash",
    "file:x",
    "s3:x",
    "~",
    "new\nline",
    "\u65e5\u672c \u00e9",
)
LARGE = "SELECT rank, size_bytes, step FROM allocs LEFT JOIN spans USING (rank, span_id) ORDER BY ALL"
QUESTIONS = ("FROM peak_by_rank", "FROM steps", "FROM runs", "SELECT * FROM spans ORDER BY ALL", LARGE)
Answers = list[list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with events, in a folder like any other."""
    ranks = {
        rank: {
            "spans": [
                span(1, "denoise", (0, 5), allocated=(0, 1, 100 + rank), step=0),
                span(2, "denoise", (5, 9), allocated=(0, 1, 90 + rank), step=1),
            ],
            "allocs": [event(seq, "alloc", 512 + rank, "weight", address=seq, span_id=1) for seq in (1, 2)],
            "samples": [blank("samples", t_ns=3, device_used_bytes=200 + rank)],
        }
        for rank in (0, 1)
    }
    return make_ranks(
        make_run(tmp_path_factory.mktemp("runs") / "run", ranks),
        {},
        {},
        run_id="r",
        **dict.fromkeys(("config", "environment", "versions"), "{}"),
    )


@pytest.fixture(scope="module")
def expected(plain: Path) -> Answers:
    found = answers(plain)
    assert all(found)
    return found


def answers(run_dir: Path) -> Answers:
    with database.open_run(run_dir, "; ".join(QUESTIONS)) as connection:
        return [connection.execute(question).fetchall() for question in QUESTIONS]


def put(plain: Path, folder: Path) -> Path:
    """The run, in a folder of this name."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(plain, folder)
    return folder


def by_plain_client(database: str, cwd: Path) -> Any:
    """What DuckDB alone answers, in a process of its own."""
    program = (
        "import duckdb, json, sys\n"
        "with duckdb.connect(sys.argv[1], read_only=True) as found:\n"
        "    print(json.dumps(found.execute(sys.argv[2]).fetchall()))"
    )
    command = [sys.executable, "-c", program, database, LARGE]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name(plain: Path, expected: Answers, tmp_path: Path, name: str) -> None:
    assert answers(put(plain, tmp_path / name)) == expected


@pytest.mark.parametrize(
    "name", ["rank=5/x", "filename=f/x", "back\\[*]", "a?b=c&d", "x.tmp?y", "quo'te\"d", "[!a]"]
)
def test_a_database_that_was_built_in_a_folder_of_any_name(
    plain: Path, expected: Answers, tmp_path: Path, name: str
) -> None:
    path = database.build(put(plain, tmp_path / name))
    if "\\" in name:  # DuckDB opens none there; elsewhere it is whole
        path = Path(shutil.move(path.parent, tmp_path / "moved")) / path.name
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute(LARGE).fetchall() == expected[-1]
        assert connection.execute("SELECT COUNT(*) FROM spans").fetchall() == [(4,)]
    assert sorted(item.name for item in path.parent.iterdir()) == ["run.duckdb", "tables"]


@pytest.mark.parametrize("name", ["rank=5/a'b", "x?y", "[*]"])
def test_a_plain_client_in_any_working_directory(
    plain: Path, expected: Answers, tmp_path: Path, name: str
) -> None:
    run_dir = put(plain, tmp_path / name)
    rows = [list(row) for row in expected[-1]]
    database.build(run_dir)
    assert by_plain_client("run.duckdb", run_dir) == rows
    assert by_plain_client(str(run_dir / "run.duckdb"), Path("/")) == rows
    (tmp_path / "link").symlink_to(run_dir)
    assert by_plain_client("link/run.duckdb", tmp_path) == rows


def test_a_relative_path(
    plain: Path, expected: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(plain, tmp_path / "-x?" / "run")
    monkeypatch.chdir(tmp_path)
    assert answers(Path("-x?/run")) == expected
    assert database.build(Path("-x?/run")) == Path("-x?/run/run.duckdb")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.lists(
        st.sampled_from([*"ab\\[]*?='{}!-^ ", ".tmp", "rank=1"]),
        min_size=1,
        max_size=8,
    ).map("".join)
)  # fmt: skip
def test_folders_of_letters_that_mean_something_elsewhere(
    plain: Path, expected: Answers, tmp_path: Path, name: str
) -> None:
    # One run under a name of its own, beside all the others: none is taken for another.
    moved = put(plain, tmp_path / f"x{name}")
    with database.open_run(moved, LARGE) as connection:
        assert connection.execute(LARGE).fetchall() == expected[-1]


def test_a_database_that_duckdb_cannot_open_where_it_lies_is_told() -> None:
    assert database.what_clients_cannot(Path("/tmp/rank=7/a?b")) == []
    assert database.what_clients_cannot(Path("/tmp/a\\b")) == [
        "DuckDB opens no database below a folder with a backslash in its name: /tmp/a\\b/run.duckdb is whole "
        "and can be opened once it is moved; ray-memprof can ask the run in its present folder"
    ]


EXPORTS = (
    ["--format", "perfetto", "--out", "x?[1].json.gz"],
    ["--format", "snapshot", "--out", "a\\b{rank}"],
    ["--format", "csv", "--out", "step=7"],
    ["--format", "memory_events", "--out", "*.json"],
)


@pytest.mark.parametrize("name", ["rank=7/a?b [x]*'\"", "back\\slash{0} %s"])
def test_every_command_where_names_look_like_syntax(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    work = tmp_path / name
    for run_id in ("20260101-000000-aaaa", "20260101-000001-bbbb"):
        put(plain, work / "profiler_logs" / "n" / run_id)
    put(plain, tmp_path / "n" / "20260101-000000-aaaa")
    runner = CliRunner()

    def said(*arguments: str) -> str:
        done = runner.invoke(app, arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        return done.stdout

    monkeypatch.chdir(work)
    asked = said("query", "peak_by_rank", "latest")
    assert said("diagnose", "n/20260101-000000-aaaa")
    assert said("report", "latest") == f"report: {work}/profiler_logs/n/20260101-000001-bbbb/report.html\n"
    side = ["compare", "n/20260101-000000-aaaa", "n/20260101-000001-bbbb", "--html", "c?{d}.html"]
    assert "nothing moved" in said(*side) or Path("c?{d}.html").is_file()
    for options in EXPORTS:
        said("export", "latest", *options)
        assert Path(options[-1]).exists()
    assert Path("step=7/spans.csv").read_text().count("\n") == 5
    monkeypatch.chdir(tmp_path)
    assert said("query", "peak_by_rank", "n/20260101-000000-aaaa") == asked
