"""Runs that are removed: whole, never one that goes on, and no folder that is not a run's."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_memprof.errors import ConfigError
from ray_memprof.store.processes import process_facts
from ray_memprof.store.remove_run import remove_run, removed_lines, surplus


def made(folder: Path, **facts: Any) -> Path:
    (folder / "tables" / "spans").mkdir(parents=True)
    (folder / "tables" / "spans" / "part").write_bytes(b"x" * 100)
    text = json.dumps({"run_id": folder.name, "status": "ok", **facts})
    (folder / "run.json").write_text(text.ljust(200))
    latest = folder.parent / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name)
    return folder


def going_on(folder: Path) -> Path:
    return made(
        folder, status="running", driver=process_facts(), start_ns=0, progress={"step": 2, "t_ns": 2**63}
    )


def test_nothing_to_remove(tmp_path: Path) -> None:
    assert surplus(tmp_path / "none", keep=0) == []
    assert list(removed_lines([], dry_run=False)) == ["nothing to remove"]


def test_a_run_goes_and_latest_follows(tmp_path: Path) -> None:
    old, new = made(tmp_path / "a" / "r1"), made(tmp_path / "a" / "r2")
    assert remove_run(new) == 300
    assert (tmp_path / "a" / "latest").resolve() == old
    remove_run(old)
    assert list(tmp_path.iterdir()) == []


def test_latest_stays_where_an_older_run_goes(tmp_path: Path) -> None:
    old, new = made(tmp_path / "a" / "r1"), made(tmp_path / "a" / "r2")
    remove_run(old)
    assert (tmp_path / "a" / "latest").resolve() == new


def test_a_run_that_goes_on_stays(tmp_path: Path) -> None:
    run = going_on(tmp_path / "a" / "r1")
    with pytest.raises(ConfigError, match=r"a/r1 is not removed: running, step 3"):
        remove_run(run)
    assert (run / "tables" / "spans" / "part").exists()
    assert surplus(tmp_path, keep=0) == []


def test_a_folder_that_only_has_tables_stays(tmp_path: Path) -> None:
    (tmp_path / "furniture" / "tables").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"is not removed: it has no run\.json"):
        remove_run(tmp_path / "furniture")
    assert (tmp_path / "furniture" / "tables").is_dir()


def test_the_oldest_go_and_so_many_stay(tmp_path: Path) -> None:
    runs = [made(tmp_path / name) for name in ("b/20260101", "a/20260102", "b/20260103", "a/20260104")]
    assert surplus(tmp_path, keep=2) == runs[:2]
    assert surplus(tmp_path, keep=4) == surplus(tmp_path, keep=9) == []
    assert surplus(tmp_path, keep=0) == runs


def test_a_run_that_never_recorded_counts_and_goes_too(tmp_path: Path) -> None:
    empty = made(tmp_path / "a" / "20260101")
    (empty / "tables" / "spans" / "part").unlink()
    for folder in ("tables/spans", "tables"):
        (empty / folder).rmdir()
    new = made(tmp_path / "a" / "20260102")
    assert surplus(tmp_path, keep=1) == [empty]
    remove_run(new)
    assert (tmp_path / "a" / "latest").resolve() == empty


def test_a_dry_run_removes_nothing_and_says_the_same(tmp_path: Path) -> None:
    run = made(tmp_path / "a" / "r1")
    lines = list(removed_lines([run], dry_run=True))
    assert lines == ["would remove a/r1 (300 B)", "would remove 1 run, 300 B"]
    assert run.is_dir()
    assert list(removed_lines([run], dry_run=False)) == [
        line.replace("would remove", "removed") for line in lines
    ]
    assert not run.exists()


def test_what_cannot_be_removed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "tables"))

    run = made(tmp_path / "a" / "r1")
    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(ConfigError, match=rf"cannot remove {run}/tables: Permission denied"):
        remove_run(run)
