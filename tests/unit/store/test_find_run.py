"""The name that a user gives for a run, and the folder that is found for it."""

from pathlib import Path

import pytest

from ray_memprof.errors import ConfigError
from ray_memprof.store.find_run import find_run, list_runs, run_at, runs_folder
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


@pytest.mark.parametrize(
    "file", ["run.json", "logs/rank0.log", "tables/spans/rank=0/part-00000.parquet", "tables", "logs"]
)
def test_any_file_of_a_run_means_the_run(logs: Path, tmp_path: Path, file: str) -> None:
    run = logs / "wide" / "20260102-000000-cccc"
    for name in ("run.json", "logs/rank0.log", "tables/spans/rank=0/part-00000.parquet"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    assert find_run(str(run / file), tmp_path / "none") == run
    assert find_run(str(logs / "wide" / "latest" / file), tmp_path / "none") == run
    assert run_at(run / file) == run


def test_a_folder_called_tables_makes_no_run_of_what_is_around_it(tmp_path: Path) -> None:
    (tmp_path / "house" / "tables").mkdir(parents=True)
    (tmp_path / "house" / "door.txt").touch()
    with pytest.raises(ConfigError, match="there is no run"):
        find_run(str(tmp_path / "house" / "door.txt"), tmp_path / "none")
    assert run_at(tmp_path / "house" / "nothing") is None


def test_nothing_is_no_run_even_inside_one(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (logs / "wide" / "20260102-000000-cccc" / "run.json").touch()
    monkeypatch.chdir(logs / "wide" / "20260102-000000-cccc" / "tables")
    with pytest.raises(ConfigError, match="there is no run ''"):
        find_run("", logs)


def test_the_folder_of_runs_is_the_one_named_else_that_of_the_environment(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runs_folder(None, {}) == Path("profiler_logs")
    assert runs_folder(None, {"RAY_MEMPROF_DIR": ""}) == Path("profiler_logs")
    assert runs_folder(None, {"RAY_MEMPROF_DIR": "there"}) == Path("there")
    assert runs_folder(Path("here"), {"RAY_MEMPROF_DIR": "there"}) == Path("here")
    monkeypatch.setenv("RAY_MEMPROF_DIR", str(logs))
    assert find_run("wide").name == "20260102-000000-cccc"
    with pytest.raises(ConfigError):
        find_run("wide", tmp_path / "none")


def test_a_run_that_has_only_begun_is_found_where_that_is_meant(logs: Path) -> None:
    run = logs / "base" / "20260104-000000-dddd"
    run.mkdir()
    (run / "run.json").touch()
    assert (find_run("latest", logs, begun=True), find_run("base", logs).name) == (
        run,
        "20260103-000000-bbbb",
    )
    assert [one.name[:8] for one in list_runs(logs)] == ["20260101", "20260102", "20260103"]
    assert list_runs(logs, begun=True) == [*list_runs(logs), run]
