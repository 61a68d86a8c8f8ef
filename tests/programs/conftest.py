"""Starts programs as users do; all tests here are marked `programs`."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from programs import LIMIT_S, ROOT, Done, Start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here start programs."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.programs)
            item.add_marker(pytest.mark.timeout(LIMIT_S + 20))


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Write the files of a program, and run a command line in their folder."""

    def run(*command: object, files: dict[str, str], environ: dict[str, str] | None = None) -> Done:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "RAY_MEMPROF", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_"))
        }
        done = subprocess.run(
            list(map(str, command)),
            cwd=tmp_path,
            env=inherited | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | (environ or {}),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            # Tests that run in the background of a shell ignore SIGINT, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return Done(done.returncode, done.stdout, done.stderr, tmp_path)

    return run
