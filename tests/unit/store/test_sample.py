"""The sample run of the package: whole, small, copied once, in a wheel too; its page is that of the code."""

import re
from pathlib import Path

import pytest
from command_line import import_script
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.errors import ConfigError
from ray_memprof.query.database import query
from ray_memprof.store import sample
from ray_memprof.store.sample import sample_run

ROOT = Path(__file__).resolve().parents[3]
LARGEST = 2 * 10**6


def said(tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    """What a command says whose runs are in `tmp_path`."""
    done = CliRunner().invoke(app, [*arguments, "--output-dir", str(tmp_path)])
    return done.exit_code, done.stdout, done.stderr


def test_an_installation_without_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_PLACES", (tmp_path / "nowhere",))
    with pytest.raises(ConfigError, match="this installation has no sample run"):
        sample_run(tmp_path)


def test_it_is_small_and_of_two_gpus(tmp_path: Path) -> None:
    run_dir = sample_run(tmp_path)
    assert sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file()) < LARGEST
    peaks = query(run_dir, "peak_by_rank").to_pylist()
    assert [row["allocated_peak_bytes"] for row in peaks] == [19_054_371_840] * 2
    checked = query(run_dir, "replay_check").to_pylist()
    assert [row["is_exact"] for row in checked] == [True, True]


def test_it_is_copied_once(tmp_path: Path) -> None:
    run_dir = sample_run(tmp_path / "runs")
    assert [path.name for path in run_dir.parent.iterdir()] == [run_dir.name]
    (run_dir / "mark").touch()
    assert sample_run(tmp_path / "runs") == run_dir and (run_dir / "mark").exists()


def test_in_a_folder_of_the_working_folder_its_report_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROWSER", "true")
    done = CliRunner().invoke(app, ["open", "--sample", "--output-dir", "runs"])
    assert (done.exit_code, done.exception) == (0, None)
    assert Path(done.stdout.strip()) == sample_run(Path("runs")) / "report.html"
    assert Path(done.stdout.strip()).is_absolute()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ConfigError, match=f"the sample run cannot be copied to {tmp_path}/runs/sample/"):
        sample_run(tmp_path / "runs")


def test_every_command_takes_it_once_one_was_given_the_flag(tmp_path: Path) -> None:
    code, told, note = said(tmp_path, "show", "--sample")
    assert (code, told.splitlines()[0]) == (0, "ulysses2: ok, exit 0")
    assert note == (
        f"note: the sample run is in {tmp_path}/sample/20261128-210842-ddae now; every command takes it as sample\n"
    )
    assert said(tmp_path, "show", "sample") == (0, told, "")
    assert said(tmp_path, "show", "--sample") == (0, told, "")


def test_its_report_is_written_where_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER", "true")
    report = tmp_path / "sample" / "20261128-210842-ddae" / "report.html"
    assert said(tmp_path, "open", "--sample")[:2] == (0, f"{report}\n")
    assert "17.7 GiB" in report.read_text(encoding="utf-8")
    report.unlink()
    assert said(tmp_path, "report", "--sample") == (0, f"report: {report}\n", "")


@pytest.mark.parametrize("command", ["show", "report", "open"])
def test_a_run_and_the_sample_are_one_too_many(tmp_path: Path, command: str) -> None:
    code, told, errors = said(tmp_path, command, "other", "--sample")
    assert (code, told, errors) == (2, "", "error: other and --sample both name a run\nhint: leave one out\n")


def test_the_page_in_docs_is_what_the_code_makes(tmp_path: Path) -> None:
    """Mend it with `python scripts/write_docs.py --sample`."""
    (tmp_path / "sample").mkdir()
    assert import_script("write_docs").main(["--sample"], tmp_path) == 0
    made, kept = (
        re.sub(r"[A-Za-z0-9+/=]{10000,}", "plotly.js", path.read_text(encoding="utf-8"))
        for path in (tmp_path / "sample" / "report.html", ROOT / "docs" / "sample" / "report.html")
    )
    assert len(made) < 10**6
    # Whole texts would be printed for minutes.
    changed = [pair for pair in zip(made.splitlines(), kept.splitlines(), strict=False) if pair[0] != pair[1]]
    assert [tuple(line[:200] for line in pair) for pair in changed[:1]] == []
    assert len(made) == len(kept)
