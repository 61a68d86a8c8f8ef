"""Resolves the dependencies and extras of pyproject.toml and writes constraints.txt.

    make constraints

Only resolves: nothing is installed but pip, in a temporary environment. Run it on x86-64 Linux with the
oldest Python that the project supports. Wheels that only a CUDA build of torch asks for are left out, and so
are the extras that need one, so that the same file serves a machine without a GPU; and extras that a development
environment goes without.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
# torch is chosen here, not resolved: measured figures belong to a version of it.
TORCH = "torch==2.13.0"
# The packages that install the rest, and those that build the wheel.
TOOLS = ("pip", "hatchling", "editables")
UNPINNED_EXTRAS = ("fa3", "fa4", "wandb", "mlflow")
"""The first two need CUDA; a development environment goes without the others: see pyproject.toml."""
CUDA_ONLY = re.compile(r"(nvidia-(?!ml-py$).*|cuda-.*|triton)$")
HEADER = """\
# Every version, direct and transitive, for Python 3.11 on x86-64 Linux: pip install -c constraints.txt ...
# Written by `make constraints` from pyproject.toml with its extras but fa3, fa4, wandb
# and mlflow; do not edit by hand.
# CUDA-only wheels are left out on purpose: a CUDA build of torch, installed first, brings its own.
"""


def resolve(requirements: list[str]) -> dict[str, str]:
    """The version that pip would install of each project, by normalised name."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
        report = Path(folder, "report.json")
        resolving = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([*pip, *resolving, TORCH, *TOOLS, *requirements], check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = (install["metadata"] for install in installs)
    return {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in found}


def wanted(project: dict[str, Any]) -> list[str]:
    """The requirements to resolve: those of the project and of its extras, but for UNPINNED_EXTRAS."""
    extras = [
        needs for extra, needs in project["optional-dependencies"].items() if extra not in UNPINNED_EXTRAS
    ]
    listed = [*project["dependencies"], *(one for extra in extras for one in extra)]
    # An extra may name others, as dev does run: they are listed themselves.
    return [one for one in listed if not one.startswith(f"{project['name']}[")]


def main() -> None:
    """Writes constraints.txt and says how many projects it pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = resolve(wanted(project))
    # A local version (2.13.0+cpu) names one build; the constraint admits them all.
    pins = [
        f"{name}=={version.split('+')[0]}"
        for name, version in sorted(versions.items())
        if not CUDA_ONLY.match(name)
    ]
    CONSTRAINTS.write_text(HEADER + "\n".join(pins) + "\n", encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(pins)} projects pinned with Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
