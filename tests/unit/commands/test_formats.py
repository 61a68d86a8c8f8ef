"""--format where it is not given: the suffix of --out says it, in every command that has both."""

import json
from pathlib import Path

import pytest
from pyarrow import parquet
from run_tables import make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.query.answers import Form, form_of

SECOND = 10**9


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "profiler_logs" / "base" / "r1"
    make_run(run, {0: {"spans": [span(1, "denoise", (0, SECOND), allocated=(0, 0, 2**20))]}})
    make_ranks(run, {"status": "ok"}, run_id="r1", name="base", status="ok", source="cpu", config="{}")
    return tmp_path


def written(*arguments: str) -> str:
    """What a command leaves in the file behind --out."""
    done = CliRunner().invoke(app, list(arguments))
    assert (done.exit_code, done.stderr) == (0, "")
    return Path(arguments[arguments.index("--out") + 1]).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (None, Form.TABLE),
        ("rows", Form.TABLE),
        ("rows.txt", Form.TABLE),
        ("rows.csv", Form.CSV),
        ("a.b/rows.json", Form.JSON),
        ("rows.parquet", Form.PARQUET),
    ],
)
def test_the_suffix_says_the_form(name: str | None, form: Form) -> None:
    assert form_of(None if name is None else Path(name)) is form


def test_rows_go_into_a_file_of_the_kind_that_its_name_says(logs: Path) -> None:
    assert written("query", "SELECT 1 AS a", "base", "--out", "x.csv") == "a\n1\n"
    assert json.loads(written("query", "SELECT 1 AS a", "base", "--out", "x.json")) == [{"a": 1}]
    assert written("query", "SELECT 1 AS a", "base", "--out", "y.json", "--format", "csv") == "a\n1\n"
    done = CliRunner().invoke(app, ["query", "spans", "base", "--out", "x.parquet"])
    assert (done.exit_code, parquet.read_table("x.parquet").num_rows) == (0, 1)


def test_findings_too(logs: Path) -> None:
    assert written("diagnose", "base", "--out", "f.md").startswith("### base/r1\n\nnothing to say")
    assert json.loads(written("diagnose", "--runs", "b*", "--out", "f.json")) == []
    assert written("diagnose", "base", "--out", "f.txt").startswith("nothing to say")


def test_comparisons_too(logs: Path) -> None:
    limit = ("--fail-if", "peak_allocated > +1%")
    for name, start in (("c.md", "### Memory"), ("c.csv", "run,"), ("c.json", "{")):
        done = CliRunner().invoke(app, ["compare", "base", "base", "--out", name])
        assert (done.exit_code, Path(name).read_text()[: len(start)]) == (0, start)
    assert "the whole run" in written("compare", "base", "base", "--out", "c.txt")
    done = CliRunner().invoke(app, ["compare", "base", "base", *limit, "--out", "c.xml"])
    assert (done.exit_code, Path("c.xml").read_text().count("<testcase ")) == (0, 1)


def test_exports_too_and_what_no_name_says_is_asked_for(logs: Path) -> None:
    assert json.loads(written("export", "base", "--out", "events.json"))
    done = CliRunner().invoke(app, ["export", "base", "--out", "base.trace.json.gz"])
    assert (done.exit_code, Path("base.trace.json.gz").read_bytes()[:2]) == (0, b"\x1f\x8b")
    assert written("export", "base", "--name", "spans", "--out", "spans.csv").startswith("rank,")
    for arguments, said in (((), ""), (("--out", "x.bin"), ": x.bin does not say it")):
        done = CliRunner().invoke(app, ["export", "base", *arguments])
        assert (done.exit_code, done.stderr.splitlines()) == (
            2,
            [
                f"error: which format is to be written{said}",
                "hint: --format perfetto, snapshot, csv, memory_events",
            ],
        )
