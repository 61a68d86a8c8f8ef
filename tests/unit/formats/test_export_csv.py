"""Tables and questions as CSV."""

import csv
from pathlib import Path

import pytest
from run_tables import make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.errors import ConfigError
from ray_memprof.formats import csv as exporter
from ray_memprof.formats.memory_events import write_memory_events
from ray_memprof.store.schema import TABLES


def lines(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def run_of_two(tmp_path: Path) -> Path:
    spans = {
        rank: {"spans": [span(1, 'a, "b"', (0, 5 + rank), allocated=(0, 0, 9 + rank))]} for rank in range(2)
    }
    return make_ranks(make_run(tmp_path / "run", spans), {}, {}, run_id="r1")


def test_every_table_is_there_even_if_empty(tmp_path: Path) -> None:
    run_dir = make_ranks(make_run(tmp_path / "run", {}))
    assert exporter.write_csv(run_dir, tmp_path / "out") == tmp_path / "out"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.csv" for name in TABLES
    )
    for name, table in TABLES.items():
        names = [column.name for column in table.columns]
        assert lines(tmp_path / "out" / f"{name}.csv")[0] == (names if name == "runs" else ["rank", *names])
    assert len(lines(tmp_path / "out" / "allocs.csv")) == 1


def test_rows_come_as_they_are(tmp_path: Path) -> None:
    exporter.write_csv(run_of_two(tmp_path), tmp_path / "out", rank=1)
    head, *rows = lines(tmp_path / "out" / "spans.csv")
    (row,) = [dict(zip(head, row, strict=True)) for row in rows]
    assert {key: row[key] for key in ("rank", "path", "end_ns", "allocated_peak_bytes", "step")} == {
        "rank": "1", "path": 'a, "b"', "end_ns": "6", "allocated_peak_bytes": "10", "step": ""
    }  # fmt: skip
    assert len(lines(tmp_path / "out" / "runs.csv")) == 2  # of the whole run


def test_a_question(tmp_path: Path) -> None:
    path = exporter.write_csv(run_of_two(tmp_path), tmp_path / "p's.csv", "peak_by_stage")
    head, *rows = lines(path)
    assert head[:2] == ["rank", "stage"]
    assert [row[:2] for row in rows] == [["0", 'a, "b"'], ["1", 'a, "b"']]


@pytest.mark.parametrize("name", ["file:p.csv", "run:2/p.csv", "s3:/p.csv"])
def test_a_path_is_a_file_whatever_its_name_looks_like(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = run_of_two(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(lines(exporter.write_csv(run_dir, Path(name), "peak_by_stage"))) == 3


def test_unknown_names_and_ranks_are_refused(tmp_path: Path) -> None:
    run_dir = run_of_two(tmp_path)
    with pytest.raises(ConfigError, match="no question 'peak_by_stge'") as caught:
        exporter.write_csv(run_dir, tmp_path / "x.csv", "peak_by_stge")
    assert caught.value.hint == "did you mean peak_by_stage?"
    with pytest.raises(ConfigError, match="runs has no column rank"):
        exporter.write_csv(run_dir, tmp_path / "x.csv", "runs", 1)
    assert not (tmp_path / "x.csv").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    run_dir = run_of_two(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        exporter.write_csv(run_dir, tmp_path / "file" / "x.csv", "spans")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = run_of_two(tmp_path)
    result = CliRunner().invoke(
        app, ["export", str(run_dir), "--format", "csv", "--name", "ranks", "--out", "r.csv"]
    )
    assert (result.exit_code, result.output) == (0, "r.csv\n")
    assert len(lines(Path("r.csv"))) == 3
    result = CliRunner().invoke(app, ["export", str(run_dir), "--format", "memory_events", "--out", "m.json"])
    assert (result.exit_code, result.output) == (0, "m.json\n")
    assert not (run_dir / "memory_events.json").exists(), "nothing of the run is written anew"
    assert Path("m.json").read_bytes() == write_memory_events(run_dir).read_bytes()
    for arguments, told in (
        (["--format", "memory_events", "--rank", "1"], "error: memory_events.json is of all ranks"),
        (
            ["--format", "perfetto", "--name", "ranks"],
            "error: --name ranks goes with --format csv, not perfetto",
        ),
    ):
        result = CliRunner().invoke(app, ["export", str(run_dir), *arguments])
        assert (result.exit_code, result.output.splitlines()[0]) == (2, told)


def test_no_text_is_a_formula_for_a_spreadsheet(tmp_path: Path) -> None:
    names = ["=1+1", "+1", "-1", "@x", "\tt", "a=1", "'b"]
    spans = [span(number, name, (number, 9), allocated=(0, 0, 5)) for number, name in enumerate(names, 1)]
    run_dir = make_ranks(make_run(tmp_path / "run", {0: {"spans": spans}}), {}, run_id="r1")
    exporter.write_csv(run_dir, tmp_path / "x.csv", "spans")
    head, *rows = lines(tmp_path / "x.csv")
    written = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["path"] for row in written] == ["'=1+1", "'+1", "'-1", "'@x", "'\tt", "a=1", "'b"]
    assert {row["allocated_peak_bytes"] for row in written} == {"5"}
