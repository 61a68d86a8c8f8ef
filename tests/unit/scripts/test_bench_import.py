"""scripts/bench_import.py: both ways of reading a snapshot agree to the byte."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench_import.py"


def test_the_import_and_a_plain_replay_find_the_same_peaks() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--events", "3000"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    peaks = [line.split("peaks ")[1] for line in done.stdout.splitlines() if "peaks" in line]
    assert len(peaks) == 2 and peaks[0] == peaks[1] and peaks[0] != "[0, 0]"
