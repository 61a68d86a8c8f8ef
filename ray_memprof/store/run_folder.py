"""The folder of a run: made before anything can fail, so that every run leaves config.yaml and run.json.

folder = RunFolder.create(output_dir, "baseline", config_text=text, num_ranks=1)      # with the link `latest`
folder.note(status="ok", exit_code=0)       # run.json, replaced as a whole

Leaves a folder whose status is "running" until another one is noted, also when the launcher is killed.
"""

import json
import os
import secrets
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_memprof.errors import ConfigError, PreflightFailed
from ray_memprof.store.private_folder import private_folder, user_folder
from ray_memprof.store.processes import process_facts
from ray_memprof.store.run_files import CONFIG_FILE, LATEST_LINK, LOGS_DIR, RUN_FILE
from ray_memprof.store.run_json import read_facts, run_facts
from ray_memprof.store.standing import RUNNING
from ray_memprof.store.whole_file import disk_error, write_whole_text


@dataclass(slots=True)
class RunFolder:
    """A run on disk; `facts` is what run.json holds."""

    path: Path
    run_id: str
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, output_dir: Path, name: str, *, config_text: str, num_ranks: int) -> "RunFolder":
        """Make <output_dir>/<name>/<run_id>/ with config.yaml, run.json (status running) and the link `latest`.

        Args:
            output_dir: logging.output_dir.
            name: of the run.
            config_text: for config.yaml.
            num_ranks: how many ranks the run is to have.

        Raises:
            PreflightFailed: it cannot be made.
        """
        run_id = new_run_id()
        folder = cls((output_dir / name / run_id).absolute(), run_id)
        link = folder.path.parent / LATEST_LINK
        if link.exists() and not link.is_symlink():
            raise PreflightFailed(
                f"logging.output_dir: {link} is no link, so it cannot be pointed at the newest run",
                hint="a copy of a run, made with the links followed? Move it away",
            )
        try:
            (folder.path / LOGS_DIR).mkdir(parents=True)
            folder.write_text(config_text, CONFIG_FILE)
            point(link, run_id)
            folder.note(
                run_id=run_id,
                name=name,
                num_ranks=num_ranks,
                status=RUNNING,
                start_ns=time.time_ns(),
                driver=process_facts(),
            )
        except OSError as error:
            raise PreflightFailed(
                f"logging.output_dir: {folder.path} cannot be written: {error.strerror or error}",
                hint="set logging.output_dir to a folder of yours with space left",
            ) from error
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of an existing run. Raises ConfigError."""
        facts = run_facts(path)
        if facts is None:
            raise ConfigError(f"{path / RUN_FILE} is missing or empty", hint="if it is a copy, copy it again")
        return cls(path, facts["run_id"], facts)

    def note(self, **facts: Any) -> None:
        """Add to run.json; a reader sees the old file or the new one. Raises DiskFull."""
        self.facts |= facts
        self.write_text(json.dumps(self.facts, indent=2) + "\n", RUN_FILE)

    def write_text(self, text: str, *parts: str) -> Path:
        """Leave a text file, all of it or none; returns its path. Raises DiskFull."""
        path = self.path.joinpath(*parts)
        try:
            write_whole_text(path, text)
        except OSError as error:
            raise disk_error("the driver", path, error) from error
        return path


def is_run(path: Path, run_id: str) -> bool:
    """Whether `path` is the folder of that run that the driver made, and not one of the same name on another disk."""
    return (read_facts(path) or {}).get("run_id") == run_id


def node_folder(scratch_dir: Path | None, run_id: str) -> Path:
    """Where a node keeps what its ranks write when it cannot reach the run folder; `scratch_dir` is ray.scratch_dir."""
    return (scratch_dir or user_folder(Path(tempfile.gettempdir()))) / run_id


def make_node_folder(scratch_dir: Path | None, run_id: str) -> Path:
    """Make that folder, for this user alone: others can guess its name.

    Raises:
        PreflightFailed: somebody else has taken the name, or it cannot be made.
    """
    folder = node_folder(scratch_dir, run_id)
    if scratch_dir is None:
        private_folder(folder.parent)
    else:
        scratch_dir.mkdir(parents=True, exist_ok=True)
    return private_folder(folder)


def new_run_id() -> str:
    """Return a run id: unique, and in order of time when sorted."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def point(link: Path, target: str) -> None:
    """Make `link` point to `target` in one step: a program that follows it finds the old run or the new one."""
    temporary = link.with_name(f".{link.name}.{target}")
    os.symlink(target, temporary)
    temporary.replace(link)
