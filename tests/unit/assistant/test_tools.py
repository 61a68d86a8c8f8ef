"""What an assistant gets is what the commands print."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from run_tables import make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.assistant.tools import Tools
from ray_memprof.cli import app
from ray_memprof.errors import ConfigError

MIB, SECOND = 2**20, 10**9


def make(folder: Path, *peaks: int, **facts: Any) -> Path:
    """A run whose ranks peak at so many MiB in `denoise`; `facts` are those of run.json."""
    tables = {
        rank: {"spans": [span(1, "denoise", (0, SECOND), allocated=(0, 0, peak * MIB))]}
        for rank, peak in enumerate(peaks)
    }
    make_run(folder, tables)
    if facts.get("status") == "ok":
        make_ranks(folder, *({} for _ in peaks), run_id=folder.name, status="ok", source="cpu")
    (folder / "run.json").write_text(
        json.dumps({"num_ranks": len(peaks), "start_ns": 1767225600 * SECOND, **facts})
    )
    return folder


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Runs in profiler_logs of the working folder: base, and wide, which is newer and takes more."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "profiler_logs" / "base" / "20260101-000000-aaaa", 100, 100, status="ok")
    make(tmp_path / "profiler_logs" / "wide" / "20260102-000000-bbbb", 100, 120, status="ok")
    return Tools(Path("profiler_logs"))


def printed(*arguments: object) -> str:
    result: Result = CliRunner().invoke(app, list(map(str, arguments)))
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def cells(text: str) -> list[list[str]]:
    lines = text.splitlines()
    return [line.split() for line in (lines[0], *lines[2:])]


def test_without_runs_it_says_where_it_looked(tmp_path: Path) -> None:
    assert Tools(tmp_path).list_runs() == f"there are no runs in {tmp_path}\n"


def test_runs_are_listed_with_how_they_ended_the_newest_first(tools: Tools) -> None:
    logs = tools.output_dir
    failed = {"status": "oom", "reason": "rank 1 ran out"}
    make(logs / "tall" / "20260103-000000-cccc", 1, **failed)
    make(logs / "now" / "20260104-000000-dddd", 1, status="running")
    broken = make(logs / "cut" / "20260105-000000-eeee", 1, status="ok")
    (broken / "run.json").write_text("{")
    text = tools.list_runs()
    assert text.startswith(printed("ls", "--output-dir", str(logs)))
    assert [row[:2] for row in cells(text)[1:6]] == [
        ["cut", "20260105-000000-eeee"],
        ["now", "20260104-000000-dddd"],
        ["tall", "20260103-000000-cccc"],
        ["wide", "20260102-000000-bbbb"],
        ["base", "20260101-000000-aaaa"],
    ]
    *_, cut, now, tall = text.splitlines()
    assert cut.startswith("cut/20260105-000000-eeee: ") and "run.json" in cut
    assert now.startswith("now/20260104-000000-dddd: before its first step")
    assert tall == "tall/20260103-000000-cccc: rank 1 ran out"


def test_older_runs_are_left_out_and_told(tools: Tools) -> None:
    *kept, last = tools.list_runs(max_rows=1).splitlines()
    assert (len(kept), last) == (3, "cut after 1 runs: 1 older ones are left out.")


def test_questions_are_those_of_the_command_line(tools: Tools) -> None:
    assert tools.questions() == printed("query", "--list")
    assert tools.questions("imbalance") == printed("query", "imbalance", "--sql")


def test_a_table_is_explained_column_by_column(tools: Tools) -> None:
    text = tools.questions("spans")
    assert text.startswith("spans: one row = a span that ended")
    assert "\nallocated_peak_bytes " in text and "(bytes)\n" in text and "\nrank  " in text
    assert "\nrank " not in tools.questions("runs")


@pytest.mark.parametrize("name", ["peak_by_rank", "imbalance", "spans"])
def test_an_answer_is_the_one_of_the_command_line(tools: Tools, name: str) -> None:
    assert tools.ask(name, "base") == printed("query", name, "base")
    assert tools.ask(name, format="csv") == printed("query", name, "latest", "--format", "csv")
    assert json.loads(tools.ask(name, format="json")) == json.loads(
        printed("query", name, "latest", "--format", "json")
    )


def test_an_answer_in_sql_is_the_one_of_the_command_line(tools: Tools) -> None:
    text = "SELECT rank, allocated_peak_bytes FROM peak_by_rank ORDER BY rank DESC"
    assert tools.sql(text, "wide") == printed("query", text, "wide")
    assert tools.sql(text, "wide", max_rows=1, format="csv").splitlines()[:2] == [
        "rank,allocated_peak_bytes",
        f"1,{120 * MIB}",
    ]
    assert "cut after 1 rows (max_rows is 1): there are more." in tools.sql(text, "wide", max_rows=1)


def test_a_question_is_a_name_and_no_sql(tools: Tools) -> None:
    with pytest.raises(ConfigError) as refused:
        tools.ask("peak_by_ran", "base")
    assert refused.value.hint == "did you mean peak_by_rank?"
    with pytest.raises(ConfigError, match="there is no question 'SELECT 1'"):
        tools.ask("SELECT 1", "base")
    with pytest.raises(ConfigError, match="there is no run 'bas'"):
        tools.ask("imbalance", "bas")


def test_sql_reads_no_files(tools: Tools) -> None:
    with pytest.raises(ConfigError, match="file system operations are disabled"):
        tools.sql("FROM read_text('profiler_logs/base/20260101-000000-aaaa/run.json')")


def test_a_run_that_goes_on_is_told_first(tools: Tools) -> None:
    make(tools.output_dir / "now" / "20260104-000000-dddd", 5, status="running")
    note, rest = tools.ask("peak_by_rank", "now").split("\n", 1)
    assert note.startswith("note: now/20260104-000000-dddd: running, ")
    assert cells(rest)[1][:3] == ["0", "5.00", "MiB"]


def test_a_diagnosis_is_the_one_of_the_command_line(tools: Tools) -> None:
    assert tools.diagnose("wide") == printed("diagnose", "wide")
    assert tools.diagnose() == printed("diagnose")


def test_a_comparison_is_the_one_of_the_command_line(tools: Tools) -> None:
    assert tools.compare(["base", "wide"]) == printed("compare", "base", "wide")
    assert tools.compare(["base", "wide"], rank=0) == printed("compare", "base", "wide", "--rank", 0)
    result = CliRunner().invoke(app, ["compare", "base", "wide", "--fail-if", "peak_allocated > +2%"])
    said = [line for line in result.stderr.splitlines() if not line.startswith("error:")]
    assert result.exit_code == 30 and said
    text = tools.compare(["base", "wide"], ["peak_allocated > +2%"])
    assert text == "".join(f"{line}\n" for line in said) + result.stdout
