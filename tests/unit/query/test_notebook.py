"""Runs in Python: found, asked by name and in SQL, shown in a notebook; the page that explains it runs."""

import re
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from run_tables import make_ranks, make_run, span

import ray_memprof
from ray_memprof.errors import ConfigError
from ray_memprof.query import questions
from ray_memprof.query.answers import table_text
from ray_memprof.query.notebook import Answer, Runs

MIB, SECOND = 2**20, 10**9
PAGE = Path(__file__).resolve().parents[3] / "docs" / "python.md"


def made(folder: Path, *peaks: int) -> Path:
    tables = {
        rank: {"spans": [span(1, "denoise", (0, SECOND), allocated=(0, 0, peak * MIB))]}
        for rank, peak in enumerate(peaks)
    }
    make_run(folder, tables)
    return make_ranks(folder, *({} for _ in peaks), run_id=folder.name, name=folder.parent.name, status="ok")


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made(tmp_path / "logs" / "ulysses4" / "20260102-000000-bbbb", 100, 120)
    made(tmp_path / "logs" / "base" / "20260101-000000-aaaa", 80)
    monkeypatch.setenv("RAY_MEMPROF_DIR", str(tmp_path / "logs"))
    return tmp_path / "logs"


def test_there_are_no_runs(tmp_path: Path) -> None:
    none = ray_memprof.runs(output_dir=tmp_path)
    assert (len(none), list(none), repr(none), none._repr_html_()) == (0, [], "no runs\n", "<p>no runs</p>")
    with pytest.raises(ConfigError, match="there is no run 'latest'") as caught:
        ray_memprof.open_run(output_dir=tmp_path)
    assert caught.value.__notes__ == [f"hint: there are no runs in {tmp_path}; give the path of a run folder"]


def test_runs_are_found_the_newest_first(logs: Path, tmp_path: Path) -> None:
    found = ray_memprof.runs()
    assert [(one.name, one.run_id) for one in found] == [
        ("ulysses4", "20260102-000000-bbbb"),
        ("base", "20260101-000000-aaaa"),
    ]
    assert isinstance(found[:1], Runs) and [one.name for one in found[1:]] == ["base"]
    assert found[-1] == ray_memprof.open_run("base")
    assert [one.name for one in ray_memprof.runs("b*")] == ["base"]
    assert len(ray_memprof.runs(output_dir=str(tmp_path))) == 0
    assert repr(found).splitlines()[0] == "ulysses4/20260102-000000-bbbb: ok"
    assert found[0].facts.allocated_peak_bytes == 120 * MIB
    assert found.to_arrow().column("allocated_peak_bytes").to_pylist() == [120 * MIB, 80 * MIB]


def test_a_run_is_asked_by_name_and_in_sql(logs: Path) -> None:
    run = ray_memprof.open_run("ulysses4")
    answer = run.ask("peak_by_rank")
    assert isinstance(answer.table, pa.Table)
    assert [row["allocated_peak_bytes"] for row in answer.to_pylist()] == [100 * MIB, 120 * MIB]
    assert (len(answer), repr(answer)) == (2, table_text(answer.table))
    assert pa.table(answer).equals(answer.table)  # as an Arrow stream
    assert run.sql("SELECT COUNT(*) AS n FROM spans").to_pylist() == [{"n": 2}]
    assert ray_memprof.open_run(run.path / "tables" / "runs") == ray_memprof.open_run(run.path) == run


def test_several_runs_are_asked_at_once(logs: Path) -> None:
    rows = ray_memprof.runs().ask("peak_by_rank").to_pylist()
    assert [(row["name"], row["rank"], row["allocated_peak_bytes"] // MIB) for row in rows] == [
        ("ulysses4", 0, 100),
        ("ulysses4", 1, 120),
        ("base", 0, 80),
    ]
    assert ray_memprof.runs("base").sql("SELECT name, rank FROM peak_by_rank").to_pylist() == [
        {"name": "base", "rank": 0}
    ]


def test_no_run_at_all_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run to ask"):
        ray_memprof.runs(output_dir=tmp_path).ask("peak_by_rank")


def test_what_cannot_be_asked_comes_with_a_hint(logs: Path) -> None:
    with pytest.raises(ValueError, match="there is no question 'peak_by_rnak'") as caught:
        ray_memprof.open_run().ask("peak_by_rnak")
    assert caught.value.__notes__ == ["hint: did you mean peak_by_rank?"]
    with pytest.raises(ConfigError, match="DELETE is no question"):
        ray_memprof.open_run().sql("DELETE FROM spans")


def test_questions_are_listed_with_what_they_ask() -> None:
    found = ray_memprof.questions()
    assert tuple(found) == questions.QUESTIONS
    assert found["peak_by_rank"] == "What is the most memory that each rank held, and where was it?"


def test_a_notebook_shows_tables_with_units_and_nothing_that_acts() -> None:
    table = pa.table({"size_bytes": [3 * MIB, None], "<b>": ["<script>", "a\x1b"]})
    assert Answer(table)._repr_html_() == (
        '<table><thead><tr><th style="text-align: right">size_bytes</th>'
        '<th style="text-align: left">&lt;b&gt;</th></tr></thead><tbody>'
        '<tr><td style="text-align: right">3.00 MiB</td><td style="text-align: left">&lt;script&gt;</td></tr>'
        '<tr><td style="text-align: right">-</td><td style="text-align: left">a\\x1b</td></tr>'
        "</tbody></table>"
    )


def test_a_long_answer_is_cut_and_says_so() -> None:
    shown = Answer(pa.table({"n": list(range(1203))}))._repr_html_()
    assert shown.count("<tr>") == 201
    assert shown.endswith("<p>1,003 more rows: to_pylist() and .table have all of them</p>")


def test_runs_are_shown_in_a_notebook(logs: Path) -> None:
    for shown in (ray_memprof.runs()._repr_html_(), ray_memprof.open_run()._repr_html_()):
        assert "20260102-000000-bbbb" in shown and "120 MiB" in shown


def test_frames_need_their_package(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ray_memprof.open_run().ask("peak_by_rank")
    for package, call in (("pandas", answer.to_pandas), ("polars", answer.to_polars)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ModuleNotFoundError, match=f"{package} is not installed: pip install {package}"):
            call()
    polars: Any = types.ModuleType("polars")
    polars.from_arrow = lambda table: ("frame", table.num_rows)
    monkeypatch.setitem(sys.modules, "polars", polars)
    assert answer.to_polars() == ("frame", 2)


def test_the_page_runs_as_it_is_written(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    exec(compile(code, "python.md", "exec"), {})
    assert capsys.readouterr().out == "0 0\n1 0\n"
