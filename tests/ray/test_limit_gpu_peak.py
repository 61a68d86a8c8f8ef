"""limit_gpu_peak on a configuration: pytest, in a process of its own, launches it and holds its peak to the limit."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import yaml
from launcher import ROOT, config_of

HARD_LIMIT_S = 100.0
TESTS = """
import pytest
from ray_memprof.query import database as db

@pytest.mark.limit_gpu_peak("1 GiB", config="two.yaml")
@pytest.mark.limit_gpu_peak(0, config="two.yaml", rank=1)
def test_two_ranks(gpu_run):
    peaks = db.query(gpu_run, "peak_by_rank")["allocated_peak_bytes"].to_pylist()
    print(f"{gpu_run} {peaks[0]} {peaks[1]:,}")
"""


def run_pytest(folder: Path) -> tuple[int, str]:
    """Exit code and output; everything is killed where there is none within HARD_LIMIT_S."""
    # -rN: the summary says a failure again, cut to a terminal's width, but whole where CI is set.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rN",
        "-p",
        "ray_memprof.pytest_plugin",
        "--basetemp",
        "basetemp",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=HARD_LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def test_a_launched_run_is_held_to_its_limits(tmp_path: Path) -> None:
    """GIVEN two ranks that hold tensors, and limits of 1 GiB for any and of nothing for rank 1 THEN rank 1 is named."""
    config = config_of(tmp_path, args=["--steps", 3], name="two", ranks=2, ray={"num_gpus": 2})
    del config["logging"]["output_dir"]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "test_file.py").write_text(TESTS)

    code, output = run_pytest(tmp_path)

    printed = re.search(r"^(/.*/two/\S+) (\d+) (\S+)$", output, flags=re.MULTILINE)
    assert printed is not None, output
    run_dir, first, second = printed.groups()
    assert int(first) > 0
    assert (code, output.count("over the limit of")) == (1, 1), output
    told = re.search(
        r"^two, rank 1: (.*)\n  rank 1 has (.*)\n(?:  .*\n)*?  report: (.*)$", output, flags=re.MULTILINE
    )
    assert told is not None, output
    peak, place, report = told.groups()
    assert re.fullmatch(
        rf"allocated peaks at .* \({second} bytes\), .* over the limit of 0 B \(0 bytes\)", peak
    )
    assert place.partition(" in ")[2] in {
        f"stage denoise, script/denoise of step {step}" for step in range(3)
    }
    assert report == f"{run_dir}/report.html" and Path(report).is_file()
    assert run_dir.startswith(str(tmp_path / "basetemp"))
