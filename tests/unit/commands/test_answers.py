"""The commands that answer, through the command line: their output, their errors in a line, and their exit codes."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import Result
from pyarrow import parquet
from run_tables import make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.errors import EXIT_CONFIG, EXIT_DISK_FULL, EXIT_LIMIT
from ray_memprof.query import questions

ROOT = Path(__file__).resolve().parents[3]
MIB, SECOND = 2**20, 10**9


def make(folder: Path, *peaks: int, **run: Any) -> Path:
    """A run whose ranks peak at so many MiB in `denoise`."""
    tables = {
        rank: {"spans": [span(1, "denoise", (0, SECOND), allocated=(0, 0, peak * MIB))]}
        for rank, peak in enumerate(peaks)
    }
    run = {"run_id": folder.name, "status": "ok", "source": "cpu", **run}
    make_run(folder, tables)
    (folder.parent / "latest").symlink_to(folder.name)
    return make_ranks(folder, *({} for _ in peaks), **run)


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """profiler_logs of the working directory: base, and wide, which is newer and takes more."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "profiler_logs" / "base" / "20260101-000000-aaaa", 100, 100)
    make(tmp_path / "profiler_logs" / "wide" / "20260102-000000-bbbb", 100, 120)
    return tmp_path / "profiler_logs"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def refusal(*arguments: object) -> tuple[int, list[str], str]:
    """Exit code, lines of the standard error, and the standard output."""
    result = call(*arguments)
    return result.exit_code, result.stderr.splitlines(), result.stdout


def test_every_command_has_a_line_of_help() -> None:
    text = call("--help").stdout
    answers = ("query", "diagnose", "report", "compare", "flame", "export", "import", "what-if")
    runs = ("launch", "run", "ls", "watch", "show", "open", "finish", "rm", "gc", "doctor")
    for name in (*answers, *runs):
        assert f" {name} " in text
        assert call(name, "--help").exit_code == 0


def test_the_command_line_starts_without_the_weight_of_its_commands() -> None:
    program = "import sys, ray_memprof.cli; print(sorted({'duckdb', 'pyarrow', 'torch', 'ray'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# query


def test_a_question_to_the_newest_run(logs: Path) -> None:
    result = call("query", "SELECT rank, allocated_peak_bytes FROM peak_by_rank")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split() for line in (lines[0], *lines[2:])] == [
        ["rank", "allocated_peak_bytes"],
        ["0", "100", "MiB"],
        ["1", "120", "MiB"],
    ]


def test_a_question_to_a_run_by_name(logs: Path) -> None:
    rows = json.loads(call("query", "peak_by_rank", "base", "--format", "json").stdout)
    assert [row["allocated_peak_bytes"] for row in rows] == [100 * MIB, 100 * MIB]
    assert "run_id" not in rows[0]


def test_a_question_to_several_runs(logs: Path) -> None:
    result = call("query", "peak_by_rank", "--runs", "profiler_logs/*/2*", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["name"], row["run_id"], row["rank"]) for row in rows] == [
        ("base", "20260101-000000-aaaa", "0"),
        ("base", "20260101-000000-aaaa", "1"),
        ("wide", "20260102-000000-bbbb", "0"),
        ("wide", "20260102-000000-bbbb", "1"),
    ]
    one = call("query", "peak_by_rank", "--runs", "profiler_logs/wide/2*", "--format", "csv")
    assert one.stdout.startswith("run_id,name,rank,")


def test_rows_go_into_a_file(logs: Path, tmp_path: Path) -> None:
    result = call("query", "spans", "base", "--format", "parquet", "--out", tmp_path / "spans.parquet")
    assert (result.exit_code, result.output) == (0, "")
    assert parquet.read_table(tmp_path / "spans.parquet").column("rank").to_pylist() == [0, 1]


def test_parquet_goes_through_a_pipe(logs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray_memprof.cli", "query", "spans", "base", "--format", "parquet"]
    done = subprocess.run(
        command, cwd=logs.parent, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert parquet.read_table(io.BytesIO(done.stdout)).num_rows == 2


def test_the_questions_are_listed_and_shown(logs: Path, tmp_path: Path) -> None:
    assert [line.split()[0] for line in call("query", "--list").stdout.split("\n\n")[0].splitlines()] == list(
        questions.QUESTIONS
    )
    assert call("query", "imbalance", "--sql").stdout == questions.question("imbalance")
    assert call("query", "imbalance", "--sql", "--out", tmp_path / "q.sql").output == ""
    assert (tmp_path / "q.sql").read_text() == questions.question("imbalance")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "there is no question", "ray-memprof query --list lists named questions"),
        (["imbalnce"], "there is no question 'imbalnce'", "did you mean imbalance?"),
        (["imbalnce", "--sql"], "there is no question 'imbalnce'", "did you mean imbalance?"),
        (["spans", "--sql"], "spans is a table, not a question", "a row of it is a span that ended"),
        (["FROM spanz"], "the SQL is refused: Catalog Error: Table with name spanz does not exist!", "Did you"),
        (["imbalance", "nope"], "there is no run 'nope'", "runs: wide/20260102-000000-bbbb, base/"),
        (["imbalance", "--runs", "x*"], "--runs 'x*' matches no run folder", "put it in quotes"),
        (["imbalance", "base", "--runs", "x*"], "either a run (base) or --runs, not both", None),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_answered(
    logs: Path, arguments: list[str], message: str, hint: str | None
) -> None:
    code, lines, out = refusal("query", *arguments)
    assert (code, lines[0], out) == (EXIT_CONFIG, f"error: {message}", "")
    assert len(lines) == (1 if hint is None else 2)
    assert hint is None or lines[1].startswith(f"hint: {hint}")


def test_a_run_of_an_older_version_is_refused_in_a_line(logs: Path) -> None:
    part = logs / "base" / "20260101-000000-aaaa" / "tables" / "runs" / "part-00000.parquet"
    rows = parquet.read_table(part)
    number = rows.column_names.index("schema_version")
    parquet.write_table(rows.set_column(number, rows.field(number), pa.array([-1], pa.int32())), part)
    code, lines, out = refusal("query", "imbalance", "base")
    assert (code, len(lines), out) == (EXIT_CONFIG, 2, "")
    assert "was recorded with schema version -1" in lines[0]
    assert lines[1] == "hint: use the ray_memprof that recorded it"


def test_a_file_that_cannot_be_written(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (["query", "spans", "base"], ["diagnose", "base"], ["compare", "base", "wide"]):
        code, lines, out = refusal(*arguments, "--out", tmp_path / "file" / "x")
        assert (code, len(lines), out) == (EXIT_CONFIG, 2, "")
        assert lines[0].startswith("error: cannot write")


def export(target: str, *options: str) -> tuple[str, ...]:
    return ("export", "base", "--out", target, "--format", *options)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (export("file/x", "perfetto"), "Not a directory"),
        (export("file/x", "snapshot"), "Not a directory"),
        (export("file/x", "snapshot", "--rank", "0"), "Not a directory"),
        (export("file/x", "csv"), "Not a directory"),
        (export("file/x", "csv", "--name", "spans"), "Not a directory"),
        (export("file/x", "memory_events"), "Not a directory"),
        (export("folder", "memory_events"), "it is a folder"),
        (export("x" * 300, "memory_events"), "File name too long"),
        (("export", "base", "--format", "memory_events"), "it is a folder"),
        (("report", "base"), "it is a folder"),
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_written_is_refused_before_the_run_is_read(
    logs: Path, arguments: tuple[str, ...], reason: str
) -> None:
    run = logs / "base" / "20260101-000000-aaaa"
    own = [run / name for name in ("report.html", "memory_events.json", "tables/allocs/rank=0")]
    for folder in (Path("folder"), *own):
        folder.mkdir(parents=True)
    for file in (Path("file"), run / "tables" / "allocs" / "rank=0" / "part-00000.parquet"):
        file.write_text("no Parquet")
    code, lines, out = refusal(*arguments)
    assert (code, len(lines), out) == (EXIT_CONFIG, 2, "")
    assert lines[0].startswith("error: cannot write ")
    assert lines[0].endswith(f": {reason}")


@pytest.mark.parametrize(
    "arguments",
    [*(export("x", name) for name in ("perfetto", "snapshot", "csv", "memory_events")), ("report", "base")],
)
def test_a_run_that_was_damaged_is_told_in_a_line(logs: Path, arguments: tuple[str, ...]) -> None:
    part = logs / "base" / "20260101-000000-aaaa" / "tables" / "allocs" / "rank=0" / "part-00000.parquet"
    part.parent.mkdir(parents=True)
    part.write_text("no Parquet")
    (part.parents[2] / "spans" / "rank=0" / part.name).write_text("none either")
    code, lines, out = refusal(*arguments)
    assert (code, len(lines), out) == (EXIT_CONFIG, 2, "")
    assert "cannot be read: " in lines[0]


# diagnose


def test_a_run_is_diagnosed_in_sentences(logs: Path) -> None:
    result = call("diagnose")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Rank 1 holds 20.0 MiB more" in result.stdout
    assert "no allocator events were recorded" in result.stdout


def test_a_run_without_findings_says_so(logs: Path) -> None:
    result = call("diagnose", "base")
    assert (result.exit_code, result.stdout.splitlines()[0].split(":")[0]) == (0, "nothing to say")
    assert json.loads(call("diagnose", "base", "--format", "json").stdout) == []


def test_findings_of_several_runs_as_rows(logs: Path) -> None:
    result = call("diagnose", "--runs", "profiler_logs/*/2*", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert {(row["name"], row["rule"], row["ranks"], row["bytes"]) for row in rows} == {
        ("wide", "holds_more", "[1]", str(20 * MIB))
    }
    assert call("diagnose", "--runs", "profiler_logs/*/2*").stdout.startswith("base/20260101-000000-aaaa\n  ")


def test_no_run_to_diagnose(logs: Path) -> None:
    assert refusal("diagnose", "nope")[:1] == (EXIT_CONFIG,)


# report


def test_a_report_is_written_anew_with_what_the_driver_noted(logs: Path) -> None:
    run = logs / "wide" / "20260102-000000-bbbb"
    (run / "run.json").write_text(json.dumps({"problems": ["rank 1: the last 3 bytes"]}))
    for arguments in ([], ["wide"]):
        (run / "report.html").unlink(missing_ok=True)
        result = call("report", *arguments)
        assert (result.exit_code, result.output) == (0, f"report: {run / 'report.html'}\n")
        assert "<li>rank 1: the last 3 bytes</li>" in (run / "report.html").read_text()


def test_a_note_of_the_driver_that_was_cut_off_is_told(logs: Path) -> None:
    path = logs / "base" / "20260101-000000-aaaa" / "run.json"
    path.write_text('{"problems": [')
    code, lines, out = refusal("report", "base")
    assert (code, len(lines), out) == (EXIT_CONFIG, 2, "")
    assert lines[0].startswith(f"error: {path} cannot be read: Expecting value")


def test_a_prediction_is_shown_beside_a_measured_run(logs: Path) -> None:
    make(logs / "predicted" / "20260103-000000-cccc", 90, 90, source="predicted")
    assert call("report", "base", "--beside", "predicted").exit_code == 0
    html = (logs / "base" / "20260101-000000-aaaa" / "report.html").read_text()
    assert "Predicted and measured" in html
    code, lines, _ = refusal("report", "base", "--beside", "wide")
    assert (code, lines[1]) == (EXIT_CONFIG, "hint: set a predicted run beside a measured one")
    assert refusal("report", "nope")[0] == EXIT_CONFIG


# compare


def test_two_runs_are_compared(logs: Path) -> None:
    result = call("compare", "base", "wide")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "spans that moved, wide against base" in result.stdout
    assert "+20.0 MiB, +20.0%" in result.stdout


def test_moves_as_rows_and_as_json(logs: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(call("compare", "base", "wide", "--format", "csv").stdout)))
    (row,) = (row for row in rows if (row["level"], row["measure"]) == ("run", "peak_allocated"))
    assert (row["name"], float(row["base_value"]), float(row["change"])) == ("wide", 100 * MIB, 20 * MIB)
    call("compare", "base", "wide", "--format", "parquet", "--out", tmp_path / "moves")
    assert parquet.read_table(tmp_path / "moves").num_rows == len(rows)
    facts = json.loads(call("compare", "base", "wide", "--format", "json", "--rank", "0").stdout)
    assert {row["change"] for row in facts["moves"] if row["measure"] == "peak_allocated"} == {0}


def test_a_limit_that_is_exceeded_ends_with_its_own_code_and_says_which(logs: Path) -> None:
    limits = (
        "peak_allocated > +25%",
        "peak_allocated > +2%",
        "rank1.peak_allocated > 110 MiB",
        "duration > +1%",
    )
    result = call("compare", "base", "wide", *(word for limit in limits for word in ("--fail-if", limit)))
    assert result.exit_code == EXIT_LIMIT == 30
    assert result.stderr.splitlines() == [
        "limit holds: peak_allocated > +25%: 100 MiB -> 120 MiB (+20.0 MiB, +20.0%) on rank 1 in wide, "
        "bound 125 MiB",
        "limit exceeded: peak_allocated > +2%: 100 MiB -> 120 MiB (+20.0 MiB, +20.0%) on rank 1 in wide, "
        "bound 102 MiB",
        "limit exceeded: rank1.peak_allocated > 110 MiB: 100 MiB -> 120 MiB (+20.0 MiB, +20.0%) on rank 1 "
        "in wide, bound 110 MiB",
        "limit holds: duration > +1%: 1.000 s -> 1.000 s (=) on rank 0 in wide, bound 1.010 s",
        "error: 2 of 4 limits exceeded",
    ]
    assert "the whole run" in result.stdout


def test_limits_that_hold_end_well(logs: Path) -> None:
    result = call("compare", "wide", "base", "--fail-if", "peak_allocated > +0%", "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["limits"][0]["is_exceeded"] is False


def test_a_limit_on_what_one_run_lacks_is_an_error_and_no_pass(logs: Path) -> None:
    code, lines, out = refusal("compare", "base", "wide", "--fail-if", "decode.peak_allocated > +2%")
    assert (code, out) == (EXIT_CONFIG, "")
    assert lines == [
        "error: --fail-if 'decode.peak_allocated > +2%': wide has no peak_allocated in 'decode'",
        "hint: did you mean denoise?",
    ]


def test_a_failed_run_is_told_and_held_to_limits_only_on_request(logs: Path) -> None:
    make(logs / "bad" / "20260103-000000-cccc", 50, 50, status="oom", reason="rank 0: full")
    warning = "warning: bad did not end well (oom: rank 0: full): its figures end there"
    assert refusal("compare", "base", "bad")[:2] == (0, [warning])
    limit = ("--fail-if", "peak_allocated > +2%")
    assert refusal("compare", "base", "bad", *limit) == (
        EXIT_CONFIG,
        [
            "error: bad did not end well (oom): its figures cannot be checked against a limit",
            "hint: --allow-failed checks them anyway",
        ],
        "",
    )
    code, lines, _ = refusal("compare", "base", "bad", *limit, "--allow-failed")
    assert (code, lines[0]) == (0, warning)


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["base"],
            ["error: a comparison needs two runs", "hint: ray-memprof compare BASE OTHER [OTHER ...]"],
        ),
        (["base", "nope"], ["error: there is no run 'nope'"]),
        (["base", "wide", "--rank", "7"], ["error: base has no rank 7", "hint: it has ranks 0 and 1"]),
        (["base", "wide", "--fail-if", "peak"], ["error: --fail-if 'peak' is no limit"]),
    ],
)
def test_runs_that_cannot_be_compared(logs: Path, arguments: list[str], lines: list[str]) -> None:
    code, told, out = refusal("compare", *arguments)
    assert (code, told[: len(lines)], out) == (EXIT_CONFIG, lines, "")


@pytest.mark.parametrize("option", ["--out", "--html"])
def test_what_can_be_no_file_is_refused_before_runs_are_compared(logs: Path, option: str) -> None:
    for name in ("", logs):
        # The runs are not looked for yet.
        code, lines, out = refusal("compare", "base", "nope", option, name)
        assert (code, len(lines), out) == (EXIT_CONFIG, 2, "")
        assert "a folder" in lines[0]


# the standard output


def run_with_stdout(stdout: int, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """A process of its own: exit code, and lines of the standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "ray_memprof.cli", *arguments],
        stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


def test_a_reader_that_left_loses_no_verdict(logs: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        limit = ("--fail-if", "peak_allocated > +2%")
        code, lines = run_with_stdout(writer, "compare", "base", "wide", *limit)
        assert (code, len(lines), lines[-1]) == (EXIT_LIMIT, 2, "error: 1 of 1 limits exceeded")
        assert run_with_stdout(writer, "query", "spans", "--format", "csv") == (0, [])
    finally:
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "arguments", [("query", "spans"), ("query", "spans", "--format", "csv"), ("diagnose",)]
)
def test_a_full_disk_behind_the_standard_output(logs: Path, arguments: tuple[str, ...]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert run_with_stdout(full, *arguments) == (
            EXIT_DISK_FULL,
            [
                "error: cannot write the standard output: No space left on device",
                "hint: make room on that disk",
            ],
        )
    finally:
        os.close(full)


def test_letters_that_the_terminal_has_not_are_escaped(logs: Path, tmp_path: Path) -> None:
    for form, text in (("table", "\\xe9"), ("csv", "\u00e9")):
        with (tmp_path / "out").open("w+b") as file:
            arguments = ("query", "SELECT chr(233) AS letter", "--format", form)
            assert run_with_stdout(file.fileno(), *arguments, PYTHONIOENCODING="ascii") == (0, [])
        assert text in (tmp_path / "out").read_text(encoding="utf-8")


# where runs are kept


@pytest.mark.parametrize("how", ["option", "variable"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("query", "imbalance", "base"),
        ("query", "imbalance", "--runs", "base"),
        ("diagnose", "base"),
        ("compare", "base", "wide"),
        ("report", "base"),
        ("export", "base", "--format", "csv", "--name", "spans", "--out", "spans.csv"),
    ],
)
def test_runs_are_looked_for_in_the_folder_that_is_named(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, arguments: tuple[str, ...]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    logs.rename(elsewhere)
    if how == "variable":
        assert call(*arguments).exit_code == EXIT_CONFIG
        monkeypatch.setenv("RAY_MEMPROF_DIR", str(elsewhere))
    more = ("--output-dir", elsewhere) if how == "option" else ()
    assert call(*arguments, *more).exit_code == 0
    other = call("what-if", "base", *more).stderr, call("flame", "base", *more).stderr
    assert not any("no run 'base'" in one for one in other)
