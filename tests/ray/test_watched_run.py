"""A launched run, watched from another process: where it is while it runs, its last lines at the end."""

import os
import subprocess
import sys
from pathlib import Path

from launcher import ROOT, config_of, start

from ray_memprof.store.live_file import read_live


def test_a_run_is_watched_from_elsewhere(tmp_path: Path) -> None:
    """GIVEN a run of two ranks WHEN another process watches it THEN it sees ranks at work, and the launcher's end."""
    run = start(tmp_path, config_of(tmp_path, ranks=2, args=["--steps", 60]))
    run.wait_for(lambda: (run.output_dir / run.name / "latest").exists())
    command = [sys.executable, "-m", "ray_memprof.cli", "watch", "--output-dir", str(run.output_dir)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        run.wait_for(lambda: len((read_live(run.run_dir) or {"beats": ()})["beats"]) == 2)
        code = run.wait()
        shown, errors = watching.communicate(timeout=60)
    assert (code, watching.returncode, errors) == (0, 0, ""), run.text
    lines = shown.splitlines()
    assert lines[0] == f"test/{run.run_dir.name}: running, before its first step"
    last = [line for _, line in run.lines][-len(lines) :]
    ended = last.index("test: ok, exit 0")
    assert lines[-len(last[ended:]) :] == last[ended:]
    assert any("process memory" in line and "the most of 2" in line for line in lines)
    assert sorted(os.listdir(run.run_dir)) == [
        *(
            "config.yaml",
            "logs",
            "memory_events.json",
            "report.html",
            "run.duckdb",
            "run.json",
            "summary.json",
        ),
        "tables",
    ]
