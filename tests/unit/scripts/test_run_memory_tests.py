"""scripts/run_memory_tests.sh: which command it becomes."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "run_memory_tests.sh"
LAUNCH = "-m ray_memprof.launch"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ((), f"{LAUNCH} configs/matrix_1gpu.yaml"),
        (("--set", "name=x y"), f"{LAUNCH} configs/matrix_1gpu.yaml --set name=x y"),
        (("configs/cpu2.yaml", "--dry-run"), f"{LAUNCH} configs/cpu2.yaml --dry-run"),
    ],
)
def test_arguments_pass_through(tmp_path: Path, arguments: tuple[str, ...], command: str) -> None:
    done = subprocess.run(
        [str(SCRIPT), *arguments],
        env={"PYTHON": "echo", "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, command, "")


def test_the_exit_code_is_that_of_the_launcher(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 11\n")
    python.chmod(0o755)
    env = {"PYTHON": str(python), "PATH": "/usr/bin:/bin"}
    assert subprocess.run([str(SCRIPT)], env=env, timeout=20).returncode == 11
