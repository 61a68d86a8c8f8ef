"""A launched run, watched from another process: where it is while it runs, its last lines at the end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import ROOT, joining, start, two_nodes
from ray.cluster_utils import Cluster

from ray_memprof.driver.far_runs import far_run
from ray_memprof.errors import ConfigError
from ray_memprof.store.live_file import read_live


def test_a_run_is_watched_from_elsewhere(tmp_path: Path, shared: Cluster) -> None:
    """GIVEN a run of two ranks WHEN another process watches it THEN it sees ranks at work, and the launcher's end."""
    run = start(tmp_path, joining(tmp_path, shared, ranks=2, args=["--steps", 60]))
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


@pytest.mark.timeout(120)
def test_a_run_is_watched_from_a_node_that_does_not_see_its_folder(tmp_path: Path) -> None:
    """GIVEN a run that has joined a Ray WHEN elsewhere only RAY_ADDRESS is known THEN it is seen to its end."""
    nowhere = tmp_path / "nowhere"
    command = [sys.executable, "-m", "ray_memprof.cli", "watch", "--output-dir", str(nowhere)]
    with two_nodes() as cluster:
        config = joining(tmp_path, cluster, args=["--steps", 80], ray={"gpus_per_rank": 0})
        run = start(tmp_path, config)
        run.wait_for(lambda: (run.output_dir / run.name / "latest").exists())
        run.wait_for(lambda: len((read_live(run.run_dir) or {"beats": ()})["beats"]) == 2)
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as watching:
            try:
                code = run.wait(60)
                shown, errors = watching.communicate(timeout=45)
            finally:
                watching.kill()
        # The run is over: nobody announces it any longer.
        with (
            pytest.raises(ConfigError, match=f"no run test goes on in the Ray at {cluster.address}"),
            far_run("test", cluster.address),
        ):
            pass
    assert (code, watching.returncode, errors) == (0, 0, ""), f"{run.text}\n{errors}"
    lines = shown.splitlines()
    assert any("process memory" in line and "the most of 2" in line for line in lines), shown
    assert "test: ok, exit 0" in lines
    assert lines[-1].startswith("on ")
    assert lines[-1].endswith(", which is not this host")
    assert not nowhere.exists()
