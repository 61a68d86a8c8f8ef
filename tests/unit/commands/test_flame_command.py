"""ray-memprof flame: where the page goes, and what is refused in one line."""

from pathlib import Path

import pytest
from click.testing import Result
from run_tables import event, make_ranks, make_run, span
from typer.testing import CliRunner

from ray_memprof.cli import app
from ray_memprof.errors import EXIT_CONFIG


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The newest run of the working directory: events of ranks 0 and 1."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "profiler_logs" / "base" / "20260101-000000-aaaa"
    tables = {"allocs": [event(1, "alloc", 512, address=1)]}
    make_run(folder, {0: tables, 1: tables})
    (folder.parent / "latest").symlink_to(folder.name)
    return make_ranks(folder, {}, {}, run_id=folder.name, status="ok")


def test_the_page_goes_into_the_run_folder(run_dir: Path) -> None:
    result = call("flame")
    path = run_dir / "flame.html"
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path(result.stdout.removeprefix("flame graph: ").strip()).resolve() == path
    assert 'id="data-flames-1"' in path.read_text()


def test_the_page_goes_where_it_is_asked_for_with_one_rank(run_dir: Path, tmp_path: Path) -> None:
    result = call("flame", "base", "--out", "one.html", "--rank", "1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "flame graph: one.html\n", "")
    html = (tmp_path / "one.html").read_text()
    assert "rank 1, 512 B" in html
    assert 'id="data-flames-1"' not in html
    assert not (run_dir / "flame.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["nope"], "there is no run 'nope'", "runs: base/20260101-000000-aaaa"),
        (["--base", "nope"], "there is no run 'nope'", "runs: base/20260101-000000-aaaa"),
        (["--rank", "7"], "has no allocator events of rank 7", "this run has them of ranks 0 and 1"),
        (["--out", "profiler_logs"], "cannot write profiler_logs: it is a folder", "name a file"),
        (["--out", ""], "the name of the file to write is empty", "name a file"),
    ],
)
def test_what_cannot_be_done_is_a_line_and_a_hint(
    run_dir: Path, arguments: list[str], message: str, hint: str
) -> None:
    result = call("flame", *arguments)
    assert (result.exit_code, result.stdout) == (EXIT_CONFIG, "")
    told = result.stderr.splitlines()
    assert told[0].startswith("error: ") and message in told[0]
    assert told[1].startswith("hint: ") and hint in told[1]
    assert len(told) == 2


def test_a_run_of_level_stage_is_refused_with_the_way_out(run_dir: Path) -> None:
    folder = run_dir.parents[1] / "stage" / "20260102-000000-bbbb"
    make_ranks(make_run(folder, {0: {"spans": [span(1, "denoise", (0, 9))]}}), {}, status="ok")
    result = call("flame", folder)
    assert result.exit_code == EXIT_CONFIG
    assert result.stderr.splitlines() == [
        f"error: {folder} has no allocator events",
        "hint: logging.level event or stack records them",
    ]
    assert not (folder / "flame.html").exists()


def test_a_negative_rank_is_no_rank(run_dir: Path) -> None:
    assert call("flame", "--rank", "-1").exit_code == 2
