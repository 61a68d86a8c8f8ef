"""The folder of a run, from its first moment."""

import json
import os
import socket
from pathlib import Path

import pytest

from ray_memprof.errors import ConfigError, DiskFull, PreflightFailed
from ray_memprof.store.processes import started
from ray_memprof.store.run_folder import RunFolder, is_run, make_node_folder, node_folder


def new(output_dir: Path) -> RunFolder:
    return RunFolder.create(output_dir, "test", config_text="name: test\n", num_ranks=1)


def test_new_folder(tmp_path: Path) -> None:
    folder = new(tmp_path)

    assert folder.path == tmp_path / "test" / folder.run_id
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "logs", "run.json"]
    facts = json.loads((folder.path / "run.json").read_text())
    start_ns, driver = facts.pop("start_ns"), facts.pop("driver")
    assert start_ns > 0
    assert (driver["host"], driver["pid"]) == (socket.gethostname(), os.getpid())
    assert driver["started"] == started(os.getpid())
    assert facts == {"run_id": folder.run_id, "name": "test", "num_ranks": 1, "status": "running"}
    assert (folder.path / "config.yaml").read_text() == "name: test\n"


def test_latest_follows_the_newest_run(tmp_path: Path) -> None:
    for _ in range(2):
        folder = new(tmp_path)
        assert os.readlink(tmp_path / "test" / "latest") == folder.run_id
    assert len(list((tmp_path / "test").iterdir())) == 3  # two runs and the link: nothing temporary stays


def test_latest_that_is_a_folder_is_left_alone_and_told_of_before_anything_is_made(tmp_path: Path) -> None:
    latest = tmp_path / "test" / "latest"
    latest.mkdir(parents=True)
    with pytest.raises(PreflightFailed, match="latest is no link"):
        new(tmp_path)
    assert list((tmp_path / "test").iterdir()) == [latest]


def test_text_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    path = new(tmp_path).write_text("caf\u00e9 \udcff", "logs", "driver.log")
    assert path.read_bytes() == "caf\u00e9 \\udcff".encode()


def test_notes_add_up(tmp_path: Path) -> None:
    folder = new(tmp_path)
    folder.note(status="ok", exit_code=0)
    folder.note(problems=["one"])

    facts = json.loads((folder.path / "run.json").read_text())
    assert (facts["run_id"], facts["status"], facts["exit_code"], facts["problems"]) == (
        folder.run_id,
        "ok",
        0,
        ["one"],
    )


def test_only_the_same_run_is_the_same_run(tmp_path: Path) -> None:
    folder = new(tmp_path)

    assert is_run(folder.path, folder.run_id)
    assert not is_run(folder.path, "20200101-000000-0000")
    assert not is_run(tmp_path / "nowhere", folder.run_id)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "test").write_text("a file")
    with pytest.raises(PreflightFailed, match="cannot be written: Not a directory") as raised:
        new(tmp_path)
    assert raised.value.hint == "set logging.output_dir to a folder of yours with space left"


def test_note_that_cannot_be_written(tmp_path: Path) -> None:
    folder = new(tmp_path)
    (folder.path / "run.json.tmp").mkdir()
    with pytest.raises(DiskFull, match=r"the driver: cannot write .*run\.json: Is a directory"):
        folder.note(status="ok")


def test_a_text_that_cannot_be_written_leaves_nothing_half_done(tmp_path: Path) -> None:
    folder = new(tmp_path)
    with pytest.raises(DiskFull, match=r"the driver: cannot write .*logs: Is a directory"):
        folder.write_text("text", "logs")
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "logs", "run.json"]


def test_folder_on_a_node(tmp_path: Path) -> None:
    assert node_folder(tmp_path, "run") == tmp_path / "run"
    assert node_folder(None, "run").parts[-2:] == (f"ray_memprof-{os.geteuid()}", "run")


def test_what_others_could_foresee_on_a_node_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for scratch_dir in (None, tmp_path / "a" / "b"):
        folder = make_node_folder(scratch_dir, "run")
        assert folder == node_folder(scratch_dir, "run") == make_node_folder(scratch_dir, "run")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / f"ray_memprof-{os.geteuid()}").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "cannot be read: "), (None, "is missing or empty"), ("[]", "is missing or empty")],
)
def test_a_folder_whose_run_json_is_damaged_is_refused_in_one_line(
    tmp_path: Path, text: str | None, reason: str
) -> None:
    folder = new(tmp_path)
    (folder.path / "run.json").unlink()
    if text is not None:
        (folder.path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"run\.json {reason}"):
        RunFolder.open(folder.path)
