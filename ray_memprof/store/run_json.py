"""Reads run.json, in which the driver notes all facts of a run.

run_facts(run_dir)          # its facts; None: the folder has no run.json
"""

import json
from pathlib import Path
from typing import Any

from ray_memprof.errors import ConfigError
from ray_memprof.store.run_files import RUN_FILE

Facts = dict[str, Any]


def run_facts(run_dir: Path) -> Facts | None:
    """The facts of a run; None: there are none.

    Raises:
        ConfigError: run.json cannot be read.
    """
    try:
        return read_facts(run_dir)
    except (OSError, ValueError) as error:
        path = run_dir / RUN_FILE
        raise ConfigError(f"{path} cannot be read: {error}", hint="if it is a copy, copy it again") from error


def read_facts(run_dir: Path) -> Facts | None:
    """Like run_facts(), for code to which the folder is not named by a user.

    Raises:
        OSError: run.json cannot be read.
        ValueError: it is no JSON.
    """
    try:
        found = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found if isinstance(found, dict) else None
