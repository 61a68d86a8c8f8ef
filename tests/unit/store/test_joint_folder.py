"""How the ranks of one start come to one run folder."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from ray_memprof.errors import NeverArrived
from ray_memprof.store import joint_folder
from ray_memprof.store.joint_folder import announce_failure, await_joint, make_joint, withdraw
from ray_memprof.store.run_folder import RunFolder


def make(output_dir: Path, key: str = "k") -> RunFolder:
    return make_joint(output_dir, "nano", key, config_text="name: nano\n", num_ranks=2)


def announced(output_dir: Path, **changes: Any) -> None:
    """Change what the announcement says."""
    path = output_dir / "nano" / ".start-k.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def wait(output_dir: Path, key: str = "k", wait_s: float = 0.0) -> RunFolder:
    return await_joint(output_dir, "nano", key, wait_s=wait_s)


def test_other_ranks_find_the_folder_that_rank_0_made(tmp_path: Path) -> None:
    folder = make(tmp_path)
    found = wait(tmp_path)
    assert (found.path, found.run_id, found.facts["num_ranks"]) == (folder.path, folder.run_id, 2)


def test_they_wait_until_it_is_there(tmp_path: Path) -> None:
    made: list[RunFolder] = []
    found = await_joint(tmp_path, "nano", "k", wait_s=9, sleep=lambda seconds: made.append(make(tmp_path)))
    assert [found.path] == [one.path for one in made]


def test_after_the_limit_they_give_up_and_say_where_they_looked(tmp_path: Path) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with pytest.raises(NeverArrived, match=f"made no run folder in {tmp_path}/nano within 5 s"):
        await_joint(tmp_path, "nano", "k", wait_s=5, sleep=sleep, clock=lambda: now[0])
    assert 5 <= now[0] < 5.2


def test_another_start_of_the_same_name_is_not_joined(tmp_path: Path) -> None:
    make(tmp_path, "k")
    with pytest.raises(NeverArrived):
        wait(tmp_path, "other")


def test_what_a_killed_rank_0_left_behind_is_not_joined(tmp_path: Path) -> None:
    make(tmp_path)
    announced(tmp_path, started=1)
    with pytest.raises(NeverArrived):
        wait(tmp_path)


@pytest.mark.parametrize(("age_s", "is_joined"), [(0, True), (100, True), (140, False), (-140, False)])
def test_of_another_host_only_a_fresh_one_counts(tmp_path: Path, age_s: int, is_joined: bool) -> None:
    folder = make(tmp_path)
    announced(tmp_path, host=f"not-{socket.gethostname()}", started=1, t_s=time.time() - age_s)
    if is_joined:
        assert wait(tmp_path).path == folder.path
    else:
        with pytest.raises(NeverArrived):
            wait(tmp_path)


def test_a_folder_on_another_disk_under_the_same_path_is_not_joined(tmp_path: Path) -> None:
    make(tmp_path)
    announced(tmp_path, run_id="20260102-030405-abcd")
    with pytest.raises(NeverArrived):
        wait(tmp_path)


def test_nobody_waits_for_a_rank_0_that_is_not_recorded(tmp_path: Path) -> None:
    announce_failure(tmp_path, "nano", "k", "the disk is full")
    with pytest.raises(NeverArrived, match="rank 0 is not recorded: the disk is full"):
        await_joint(tmp_path, "nano", "k", wait_s=60, sleep=lambda seconds: pytest.fail("it waits"))
    folder = make(tmp_path)
    assert wait(tmp_path).path == folder.path


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_file_that_cannot_be_read_is_waited_for(tmp_path: Path, text: str) -> None:
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / ".start-k.json").write_text(text)
    with pytest.raises(NeverArrived):
        wait(tmp_path)


def test_it_goes_when_rank_0_ends_and_one_rank_announces_nothing(tmp_path: Path) -> None:
    make(tmp_path)
    withdraw(tmp_path, "nano", "k")
    make(tmp_path, "")
    withdraw(tmp_path, "nano", "")
    withdraw(tmp_path, "nano", "k")
    assert [name for name in os.listdir(tmp_path / "nano") if name.startswith(".start")] == []


def test_all_ranks_wait_long_enough_for_torch_to_be_imported() -> None:
    assert joint_folder.WAIT_S >= 60


@pytest.mark.parametrize(
    ("mounts", "seconds"),
    [
        ("overlay / overlay rw 0 0\n", 10.0),
        ("overlay / overlay rw 0 0\nhost:/a /data nfs4 rw 0 0\n", 45.0),
        ("host:/a /data nfs4 rw 0 0\n/dev/sda1 /data/my\\040runs ext4 rw 0 0\n", 10.0),
        ("host:/a /data nfs4 rw 0 0\n/dev/sda1 /data ext4 rw 0 0\n", 10.0),  # the last one is seen
        ("host:/a /dat nfs4 rw 0 0\noverlay / overlay rw 0 0\n", 10.0),
        ("", 45.0),
    ],
)
def test_a_host_waits_longer_for_rank_0_on_a_disk_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, seconds: float
) -> None:
    (tmp_path / "mounts").write_text(mounts)
    monkeypatch.setattr(joint_folder, "_MOUNTS", tmp_path / "mounts")
    assert joint_folder.patience_s(Path("/data/my runs/nano")) == seconds
