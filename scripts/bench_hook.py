#!/usr/bin/env python3
"""What `import torch` takes longer where this project is installed and RAY_MEMPROF is unset: its entry point.

    python scripts/bench_hook.py --processes 40

Loads and calls the entry point as torch does at the end of its import, in new processes, and prints the least, the
median and the highest decile of the CPU time that it took. torch itself is not imported: its seconds would hide it.
"""

import argparse
import os
import statistics
import subprocess
import sys

PROGRAM = """
import time
from importlib.metadata import entry_points
import numpy  # as torch does: folders of packages have been listed by then
(found,) = (one for one in entry_points(group="torch.backends") if one.dist.name == "ray-memprof")
began = time.thread_time_ns()
found.load()()
print(time.thread_time_ns() - began)
"""


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=40)
    num = parser.parse_args().processes
    environ = {name: value for name, value in os.environ.items() if name != "RAY_MEMPROF"}
    command = [sys.executable, "-c", PROGRAM]
    took = sorted(int(subprocess.check_output(command, env=environ, text=True)) / 1e6 for _ in range(num))
    print(
        f"{num} processes: least {took[0]:.2f} ms, median {statistics.median(took):.2f} ms, "
        f"highest decile {took[num * 9 // 10]:.2f} ms"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
