"""Which commit code is of: whatever git, a repository or its lack does, the run goes on."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver import repository as repositories
from ray_memprof.driver.repository import commit_text, repository
from ray_memprof.driver.run_state import RunState
from ray_memprof.supervision.verdict import Verdict


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *who, "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with a script in a folder of it, and one that git ignores."""
    git(tmp_path, "init", "-q")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text("1\n")
    (tmp_path / ".gitignore").write_text("venv\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    return tmp_path


def test_no_repository_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "train.py").write_text("1\n")
    assert repository(tmp_path / "train.py") is None
    assert repository(tmp_path / "no" / "such" / "train.py") is None
    assert commit_text(None) == ""


def test_a_repository_without_a_commit_is_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "train.py").write_text("1\n")
    assert repository(tmp_path / "train.py") is None


def test_a_script_is_of_its_commit_until_something_that_git_follows_changes(folder: Path) -> None:
    script, commit = folder / "src" / "train.py", git(folder, "rev-parse", "HEAD")
    clean = {"commit": commit, "is_dirty": False, "folder": str(folder)}
    # What a program writes beside itself changes nothing of it.
    (folder / "src" / "out.bin").write_bytes(b"1")
    assert repository(script) == repository(folder / "src") == clean
    assert commit_text(clean) == commit
    (folder / ".gitignore").write_text("venv\nmore\n")
    assert repository(script) == {**clean, "is_dirty": True}
    assert commit_text({**clean, "is_dirty": True}) == f"{commit}-dirty"


def test_a_script_that_git_does_not_follow_is_a_change(folder: Path) -> None:
    (folder / "new.py").write_text("1\n")
    assert repository(folder / "new.py") == {
        "commit": git(folder, "rev-parse", "HEAD"),
        "is_dirty": True,
        "folder": str(folder),
    }


@pytest.mark.parametrize("name", ["venv", "packages"])
def test_what_is_installed_in_a_folder_of_a_repository_is_not_of_it(folder: Path, name: str) -> None:
    package = folder / name / "ray_memprof"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert repository(package) is None


def test_a_folder_with_a_strange_name(folder: Path) -> None:
    strange = folder / "a b'\"?é=1"
    strange.mkdir()
    (strange / "x.py").write_text("1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "b")
    found = repository(strange / "x.py")
    assert found is not None and found["is_dirty"] is False


def test_variables_of_git_point_nowhere_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "elsewhere"))
    found = repository(folder / "src" / "train.py")
    assert found is not None and found["folder"] == str(folder)


def fake_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_without_git_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder / "nothing"))
    assert repository(folder / "src" / "train.py") is None


def test_a_repository_of_somebody_else_is_refused_by_git(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_git(tmp_path, monkeypatch, "echo 'fatal: detected dubious ownership in repository' >&2; exit 128")
    assert repository(folder / "src" / "train.py") is None


def test_a_git_that_does_not_answer_is_not_waited_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repositories, "_TIMEOUT_S", 0.2)
    fake_git(tmp_path, monkeypatch, "exec sleep 1000")  # longer than a test may take
    assert repository(folder / "src" / "train.py") is None


def test_where_the_state_takes_too_long_only_that_is_not_known(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(folder, "rev-parse", "HEAD")
    fake_git(
        tmp_path,
        monkeypatch,
        f'case "$*" in *status*) exit 1;; esac\nPATH="{os.environ["PATH"]}" exec git "$@"',
    )
    found = repository(folder / "src" / "train.py")
    assert found == {"commit": commit, "is_dirty": None, "folder": str(folder)}
    assert commit_text(found) == commit


def test_run_json_has_the_commits_of_the_program_and_of_ray_memprof(folder: Path, tmp_path: Path) -> None:
    """GIVEN a script in a repository of its own WHEN the run ends THEN both are told, as they were at first."""
    logs = {"output_dir": tmp_path / "logs"}
    script = folder / "src" / "train.py"
    config = RunConfig(name="test", workload="script", script={"path": script}, logging=logs)
    state = RunState.begin(config)
    state.note()
    script.write_text("2\n")
    state.settle(Verdict(status="ok"))
    state.note()
    commit = git(folder, "rev-parse", "HEAD")
    assert state.folder.facts["program_git"] == {"commit": commit, "is_dirty": False, "folder": str(folder)}
    assert state.folder.facts["git_commit"] == state.run_row()["git_commit"] == commit
    own = repository(Path(repositories.__file__).parent)
    assert state.folder.facts["ray_memprof_git"] == own
    wan = RunState(RunConfig(name="test", logging=logs), state.folder)
    assert wan.repositories == {"program_git": own, "ray_memprof_git": own}
