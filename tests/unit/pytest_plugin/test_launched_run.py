"""A launcher in a process of its own: one that ends well, one that fails, and one that does not end."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_memprof.pytest_plugin import launched_run
from ray_memprof.pytest_plugin.limit import Launch

WELL = """
import json, os, sys
values = dict(one.split("=", 1) for one in sys.argv[4::2])
folder = json.loads(values["logging.output_dir"]) + "/two"
os.makedirs(folder + "/run1")
os.symlink("run1", folder + "/latest")
"""
FAILS = "import sys; print('error: no such key'); print('noise'); print('hint: another'); sys.exit(3)"
STAYS = """
import os, signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path("pids").write_text(f"{os.getpid()} {child.pid} {os.getsid(0)}")
time.sleep(600)
"""


def run(root: Path, program: str, timeout_s: float = 30.0) -> Path:
    """What the plug-in gets of a launcher that is this program."""
    (root / "ray_memprof").mkdir()
    (root / "ray_memprof" / "__init__.py").touch()
    (root / "ray_memprof" / "launch.py").write_text(program)
    (root / "out [x]").mkdir()
    config: Any = SimpleNamespace(name="two")
    launch = Launch("two.yaml", ("ranks=2",), timeout_s, config)
    return launched_run.run_launch(launch, root / "out [x]", root)


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def own_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher is that of the folder."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")


def test_the_newest_run_of_the_configuration_is_returned(tmp_path: Path) -> None:
    assert run(tmp_path, WELL) == tmp_path / "out [x]" / "two" / "run1"


def test_a_launcher_that_fails_fails_the_test_with_its_error_and_hint(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        run(tmp_path, FAILS)
    log = tmp_path / "out [x]" / "launch.log"
    assert str(caught.value) == (
        f"two.yaml ended with exit 3\n  error: no such key\n  hint: another\n  log: {log}"
    )


def test_a_launcher_that_does_not_end_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launched_run, "_STOP_S", 0.2)
    with pytest.raises(pytest.fail.Exception, match=r"^two.yaml did not end within 3 s\n  log: "):
        run(tmp_path, STAYS, timeout_s=3)
    launcher, child, session = map(int, (tmp_path / "pids").read_text().split())
    # Ctrl-C at the terminal of the tests does not reach it.
    assert session == launcher != os.getsid(0)
    until_s = time.monotonic() + 10  # the kernel takes a moment to end a process that was killed
    while is_alive(child) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not is_alive(launcher) and not is_alive(child)
