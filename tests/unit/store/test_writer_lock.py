"""The lock of a manifest: held as long as the process that writes, whoever reads waits for its end."""

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_memprof.store import gather as gathering
from ray_memprof.store import writer_lock
from ray_memprof.store.gather import gather
from ray_memprof.store.rank_store import RankStore
from ray_memprof.store.run_files import manifest_path
from ray_memprof.store.writer_lock import has_ended, hold

HOLD = """
import sys
from pathlib import Path
from ray_memprof.store.writer_lock import hold
held = hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> "subprocess.Popen[str]":
    """A process that holds the lock until its standard input is closed."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_manifest_that_nobody_holds_and_one_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    assert has_ended(path, 0.0)
    path.write_bytes(b"line\n")
    assert has_ended(path, 0.0)
    with hold(path):
        assert not has_ended(path, 0.0)
    assert has_ended(path, 0.0)
    assert path.read_bytes() == b"line\n"


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    process = holder(tmp_path / "manifest")
    assert not has_ended(tmp_path / "manifest", 0.1)
    process.kill()
    process.wait()
    assert has_ended(tmp_path / "manifest", 0.0)


def test_the_end_of_the_run_waits_for_a_process_that_still_writes(tmp_path: Path) -> None:
    store = RankStore(tmp_path, 0)
    store.append("ledger", {"t_ns": [1], "span_id": [1], "account": ["nccl"], "bytes": [7]})
    store.close()
    process = holder(manifest_path(tmp_path, 0))
    assert process.stdin is not None
    found: list[object] = []

    def read() -> None:
        gathered = gather(tmp_path, [0])
        found.extend((gathered.problems, gathered.ranks[0].rows))

    reader = threading.Thread(target=read)
    reader.start()
    reader.join(0.5)
    assert found == []
    with process:
        process.stdin.close()
    reader.join(20)
    assert found == [(), {"ledger": 1}]


def test_what_a_process_still_writes_is_left_alone_and_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN rows in a sealed part, and others in the stream that the process writes."""
    row = {"t_ns": [1], "span_id": [1], "account": ["nccl"], "bytes": [7]}
    store = RankStore(tmp_path, 0)
    store.append("ledger", row)
    store.seal()
    store.append("ledger", row)
    monkeypatch.setattr(gathering, "has_ended", lambda path: has_ended(path, 0.1))
    with hold(manifest_path(tmp_path, 0)):
        gathered = gather(tmp_path, [0])
        assert gathered.problems == (
            "rank 0: the process that writes its records still works: only what it has sealed is there",
        )
        assert gathered.ranks[0].rows == {"ledger": 1}
        store.append("ledger", row)
        store.close()
    gathered = gather(tmp_path, [0])
    assert (gathered.problems, gathered.ranks[0].rows) == ((), {"ledger": 3})


def test_a_file_system_without_locks_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(writer_lock.fcntl, "flock", no_locks)
    assert fcntl.flock is no_locks
    with hold(tmp_path / "manifest"):
        assert has_ended(tmp_path / "manifest", 0.0)
