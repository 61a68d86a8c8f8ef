"""What a shell completes: commands, options, names of runs and of questions; scripts for three shells."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_memprof.cli import app


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for run in ("base/20260101-000000-aaaa", "bare/20260102-000000-bbbb", "base/20260103-000000-cccc"):
        (tmp_path / "logs" / run / "tables").mkdir(parents=True)
    monkeypatch.setenv("RAY_MEMPROF_DIR", str(tmp_path / "logs"))
    return tmp_path / "logs"


def completed(*words: str) -> list[str]:
    """What bash gets to offer for the last word."""
    line = " ".join(("ray-memprof", *words))
    environ = {
        "_RAY_MEMPROF_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
    }
    done = CliRunner().invoke(app, [], env=environ, prog_name="ray-memprof")
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.stdout.split()


def test_there_are_no_runs_to_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_MEMPROF_DIR", str(tmp_path))
    assert completed("show", "") == []


def test_commands_and_options_are_completed() -> None:
    assert completed("wat") == ["watch"]
    assert completed("query", "--form") == ["--format"]


def test_runs_are_completed_by_name_and_behind_a_slash_by_id(logs: Path, tmp_path: Path) -> None:
    assert completed("show", "") == ["base", "bare", "latest"]
    assert completed("compare", "base", "bar") == ["bare"]
    assert completed("rm", "base/") == ["base/20260103-000000-cccc", "base/20260101-000000-aaaa"]
    assert completed("show", "--output-dir", str(tmp_path), "b") == []


def test_questions_and_tables_are_completed(logs: Path) -> None:
    assert sorted(completed("query", "imbalance")) == ["imbalance", "imbalance_by_component"]
    assert completed("query", "ledg") == ["ledger"]
    assert completed("query", "imbalance", "bar") == ["bare"]


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", "complete -o default -F _ray_memprof_completion ray-memprof"),
        ("zsh", "#compdef ray-memprof"),
        ("fish", "complete --command ray-memprof"),
    ],
)
def test_three_shells_have_a_script(shell: str, line: str) -> None:
    environ = {"_RAY_MEMPROF_COMPLETE": f"source_{shell}"}
    done = CliRunner().invoke(app, [], env=environ, prog_name="ray-memprof")
    assert line in done.stdout
