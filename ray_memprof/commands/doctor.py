"""ray-memprof doctor: says what this machine has for a run, and what is missing.

$ ray-memprof doctor
"""

import sys
from typing import TYPE_CHECKING

from ray_memprof.commands.terminal import OutputDir, errors_as_lines
from ray_memprof.wording import visible

if TYPE_CHECKING:
    from ray_memprof.driver.doctor import Check


def doctor(output_dir: OutputDir = None) -> None:
    """Say on one screen what this machine has for a run: Python, torch, CUDA, NCCL, Ray, disk, and what is missing."""
    with errors_as_lines():
        from ray_memprof.driver.doctor import checks
        from ray_memprof.store.find_run import runs_folder

        found = checks(runs_folder(output_dir))
        width = max(len(one.name) for one in found)
        for one in found:
            sys.stdout.write(visible(f"{one.name:<{width}}  {one.text}\n") + _trouble(one, width))


def _trouble(one: "Check", width: int) -> str:
    return visible(f"{'':<{width}}  -> {one.trouble}\n") if one.trouble else ""
