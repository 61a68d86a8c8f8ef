"""The name that a user gives for a run, and the folder that is found for it."""

from pathlib import Path

import pytest

from ray_memprof.errors import ConfigError
from ray_memprof.store.find_run import find_run, list_runs
from ray_memprof.store.run_files import TABLES_DIR


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for run in ("base/20260101-000000-aaaa", "base/20260103-000000-bbbb", "wide/20260102-000000-cccc"):
        (tmp_path / "logs" / run / "tables").mkdir(parents=True)
    (tmp_path / "logs" / "base" / "latest").symlink_to("20260103-000000-bbbb")
    (tmp_path / "logs" / "wide" / "latest").symlink_to("20260102-000000-cccc")
    return tmp_path / "logs"


def test_there_are_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "none") == []
    with pytest.raises(ConfigError, match="there is no run 'latest'") as caught:
        find_run("latest", tmp_path / "none")
    assert caught.value.hint == f"there are no runs in {tmp_path / 'none'}; give the path of a run folder"


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("latest", "base/20260103-000000-bbbb"),
        ("base", "base/20260103-000000-bbbb"),
        ("wide", "wide/20260102-000000-cccc"),
        ("base/latest", "base/20260103-000000-bbbb"),
        ("base/20260101-000000-aaaa", "base/20260101-000000-aaaa"),
        ("20260102-000000-cccc", "wide/20260102-000000-cccc"),
    ],
)
def test_names(logs: Path, text: str, run: str) -> None:
    assert find_run(text, logs) == (logs / run).resolve()


def test_a_folder_is_found_wherever_it_is(logs: Path, tmp_path: Path) -> None:
    assert (
        find_run(str(logs / "wide"), tmp_path / "none") == (logs / "wide" / "20260102-000000-cccc").resolve()
    )
    assert (
        find_run(str(logs / "base" / "20260101-000000-aaaa"), tmp_path / "none").name
        == "20260101-000000-aaaa"
    )


def test_runs_that_were_copied_without_their_link(tmp_path: Path) -> None:
    for name in ("20260101-000000-aaaa", "20260102-000000-bbbb"):
        (tmp_path / "copied" / name / TABLES_DIR).mkdir(parents=True)
    assert find_run("copied", tmp_path).name == "20260102-000000-bbbb"


@pytest.mark.parametrize("text", ["bsae", "", "*", "../x", "nope/nope", "a\0b"])
def test_a_run_that_is_not_there(logs: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="there is no run") as caught:
        find_run(text, logs)
    listed = "runs: base/20260103-000000-bbbb, wide/20260102-000000-cccc, base/20260101-000000-aaaa"
    assert caught.value.hint.endswith(listed)
    assert caught.value.hint.startswith("did you mean base?") == (text == "bsae")
