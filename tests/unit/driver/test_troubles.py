"""What is told while a run goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver import troubles as troubles_module
from ray_memprof.driver.run_state import RunState
from ray_memprof.driver.troubles import LEFT_BYTES, Troubles
from ray_memprof.recorder.status import Beat


def beat(rank: int, problem: str = "") -> Beat:
    return Beat(
        rank=rank, sequence=1, path="", stage="", step=0, num_steps=2, allocated_bytes=0, reserved_bytes=0,
        device_used_bytes=0, problem=problem,
    )  # fmt: skip


class Host:
    """A disk and a clock that the test moves."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = RunConfig(name="test", logging={"output_dir": tmp_path})
        self.state = RunState.begin(config)
        self.said: list[str] = []
        self.now, self.free, self.asked = 5000.0, 2 * LEFT_BYTES, 0
        self.troubles = Troubles(self.state, self.said.append, lambda: self.now)
        monkeypatch.setattr(troubles_module.shutil, "disk_usage", self.disk_usage)

    def disk_usage(self, folder: Path) -> Any:
        assert folder == self.state.folder.path
        self.asked += 1
        return SimpleNamespace(free=self.free)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_nothing_to_tell(host: Host) -> None:
    for _ in range(21):
        host.troubles.look([beat(0), beat(1)])
        host.now += 0.25
    assert (host.said, host.state.problems) == ([], [])
    assert host.asked == 6


def test_a_rank_that_can_write_no_more_is_told_once(host: Host) -> None:
    full = "rank 1: cannot write /x/spans: No space left on device"
    for problem in ("", full, full):
        host.troubles.look([beat(0), beat(1, problem)])
    line = f"{full}; what rank 1 measured after that is lost"
    assert (host.said, host.state.problems) == ([f"warning: {line}. The run goes on"], [line])


def test_the_disk_of_the_run_folder_is_full(host: Host) -> None:
    host.troubles.look([])
    host.free = LEFT_BYTES - 1
    host.now += 0.5
    host.troubles.look([])
    assert host.said == []
    for _ in range(3):
        host.now += 0.5
        host.troubles.look([])
    (line,) = host.state.problems
    assert line == f"the disk of {host.state.folder.path} is full"
    assert host.said == [f"warning: {line}: make room before the run ends, or its report is lost"]
